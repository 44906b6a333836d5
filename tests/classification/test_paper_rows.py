"""Every row of the papers' tables that names a command: student, teacher, method and data are built as it says.

The settings are asserted from the papers' texts: Zhao et al. 2022, sections 3.2, 4 and A.2 to A.4; Wang et al. 2024,
section 5.
"""

from __future__ import annotations

import json
import shlex
from functools import cache

import pytest
import torch

from classification import auto_train, train
from classification.config import check_config, load_config
from classification.data import build, build_data
from classification.data.image_folders import FileData, ImagesOnDisk
from classification.data.small_images import CIFAR_MEAN, CIFAR_STD, ImagesInMemory, MemoryData
from classification.distillers import build_distiller
from classification.studies.grid import combinations
from kd_det.common.command_line import parse_arguments
from tests.classification.test_configs import FEW, pair
from tests.conftest import ROOT

PAPERS = ("zhao2022", "wang2024")
LIGHT = ("MobileNetV2", "ShuffleV1", "ShuffleV2")
# Table A.2; section 3.2 has weights of its own.
BETA = {"resnet56": 2.0, "resnet110": 2.0, "wrn_40_2": 6.0, "vgg13": 6.0, "ResNet50": 8.0, "resnet32x4": 8.0}
STUDIES = ("1", "2", "3", "4", "5")
# The methods that these two papers run on ImageNet.
OWN = ("none", "kd", "dkd", "dkd_nckd", "dkd_coupled", "mcld")
ZHAO, WANG = ("zhao2022", "wang2024")


@cache
def content(paper: str):
    return json.loads((ROOT / "results" / f"classification_{paper}.json").read_text())


ROWS = [(paper, row) for paper in PAPERS for row in content(paper)["rows"] if row["config"]]


@cache
def read(arguments: str):
    """The configuration of ``--config-file ARGUMENTS``, read as the command line reads it."""
    args = parse_arguments(train.parser(), ["--config-file", *shlex.split(arguments)])
    return load_config(args.config_file, args.opts)


@pytest.fixture(scope="module", autouse=True)
def small_data():
    """In place of CIFAR-100 and ImageNet: 512 samples of a few classes."""
    labels = torch.arange(512) % FEW
    names = tuple("abcde"[:FEW])
    images = ImagesInMemory(torch.zeros(512, 3, 32, 32, dtype=torch.uint8), labels)
    files = ImagesOnDisk(["x.jpg"] * 512, labels)
    with pytest.MonkeyPatch.context() as patched:
        memory = MemoryData(images, images, names, CIFAR_MEAN, CIFAR_STD, mirror=True)
        patched.setitem(build.IN_MEMORY, "cifar100", lambda root: memory)
        patched.setitem(build.ON_DISK, "imagenet", lambda root: FileData(files, files, names))
        yield


@pytest.mark.parametrize("arguments", sorted({row["config"] for _, row in ROWS}))
def test_a_row_is_built_by_its_command(arguments):
    cfg = read(arguments)
    check_config(cfg)
    networks = pair(cfg)
    distiller = build_distiller(cfg, networks)
    assert networks.student_out.logits.shape == (1, FEW)
    for row in (row for _, row in ROWS if row["config"] == arguments):
        assert (row["data"], row["student"] or cfg.STUDENT.NAME) == (cfg.DATA.NAME, cfg.STUDENT.NAME)
        assert distiller.needs_teacher == (row["method"] not in ("alone", "none (alone)"))
        assert row["teacher"] == cfg.TEACHER.NAME or not distiller.needs_teacher
    data = build_data(cfg, "cpu")
    assert (data.train.labels != torch.arange(512) % FEW).sum() == round(512 * cfg.DATA.LABEL_NOISE)
    if cfg.DATA.NAME == "cifar100":
        assert next(data.train.epoch(0)).images.shape == (64, 3, 32, 32)


def rows(paper: str, *tables: str):
    return [row for row in content(paper)["rows"] if row["config"] and (not tables or row["table"] in tables)]


