"""YAML configurations: no file runs code, and a bad file ends in one line that says where."""

from __future__ import annotations

import os

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser

import classification.config
from classification.studies.beta import is_classification
from kd_det.common.config_merge import merge_config
from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.engine import run
from kd_det.teacher.config import teacher_config

LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN = {
    "OUTPUT_DIR: x\nMODEL: [a\n": "line 3: this is not valid YAML: expected ',' or ']'",
    "MODEL:\n\tMASK_ON: True": "line 2: this is not valid YAML: found character '\\t'",
    "SEED: \x01": "line 1: this is not valid YAML: special characters",
    "SEED: *b": "line 1: this is not valid YAML: found undefined alias 'b'",
    "--- {}\n--- {}\n": "line 2: this is not valid YAML: but found another document",
    "": "is empty; give a YAML file",
    "- a\n": "is a list; give a YAML file",
    "some text": "is plain text; give a YAML file",
    "SEED: 1\nSEED: 2": "line 2: the key 'SEED' is listed twice",
    "1: 2": "line 1: the key '1' is not text",
    "{[1]: 2}": "is not text",
    LAUGHS: "more than 20000 values",
    "a: &a [*a]": "nested too deeply",
    "[" * 600: "nested too deeply",
    "{a: " * 40 + "1" + "}" * 40: "nested too deeply",
    "SEED: 2001-99-99": "has a value that cannot be read",
    "SEED: '" + "-" * 9000 + "1'": "a value is nested too deeply",
    "a" * 300_000: "has over 131072 characters",
    "MODEL: 3": "MODEL is 3, but it is a section",
    "VERSION: 3": "VERSION is 3; Detectron2 reads 1 to 2",
    "VERSION: x": "VERSION is 'x'; Detectron2 reads 1 to 2",
    "_BASE_: nowhere.yaml": "its _BASE_ '{folder}/nowhere.yaml' does not exist",
    "_BASE_: case.yaml": "is its own _BASE_: {folder}/case.yaml -> {folder}/case.yaml",
    "_BASE_: loop.yaml": "is its own _BASE_: {folder}/case.yaml -> {folder}/loop.yaml -> {folder}/case.yaml",
    "_BASE_: [value.yaml, section.yaml]": "'SEED' is a section here and a value in its _BASE_",
    "_BASE_: 3": "_BASE_ is 3; give the path of a file",
    "_BASE_: x.py": "is a Python configuration",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "loop.yaml").write_text("_BASE_: case.yaml")
    (tmp_path / "value.yaml").write_text("SEED: 1")
    (tmp_path / "section.yaml").write_text("SEED: {A: 1}")
    return tmp_path


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_bad_configuration_is_one_line(folder, text):
    path = folder / "case.yaml"
    path.write_text(text)
    with pytest.raises(SetupError) as caught:
        load_config(str(path))
    line = str(caught.value)
    assert BROKEN[text].format(folder=folder) in line and "case.yaml" in line and len(line.splitlines()) == 1
    if "VERSION" not in text and "section" not in BROKEN[text]:
        with pytest.raises(SetupError):
            classification.config.load_config(str(path), [])


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "case.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SetupError, match=r"case\.yaml' is not text"):
        load_config(str(tmp_path / "case.yaml"))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch {}']", "!!python/name:os.system", "!own 1"])
@pytest.mark.parametrize("where", ["file", "base", "teacher"])
def test_no_tag_runs_code(tmp_path, capsys, tag, where):
    marker, harmful, path = tmp_path / "ran", tmp_path / "harmful.yaml", tmp_path / "case.yaml"
    harmful.write_text(f"VERSION: 2\nOUTPUT_DIR: {tag.format(marker)}\n")
    path.write_text("_BASE_: harmful.yaml\n")
    refused = f"harmful.yaml', line 2: the tag '{tag.split()[0]}' is refused"
    if where == "teacher":
        cfg = load_config("", ["KD.TEACHER.CONFIG_FILE", str(path), "KD.TEACHER.WEIGHTS", "x.pth"])
        with pytest.raises(SetupError, match=r"KD\.TEACHER\.CONFIG_FILE: ") as caught:
            teacher_config(cfg)
        assert refused in str(caught.value)
    else:
        arguments = ["--config-file", str(harmful if where == "file" else path)]
        with pytest.raises(SystemExit) as ended:
            run(default_argument_parser().parse_args(arguments))
        error = capsys.readouterr().err.splitlines()[-1]
        assert ended.value.code == 2 and error.startswith("error: --config-file") and refused in error
    assert not marker.exists()


