"""--config-file with several files, found by path or by name, on the parsers of both packages."""

from __future__ import annotations

import argparse
import logging
import os

import pytest
from detectron2.engine import default_argument_parser

from classification import train
from kd_det.common.command_line import add_config_file, parse_arguments
from kd_det.common.config_files import CONFIGS, find_config, shipped_configs, shipped_name
from kd_det.common.errors import SetupError
from kd_det.config import load_config

NAME = "coco/dkd_r101_r18.yaml"
PARSERS = {"detectron2": default_argument_parser, "classification": train.parser}


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
@pytest.mark.parametrize(
    ("line", "files", "opts"),
    [
        ("", [], []),
        ("KEY 1", [], ["KEY", "1"]),
        ("--config-file a.yaml", ["a.yaml"], []),
        ("--config-file a.yaml b.yml", ["a.yaml", "b.yml"], []),
        ("--config-file a.yaml b.yaml KEY 1 OTHER c.yaml", ["a.yaml", "b.yaml"], ["KEY", "1", "OTHER", "c.yaml"]),
        ("--config-file a.yaml LR -1e-5 N -1", ["a.yaml"], ["LR", "-1e-5", "N", "-1"]),
        ("--config-file a.yaml b.yaml --resume KEY 1", ["a.yaml", "b.yaml"], ["KEY", "1"]),
        ("--config-file=a.yaml b.yaml KEY 1", ["a.yaml", "b.yaml"], ["KEY", "1"]),
        ("--resume --config-file no_suffix KEY 1", ["no_suffix"], ["KEY", "1"]),
        ("--config-file a.yaml --config-file b.yaml KEY 1", ["a.yaml", "b.yaml"], ["KEY", "1"]),
    ],
)
def test_files_come_first_and_overrides_need_no_separator(parser, line, files, opts):
    args = parse_arguments(parser(), line.split())
    assert args.config_file == files and args.opts == opts and args.resume == ("--resume" in line)


@pytest.mark.parametrize("line", [[], ["--config-file"], ["--config-file", "--other", "1"]])
def test_a_required_file_is_missed(line, capsys):
    parser = argparse.ArgumentParser()
    add_config_file(parser, required=True)
    parser.add_argument("--other")
    with pytest.raises(SystemExit):
        parse_arguments(parser, line)
    assert "--config-file" in capsys.readouterr().err


def test_a_shipped_configuration_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(NAME) == str(CONFIGS / NAME)
    assert load_config(NAME) == load_config(str(CONFIGS / NAME)) == load_config([NAME])
    assert shipped_name(os.path.relpath(CONFIGS / NAME)) == shipped_name(NAME) == NAME
    assert NAME in shipped_configs()
    # A file of one's own comes first.
    (tmp_path / "coco").mkdir()
    (tmp_path / NAME).write_text("SEED: 5")
    assert load_config(NAME).SEED == 5 and shipped_name(NAME) == NAME


def test_a_name_that_is_neither_a_file_nor_shipped():
    for name in ("coco/dkd_r101_r81.yaml", "configs/coco/dkd_r101_r81.yaml"):
        with pytest.raises(SetupError, match=f"^--config-file: no file '{name}'.* nearest are {NAME}, ") as raised:
            load_config([name])
        assert "\n" not in str(raised.value)
    with pytest.raises(SetupError, match="no file 'coco'"):
        load_config("coco")  # a folder
    with pytest.raises(SetupError, match=f"'{NAME}' is listed twice"):
        load_config([NAME, NAME])


def test_the_later_file_wins_and_the_log_says_so(tmp_path, caplog):
    for name, text in {
        "a": "SEED: 1\nSOLVER: {MAX_ITER: 10, BASE_LR: 0.1}",
        "b": "SOLVER: {MAX_ITER: 20, BASE_LR: 0.1}",
        "c": "SEED: 3\nSOLVER: {MAX_ITER: 30}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    a, b, c = files = [str(tmp_path / f"{name}.yaml") for name in "abc"]
    with caplog.at_level(logging.WARNING):
        cfg = load_config(files, ["SEED", "4"])
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (4, 30, 0.1)
    assert [record.getMessage() for record in caplog.records if record.name == "kd_det.common.config_files"] == [
        f"{b} overrides {a}: SOLVER.MAX_ITER 20 instead of 10",
        f"{c} overrides {a}: SEED 3 instead of 1",
        f"{c} overrides {b}: SOLVER.MAX_ITER 30 instead of 20",
    ]
    caplog.clear()
    assert load_config(files[::-1]).SOLVER.MAX_ITER == 10


def test_an_error_names_the_file_of_several(tmp_path):
    (tmp_path / "wrong.yaml").write_text("SOLVER: {MAX_ITR: 5}")
    with pytest.raises(SetupError, match=r"configuration .*wrong.yaml: there is no key 'SOLVER.MAX_ITR'"):
        load_config([NAME, str(tmp_path / "wrong.yaml")])
