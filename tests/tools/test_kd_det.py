"""``kd-det``: its verbs, their help, and missing packages."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from kd_det import __version__, cli
from kd_det.common.config_files import find_config
from tests.conftest import ROOT
from tests.losses.test_imports import BLOCKED
from tests.tools.commands import run_here

GROUPS = {"bench": cli.BENCHMARKS, "study": cli.STUDIES}
COMMANDS = [[verb] for verb in cli.VERBS if verb not in GROUPS]
COMMANDS += [[verb, name] for verb, names in GROUPS.items() for name in names]
DOORS = sorted(path.name for path in (ROOT / "tools").glob("*.py") if "kd_det.cli" in path.read_text())

WHILE_IMPORTING = """
import os, runpy, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["kd-det", "train"]
runpy.run_module("kd_det", run_name="__main__")
"""
# Every verb that needs it, one after the other.
WITHOUT_DETECTRON2 = """
from kd_det import cli
suggest = ["suggest-beta", "--config-file", "digits_det/dkd.yaml"]
for line in [["train"], ["eval"], ["export"], ["check-data"], ["visualize"], suggest, ["list", "methods"], ["demo"]]:
    try:
        cli.main(line)
    except SystemExit as end:
        print(end.code, *line)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_help_imports_nothing_slow():
    found = python("-X", "importtime", "-m", "kd_det", "--help")
    assert found.returncode == 0 and all(verb in found.stdout for verb in cli.VERBS)
    assert not re.search(r"\b(torch|numpy|detectron2|yaml)\b", found.stderr)


def test_a_closed_pipe_ends_without_a_traceback():
    read, write = os.pipe()
    os.close(read)
    line = [sys.executable, "-m", "kd_det", "list", "configs"]
    ended = subprocess.run(line, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


def test_an_unknown_verb_is_one_line(capsys):
    for line, message in {
        ("trian",): "error: kd-det: there is no 'trian'. Did you mean 'train'? Known: train, eval",
        ("study", "coc"): "error: kd-det study: there is no 'coc'. Did you mean 'coco'? Known: coco",
        ("bench", "los"): "error: kd-det bench: there is no 'los'. Did you mean 'losses'? Known: losses, step",
    }.items():
        with pytest.raises(SystemExit) as end:
            cli.main(line)
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.startswith(message) and error.count("\n") == 1
    cli.main(["--version"])
    assert capsys.readouterr().out == f"kd-det {__version__}\n"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_ends_with_an_example(words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--help"])
    text = capsys.readouterr().out
    examples = [line for line in re.sub(r"\\\n", "", text).splitlines() if line.startswith("  kd-det ")]
    assert end.value.code == 0 and examples[-1].startswith(f"  kd-det {' '.join(words)}")
    last = text.rstrip().splitlines()[-1]
    assert last.strip() in examples[-1]
    for name in re.findall(r"\S+/\S+\.yaml", " ".join(examples)):
        find_config(name)


def test_detectron2_is_missed_in_one_line():
    ended = python("-c", BLOCKED.format(blocked={"detectron2"}) + WITHOUT_DETECTRON2)
    assert ended.returncode == 0, ended.stderr[-2000:]
    error = "error: Detectron2 is not installed. In a clone of kd_det, run python tools/install_detectron2.py; "
    lines = ended.stderr.splitlines()
    assert len(lines) == ended.stdout.count("2 ") == 8 and all(line.startswith(error) for line in lines)


def test_ctrl_c_during_imports_is_one_line():
    ended = python("-c", WHILE_IMPORTING)
    assert (ended.returncode, ended.stderr) == (130, "Interrupted.\n")


@pytest.mark.parametrize("name", DOORS)
def test_the_scripts_are_doors_to_functions_that_exist(name):
    text = (ROOT / "tools" / name).read_text()
    (command,) = re.findall(r'run\("(.+)"\)', text)
    module, function = command.split(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))
    assert f"python tools/{name}" in text and len(text.splitlines()) < 20


def test_lists():
    listed = run_here("list", "teachers", "faster")
    names = [line.strip() for line in listed.stdout.splitlines()[1:]]
    assert "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml" in names and all("faster" in name for name in names)
    everything = run_here("list").stdout
    for text in ("\nteachers:\n", "  coco/dkd_r101_r18.yaml\n", "  KD.TERMS reviewkd ", "  DISTILLER hcd "):
        assert text in everything
    assert "_base" not in everything and "retinanet" not in everything and "/rpn_" not in everything
    for line, message in {
        ("methds",): "kd-det list: WHAT is 'methds'; it must be one of methods, teachers, configs. Did you mean "
        "'methods'?",
        ("configs", "nowhere"): "kd-det list: no name contains 'nowhere'. Leave TEXT out to see all.",
    }.items():
        ended = run_here("list", *line)
        assert ended.returncode == 2 and ended.stderr == f"error: {message}\n"
