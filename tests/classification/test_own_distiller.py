"""--import: a distiller of one's own trains, and its keys are checked."""

from __future__ import annotations

from tests.classification.conftest import ROOT
from tests.classification.forked import train

DISTILLER = ROOT / "tests/tools/recipes/my_distillers.py"


def test_a_distiller_trains(distil, tmp_path):
    line = ["--import", DISTILLER, "DISTILLER", "mine", "STUDENT.NAME", "resnet8", *distil, "SOLVER.EPOCHS", 1]
    ended = train(tmp_path, *line, "MINE.WEIGHT", 0.5, "OUTPUT_DIR", "mine")
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert '"loss_mine"' in (tmp_path / "mine" / "history.json").read_text()
    assert '"WEIGHT": 0.5' in (tmp_path / "mine" / "result.json").read_text()
    ended = train(tmp_path, *line, "MINE.WEIGHT", -0.5)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "error: MINE.WEIGHT is -0.5; it must be a finite number, 0 or more."
