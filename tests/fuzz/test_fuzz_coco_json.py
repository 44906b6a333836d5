from __future__ import annotations

from tests.fuzz.fuzz_coco_json import TARGET
from tests.fuzz.harness import run


def test_coco_json():
    outcome = run(TARGET, 60)
    assert not outcome.failures, outcome.summary(TARGET.name)
    assert 20 < outcome.refused < outcome.cases == 60