@pytest.mark.parametrize("paper", PAPERS)
def test_the_schedules_of_both_data_sets(paper):
    """A.2: CIFAR-100 as in Tian et al. 2020, ImageNet by the standard practice. Wang et al. follow both.

    Rows of MLKD have its own learning rate and, in two tables, 480 epochs. Rows that the papers quote for ImageNet have
    the batch and learning rate of their sources: see test_method_settings.py.
    """
    for row in rows(paper):
        cfg = read(row["config"])
        solver = cfg.SOLVER
        assert (solver.OPTIMIZER, solver.MOMENTUM, solver.SCHEDULE, solver.GAMMA) == ("sgd", 0.9, "step", 0.1)
        assert (solver.ACCUMULATE, solver.CLIP_GRAD_NORM, solver.MIXED_PRECISION) == (1, 0.0, "no")
        if row["data"] == "imagenet":
            assert (solver.EPOCHS, tuple(solver.STEPS)) == (100, (30, 60, 90)), row
            assert solver.LR / cfg.DATA.BATCH_SIZE == 0.2 / 512 and solver.WEIGHT_DECAY == 1e-4, row
            if cfg.DISTILLER in OWN:
                assert cfg.DATA.BATCH_SIZE == 512, row
        else:
            times = row.get("setting", {}).get("epochs", 240) / 240
            assert (solver.EPOCHS, tuple(solver.STEPS)) == (240 * times, (150 * times, 180 * times, 210 * times)), row
            light = cfg.STUDENT.NAME in LIGHT
            rates = (0.005, 0.01, 0.025) if cfg.DISTILLER == "mlkd" else (0.01,) if light else (0.05,)
            assert (cfg.DATA.BATCH_SIZE, solver.WEIGHT_DECAY) == (64, 5e-4) and solver.LR in rates, row


def test_dkd_in_the_tables_of_section_4():
    for paper, row in ROWS:
        if row["method"] != "DKD" or "setting" in row:
            continue
        cfg = read(row["config"])
        assert (cfg.DISTILLER, cfg.CE_WEIGHT, cfg.DKD.WEIGHT) == ("dkd", 1.0, 1.0), row
        if row["data"] == "imagenet":
            beta = {"torchvision/resnet18": 0.5}.get(row["student"], 2.0)
            assert (0.5, beta, 1.0) == (cfg.DKD.ALPHA, cfg.DKD.BETA, cfg.DKD.TEMPERATURE), row
        else:
            assert (cfg.DKD.ALPHA, cfg.DKD.TEMPERATURE, cfg.WARMUP_EPOCHS) == (1.0, 4.0, 20), row
            if paper == ZHAO and row["table"] in ("6", "7"):
                assert BETA[row["teacher"]] == cfg.DKD.BETA, row


def test_kd_in_the_tables_of_section_4():
    """A.4: "instead of the default 0.1CE+0.9KD setting" of Tian et al. 2020."""
    for row in rows(ZHAO, "6", "7", "11", "12"):
        if row["method"] == "KD":
            cfg = read(row["config"])
            assert (cfg.DISTILLER, cfg.CE_WEIGHT, cfg.KD.WEIGHT, cfg.KD.TEMPERATURE) == ("kd", 0.1, 0.9, 4.0)


def test_the_weights_of_section_3_2_are_all_one():
    """A.4: "we set the loss weight of all terms (e.g., KD, TCKD, NCKD and CE) as 1.0"."""
    named = {
        **{"KD (TCKD + NCKD)": "dkd_coupled", "TCKD alone": "dkd_tckd", "NCKD alone": "dkd_nckd"},
        **{"without TCKD": "dkd_nckd", "with TCKD": "dkd", "alone": "none"},
    }
    seen = set()
    for row in rows(ZHAO, *STUDIES):
        if "setting" not in row:
            continue
        cfg = read(row["config"])
        seen.add(row["method"])
        assert named[row["method"]] == cfg.DISTILLER, row
        assert (cfg.CE_WEIGHT, cfg.DKD.WEIGHT) == (1.0, 1.0), row
        if cfg.DISTILLER in ("dkd", "dkd_coupled"):
            assert cfg.DKD.ALPHA == 1.0, row
        if cfg.DISTILLER == "dkd":
            assert cfg.DKD.BETA == 1.0, row
        if cfg.DISTILLER != "none":
            imagenet = row["data"] == "imagenet"
            assert (1.0 if imagenet else 4.0, 1 if imagenet else 20) == (cfg.DKD.TEMPERATURE, cfg.WARMUP_EPOCHS), row
    assert seen == named.keys()


def teacher_of(cfg, monkeypatch):
    """The configuration of the command by which AUTO_TRAIN trains its teacher."""
    commands = []
    monkeypatch.setattr(auto_train, "stream", lambda command, **_: commands.append(command))
    auto_train.train_teacher(cfg)
    args = parse_arguments(train.parser(), commands[0][3:])
    return load_config(args.config_file, args.opts)


