"""Every key has a check, which refuses values of the wrong kind."""

from __future__ import annotations

import math

import pytest
from fvcore.common.config import CfgNode

from classification.config import get_config
from classification.distillers import DISTILLERS
from classification.schema import SCHEMA, check_values, checked
from kd_det.common.config_files import leaves
from kd_det.common.errors import SetupError

# Keys that a distiller's class brings, with the class's own checks.
BROUGHT = {
    f"{DISTILLERS.section(name)}.{key}": distiller for name, distiller in DISTILLERS.items() for key in distiller.keys
}
KEYS = [key for key, _ in leaves(get_config()) if key not in BROUGHT]


def with_value(key: str, value: object) -> CfgNode:
    cfg = get_config()
    *sections, name = key.split(".")
    node = cfg
    for section in sections:
        node = node[section]
    node[name] = value
    return cfg


def test_every_key_has_a_check_and_every_default_passes():
    assert sorted(SCHEMA) == sorted(KEYS)
    check_values(get_config())
    assert all(key in distiller.checks for key, distiller in BROUGHT.items())


@pytest.mark.parametrize("key", KEYS)
def test_values_of_the_wrong_kind(key):
    own = type(checked(get_config(), key))
    values = [None, math.inf, -math.inf, math.nan, {}, [None], ("a",), -7, -7.0, b"bytes", 1j]
    values += [value for value in (True, "text\0", 3, 2.5, (1.5,)) if not isinstance(value, own)]
    for value in values:
        if isinstance(value, int) and own is float and value > 0:
            continue  # 3 is 3.0
        if value == ("a",) and key == "TEACHER.CONFIG_FILES":
            continue  # its kind
        with pytest.raises(SetupError, match=rf"^{key} is "):
            check_values(with_value(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("KD.TEMPERATURE", 1e-30),
        ("KD.TEMPERATURE", 1e7),
        ("MCLD.TEMPERATURE", 1e-7),
        ("SOLVER.STEPS", (210, 150)),
        ("SOLVER.STEPS", (150, 150)),
        ("SOLVER.STEPS", (0, 5)),
        ("SOLVER.MOMENTUM", 5.0),
        ("SDD.SCALES", (1, 2, 2)),
        ("SDD.SCALES", (2, 1)),
        ("DATA.CONFIDENCE_RANGE", (0.5, math.nan)),
        ("DATA.IMAGE_SIZE", 10**9),
        ("HCD.N", 10**9),
        ("DATA.WORKERS", 10**6),
        ("SEED", 2**32),
        ("STUDENT.STEM", "cifer"),
    ],
)
def test_values_out_of_range(key, value):
    with pytest.raises(SetupError, match=rf"^{key} is "):
        check_values(with_value(key, value))


def test_a_section_that_is_set_to_none():
    with pytest.raises(SetupError, match=r"^KD\.WEIGHT is None"):
        check_values(with_value("KD", None))
