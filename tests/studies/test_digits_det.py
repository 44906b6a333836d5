from pathlib import Path

import pytest

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.studies import digits_det
from kd_det.studies.digits_det import Benchmark, arms_of, seeds_of
from kd_det.studies.methods import METHODS


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
        patched.setattr(digits_det, "run_step", pretend)
        patched.setattr(digits_det, "make_digits_det", lambda root: None)
        patched.setattr(digits_det, "read_json", lambda path: {"recipe": "scenes"})
        patched.setattr(Benchmark, "_report", lambda self, results, command: None)
        patched.chdir(tmp_path_factory.mktemp("elsewhere"))  # the configurations are found from any folder
        Benchmark(output_dir, arms_of(list(METHODS)), seeds_of(2), "demo", "cpu").run("")
    return ran


def settings_of(command):
    """The configuration that a ``tools/train_net.py`` command line trains."""
    assert command[1:3] == ["tools/train_net.py", "--config-file"]
    return load_config(command[3], command[4:])


def without_kd(cfg):
    """The configuration less what may differ between arms."""
    cfg.pop("KD")
    cfg.OUTPUT_DIR = ""
    return cfg


def test_every_step_is_planned_once(commands):
    arms = {f"{arm}/seed{seed}" for arm in arms_of(list(METHODS)) for seed in (1, 2)}
    assert set(commands) == {"teacher_warm_up", "student_warm_up", "teacher/seed1"} | arms


def test_the_student_arms_differ_in_their_kd_settings_alone(commands):
    for seed in (1, 2):
        alone = settings_of(commands[f"student/seed{seed}"][0])
        assert seed == alone.SEED
        assert alone.KD.TERMS == ()
        for arm, terms in METHODS.items():
            distilled = settings_of(commands[f"{arm}/seed{seed}"][0])
            assert tuple(distilled.KD.TERMS) == terms
            assert Path(distilled.KD.TEACHER.WEIGHTS).parts[-3:] == ("teacher", "seed1", "model_final.pth")
            assert without_kd(distilled) == without_kd(alone.clone())


def test_the_teacher_is_a_plain_detectron2_model(commands):
    cfg = settings_of(commands["teacher/seed1"][0])
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME) == ("GeneralizedRCNN", "StandardROIHeads")


def test_a_recipe_names_the_teachers_weights(commands):
    _, recipe = commands["dkd/seed1"]
    assert set(recipe["inputs"]) == {"MODEL.WEIGHTS", "KD.TEACHER.WEIGHTS"}
    assert "GeneralizedRCNN" in recipe["teacher"]


def test_methods_are_run_beside_the_student_alone():
    assert arms_of(["dkd", "nkd", "dkd"]) == ("student", "dkd", "nkd")
    with pytest.raises(SetupError, match=r"there is no 'dkt'\. Did you mean 'dkd'"):
        arms_of(["dkt"])


def test_no_seed_is_an_error():
    with pytest.raises(SetupError, match="--seeds is 0"):
        seeds_of(0)