def test_table_2_augments_teacher_and_students(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (alone,) = (read(row["config"]) for row in rows(ZHAO, "2") if row["method"] == "alone")
    for row in rows(ZHAO, "2"):
        cfg = read(row["config"])
        assert cfg.DATA.AUTO_AUGMENT and not cfg.DATA.LABEL_NOISE
        if row["teacher"]:
            assert teacher_of(cfg, monkeypatch) == alone
    plain = [row for paper in PAPERS for row in rows(paper) if (paper, row["table"]) != (ZHAO, "2")]
    assert not any(read(row["config"]).DATA.AUTO_AUGMENT for row in plain)


def test_table_3_has_one_noise_and_the_teachers_best_epoch(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for row in rows(ZHAO, "3"):
        cfg = read(row["config"])
        teacher = teacher_of(cfg, monkeypatch)
        assert row["setting"]["noise"] == cfg.DATA.LABEL_NOISE == teacher.DATA.LABEL_NOISE
        assert cfg.DATA.LABEL_NOISE_SEED == teacher.DATA.LABEL_NOISE_SEED
        assert teacher.SOLVER.SAVE_BEST and not cfg.SOLVER.SAVE_BEST
        assert f"{teacher.OUTPUT_DIR}/model_best.pth" == cfg.TEACHER.WEIGHTS
        assert (teacher.STUDENT.NAME, teacher.DISTILLER, teacher.SOLVER.EPOCHS) == ("resnet32x4", "none", 240)
    others = [row for paper in PAPERS for row in rows(paper) if (paper, row["table"]) != (ZHAO, "3")]
    assert not any(read(row["config"]).DATA.LABEL_NOISE or read(row["config"]).SOLVER.SAVE_BEST for row in others)


def test_the_halves_of_table_5():
    parts = {row["setting"]["confidence_range"]: row["config"] for row in rows(ZHAO, "5")}
    ranges = {part: tuple(read(config).DATA.CONFIDENCE_RANGE) for part, config in parts.items()}
    assert ranges == {"0-100%": (0.0, 1.0), "0-50% (most confident)": (0.0, 0.5), "50-100%": (0.5, 1.0)}


def test_what_the_other_studies_vary():
    for row in rows(ZHAO, "ablation of α", "ablation of β", "A.1"):
        cfg, setting = read(row["config"]), row["setting"]
        assert setting.get("alpha", 1.0) == cfg.DKD.ALPHA and cfg.DKD.TEMPERATURE == 4.0
        if setting["beta"] == "1 - p_t":
            assert cfg.DISTILLER == "dkd_coupled"
        else:
            assert ("dkd", setting["beta"], 1.0) == (cfg.DISTILLER, cfg.DKD.BETA, cfg.CE_WEIGHT)
    for row in rows(ZHAO, "A.2"):
        assert row["setting"]["beta"] == read(row["config"]).DKD.BETA
    for row in rows(ZHAO, "A.3"):
        cfg = read(row["config"])
        assert ("dkd_tckd", 1.0, row["setting"]["temperature"]) == (cfg.DISTILLER, cfg.DKD.WEIGHT, cfg.DKD.TEMPERATURE)


def test_mcld():
    """Section 5: tau 0.2; tables 5 and 6 name the teachers with which it has a cross-entropy."""
    found = [row for row in rows(WANG) if row["method"] == "MCLD"]
    assert len(found) > 40
    for row in found:
        cfg = read(row["config"])
        weak = row["teacher"] in ("resnet56", "resnet110") or row["student"] == "torchvision/resnet18"
        assert ("mcld", 0.2, weak) == (cfg.DISTILLER, cfg.MCLD.TEMPERATURE, cfg.MCLD.CE), row
        assert (cfg.MCLD.INSTANCE, cfg.MCLD.SAMPLE, cfg.MCLD.CATEGORY) == (True, True, True)


def test_no_two_different_runs_share_a_folder():
    folders: dict[str, str] = {}
    for _, row in ROWS:
        cfg = read(row["config"])
        assert folders.setdefault(cfg.OUTPUT_DIR, cfg.dump()) == cfg.dump(), row["config"]


@pytest.mark.parametrize("paper", PAPERS)
def test_the_commands_of_whole_tables(paper):
    """A sweep has exactly the settings of its rows; a probe names the folders of its rows' runs."""
    for name, table in content(paper)["tables"].items():
        words = shlex.split(table.get("command", ""))
        of_it = [read(row["config"]) for row in rows(paper, name)]
        if "tools/ablate.py" in words:
            start, grid = words.index("--config-file") + 1, words.index("--grid")
            files, (key, *values) = words[start:grid], words[grid + 1 :]
            swept = [load_config(files, combination.overrides) for combination in combinations([[key, *values]])]
            section, field = key.split(".")
            pairs = {(cfg.DISTILLER, cfg.TEACHER.NAME, cfg.STUDENT.NAME, cfg[section][field]) for cfg in of_it}
            assert {(cfg.DISTILLER, cfg.TEACHER.NAME, cfg.STUDENT.NAME, cfg[section][field]) for cfg in swept} <= pairs
        elif "tools/linear_probe.py" in words:
            runs = words[2 : words.index("--on")]
            known = {cfg.OUTPUT_DIR.removeprefix("output/") for cfg in of_it}
            assert known <= set(runs) and words[words.index("--on") + 1 :] == ["stl10", "tiny_imagenet"]


def test_only_the_teachers_of_torchvision_have_no_command():
    for paper in PAPERS:
        without = {row["student"] for row in content(paper)["rows"] if not row["config"]}
        assert without == {"torchvision/resnet34", "torchvision/resnet50.IMAGENET1K_V1"}