@pytest.mark.parametrize("name", ["new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py", "own.py"])
def test_python_configurations_are_refused_by_name(tmp_path, capsys, name):
    marker = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(marker)!r}, 'w')")
    path = name if "/" in name else str(tmp_path / name)
    with pytest.raises(SystemExit):
        run(default_argument_parser().parse_args(["--config-file", path]))
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: --config-file {path!r} is a Python configuration (LazyConfig)")
    cfg = load_config("", ["KD.TEACHER.CONFIG_FILE", path, "KD.TEACHER.WEIGHTS", "x.pth"])
    with pytest.raises(SetupError, match=r"KD.TEACHER.CONFIG_FILE .* is a Python configuration"):
        teacher_config(cfg)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ([1, 2], "got 1 as a key; keys are text"),
        (["SEED"], "one key has no value"),
        (["MODEL", 3], "MODEL is a section. Give a key of it"),
        (["SOLVER.BASE_LR.X", 3], "there is no key 'SOLVER.BASE_LR.X'"),
        (["SEED", "-" * 90_000 + "1"], "nested too deeply"),
        (["SEED", "(" * 90_000], "Type mismatch"),
        (["SEED", "1" * 200_000], "has 200000 characters"),
        (["SEED", "a\nb"], "Type mismatch"),
        (["MODEL.", 1], "there is no key 'MODEL.'"),
    ],
)
def test_bad_overrides(overrides, fault):
    with pytest.raises(SetupError) as caught:
        load_config("", overrides)
    assert fault in str(caught.value) and len(str(caught.value)) < 1000 and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["COCO-Detection/retinanet_R_50_FPN_1x", "Misc/cascade_mask_rcnn_R_50_FPN_3x"])
def test_the_model_zoo_is_read_as_detectron2_reads_it(name):
    path = model_zoo.get_config_file(f"{name}.yaml")
    ours, theirs = get_cfg(), get_cfg()
    merge_config(ours, path, (), source="--config-file")
    theirs.merge_from_file(path)
    assert ours == theirs


def test_bases_are_merged_in_order_and_aliases_stay_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.yaml").write_text("SOLVER: {MAX_ITER: 1, BASE_LR: 0.5}\nSEED: 3\nVERSION: 2\n")
    (tmp_path / "b.yaml").write_text("SOLVER: &x {MAX_ITER: 2}\n")
    (tmp_path / "case.yaml").write_text("_BASE_: [deep/a.yaml, ~/b.yaml]\nSOLVER: {GAMMA: 0.25}\n")
    cfg = load_config(str(tmp_path / "case.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA, cfg.SEED) == (2, 0.5, 0.25, 3)
    (tmp_path / "old.yaml").write_text("VERSION: 1\nMODEL: {WEIGHT: w.pkl}\nKD: {TERMS: [dkd]}\n")
    cfg = load_config(str(tmp_path / "old.yaml"))
    assert cfg.MODEL.WEIGHTS == "w.pkl" and cfg.VERSION == 2 and cfg.KD.TERMS == ("dkd",)


def test_suggest_beta_reads_the_same_way(tmp_path):
    for number, text in enumerate(("_BASE_: 0.yaml", "", "word", "a: !!python/name:os.system", f"a: {os.sep * 3}")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        if number == 4:
            assert not is_classification(str(path))
        else:
            with pytest.raises(SetupError):
                is_classification(str(path))
