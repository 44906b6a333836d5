"""A short part of each fuzz target on files of weights and configurations. The whole: ``tests.fuzz.harness.main``."""

from __future__ import annotations

import pytest

from tests.fuzz import fuzz_legacy_pth, fuzz_pkl, fuzz_pth, fuzz_yaml
from tests.fuzz.harness import run


@pytest.mark.parametrize("module", [fuzz_pth, fuzz_legacy_pth, fuzz_pkl, fuzz_yaml])
def test_damaged_files_end_in_one_line(module):
    outcome = run(module.TARGET, cases=40)
    assert outcome.cases == 40 and outcome.refused > 10 and not outcome.failures, outcome.summary(module.TARGET.name)
