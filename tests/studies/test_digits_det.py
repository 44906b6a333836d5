from pathlib import Path

import pytest

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.studies import digits_det, digits_runs
from kd_det.studies.digits_det import Benchmark, arms_of
from kd_det.studies.digits_runs import seeds_of
from kd_det.studies.methods import all_methods, recipe_of


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """What a benchmark of two seeds would run, by the step's folder; nothing is trained."""
    ran = {}
    output_dir = tmp_path_factory.mktemp("benchmark")

    def pretend(folder, recipe, output, command, collect, threads=None):
        ran[folder.relative_to(output_dir).as_posix()] = command(False), recipe
        folder.mkdir(parents=True)
        (folder / output).write_bytes(b"weights")
        return {}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(digits_runs, "run_step", pretend)
        patched.setattr(digits_det, "make_digits_det", lambda root: None)
        patched.setattr(digits_det, "scenes_recipe", lambda root: "scenes")
        patched.setattr(Benchmark, "_report", lambda self, results, runs, command: None)
        patched.chdir(tmp_path_factory.mktemp("elsewhere"))  # the configurations are found from any folder
        Benchmark(output_dir, arms_of(all_methods()), seeds_of(2), "demo", "cpu").run("")
    return ran


def settings_of(command):
    """The configuration that a ``kd-det train`` command line trains."""
    assert command[1:5] == ["-m", "kd_det", "train", "--config-file"]
    return load_config(command[5], command[6:])


def without_kd(cfg):
    """The configuration less what may differ between arms."""
    cfg.pop("KD")
    cfg.OUTPUT_DIR = ""
    return cfg


@pytest.mark.parametrize(
    ("seeds", "schedule", "said"),
    [(1, "demo", "**One seed, short schedule**: diff"), (5, "demo", "**5 seeds, short schedule**, which favours"),
     (3, "long", "**3 seeds, long schedule**.")],
)  # fmt: skip
def test_the_table_says_how_little_it_shows(seeds, schedule, said, tmp_path):
    assert Benchmark(tmp_path, (), seeds_of(seeds), schedule, "cpu").caution.startswith(said)


def test_every_step_is_planned_once(commands):
    arms = {f"{arm}/seed{seed}" for arm in arms_of(all_methods()) for seed in (1, 2)}
    assert set(commands) == {"teacher_warm_up", "student_warm_up", "teacher/seed1", "knowledge"} | arms


def test_the_student_arms_differ_in_their_kd_settings_alone(commands):
    for seed in (1, 2):
        alone = settings_of(commands[f"student/seed{seed}"][0])
        assert seed == alone.SEED
        assert alone.KD.TERMS == ()
        for arm in all_methods():
            distilled = settings_of(commands[f"{arm}/seed{seed}"][0])
            assert tuple(distilled.KD.TERMS) == recipe_of(arm).terms
            assert Path(distilled.KD.TEACHER.WEIGHTS).parts[-3:] == ("teacher", "seed1", "model_final.pth")
            assert Path(distilled.KD.TEACHER.STORED).name == ("knowledge" if recipe_of(arm).stored else "")
            assert (arm == "live_dkd_teacher_boxes") == distilled.KD.TEACHER.PROPOSALS
            assert without_kd(distilled) == without_kd(alone.clone())


def test_the_teacher_is_a_plain_detectron2_model(commands):
    cfg = settings_of(commands["teacher/seed1"][0])
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME) == ("GeneralizedRCNN", "StandardROIHeads")


def test_a_recipe_names_the_teachers_weights(commands):
    _, recipe = commands["dkd/seed1"]
    assert set(recipe["inputs"]) == {"MODEL.WEIGHTS", "KD.TEACHER.WEIGHTS"}
    assert "GeneralizedRCNN" in recipe["teacher"]


def test_the_teachers_knowledge_is_stored_once_for_the_students_training_scenes(commands):
    command, recipe = commands["knowledge"]
    assert command[1:5] == ["-m", "kd_det", "store-teacher", "--config-file"]
    folder = command[command.index("--output") + 1]
    cfg = load_config(command[5], command[8:])
    assert cfg.DATASETS.TRAIN == ("digits_det_train",)
    assert Path(cfg.KD.TEACHER.WEIGHTS).parts[-3:] == ("teacher", "seed1", "model_final.pth")
    for arm, terms in {"stored_dkd": ("dkd",), "stored_kd": ("kd",), "teacher_boxes": ()}.items():
        command, recipe = commands[f"{arm}/seed1"]
        assert folder == settings_of(command).KD.TEACHER.STORED and terms == settings_of(command).KD.TERMS
        assert "KD.TEACHER.STORED" in recipe["inputs"]  # other knowledge is another run


def test_without_a_stored_arm_nothing_is_stored(tmp_path, monkeypatch):
    folders = []

    def pretend(folder, recipe, output, command, collect, threads=None):
        folders.append(folder.name)
        folder.mkdir(parents=True)
        (folder / output).write_bytes(b"weights")
        return {}

    monkeypatch.setattr(digits_runs, "run_step", pretend)
    monkeypatch.setattr(digits_det, "make_digits_det", lambda root: None)
    monkeypatch.setattr(Benchmark, "_report", lambda self, results, runs, command: None)
    monkeypatch.setattr(digits_det, "scenes_recipe", lambda root: "scenes")
    Benchmark(tmp_path, arms_of(["dkd"]), seeds_of(1), "demo", "cpu").run("")
    assert folders == ["teacher_warm_up", "student_warm_up", *["seed1"] * 3]


def test_methods_are_run_beside_the_student_alone():
    assert arms_of(["dkd", "nkd", "dkd"]) == ("student", "dkd", "nkd")
    with pytest.raises(SetupError, match=r"there is no 'dkt'\. Did you mean 'dkd'"):
        arms_of(["dkt"])


def test_no_seed_is_an_error():
    with pytest.raises(SetupError, match="--seeds is 0"):
        seeds_of(0)
