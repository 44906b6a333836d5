"""A short part of ``fuzz_settings.py``."""

from __future__ import annotations

from tests.fuzz import harness
from tests.fuzz.fuzz_settings import TARGET, known


def test_random_settings():
    known()  # made once, before the cases' process begins
    outcome = harness.run(TARGET, cases=30)
    assert not outcome.failures, outcome.summary(TARGET.name)
    assert 5 < outcome.refused < 28  # neither all refused nor all passed
