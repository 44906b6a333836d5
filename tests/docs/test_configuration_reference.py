"""The configuration page has every key, its default and its comment, so it cannot be stale."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from typing import Any

import pytest
from detectron2.config import get_cfg

from classification.config import get_config
from kd_det.common.config_files import leaves
from kd_det.config import add_kd_config
from kd_det.modeling import terms  # noqa: F401  (their keys are part of the configuration)
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "configuration.md"
spec = importlib.util.spec_from_file_location("configuration_reference", ROOT / "docs" / "configuration_reference.py")
reference = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
spec.loader.exec_module(reference)


def detection_keys() -> dict[str, Any]:
    cfg = get_cfg()
    plain = dict(leaves(cfg))
    add_kd_config(cfg)
    return {key: value for key, value in leaves(cfg) if key not in plain}


@pytest.fixture(scope="module")
def tables():
    """The two tables of the page as rows: key to default and meaning."""
    parts = re.split(r"^## ", reference.on_page_markdown(PAGE.read_text()), flags=re.MULTILINE)
    texts = {name: next(part for part in parts if part.startswith(name)) for name in ("Detection", "Classification")}
    rows = {name: re.findall(r"^\| `([A-Z][\w.]*)` \| `(.*?)` \| (.*) \|$", text, re.M) for name, text in texts.items()}
    return {name: {key: (default, meaning) for key, default, meaning in found} for name, found in rows.items()}


@pytest.mark.parametrize(
    ("name", "keys"), [("Detection", detection_keys), ("Classification", lambda: dict(leaves(get_config())))]
)
def test_every_key_is_listed_with_its_default(tables, name, keys):
    expected = keys()
    assert set(tables[name]) == set(expected)
    for key, (default, _) in tables[name].items():
        assert ast.literal_eval(default) == expected[key], key


FILES = ("kd_det/config/defaults.py", "classification/config.py", "classification/method_keys.py")


@pytest.mark.parametrize("file", FILES)
def test_every_comment_is_on_the_page(file):
    sections = reference.read_sections(ROOT / file)
    shown = " ".join([note for section in sections for note in section.notes]
                     + [comment for section in sections for _, _, comment in section.keys])  # fmt: skip
    source = (ROOT / file).read_text()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    inside = [node for node in functions if node.name.startswith(("add_kd", "add_method", "_add", "get_config"))]
    for node in inside:
        for line in source.splitlines()[node.lineno : node.end_lineno]:
            if " # " in f" {line.strip()}":
                assert line.partition("#")[2].strip() in shown, line


def test_keys_that_a_class_brings(tmp_path):
    (tmp_path / "mine.py").write_text(
        '@register_term("p3")\nclass P3(KDTerm):\n    """A term.\n\n    More."""\n\n'
        '    keys = {\n        "WEIGHT": 1.0,  # of the loss\n        "MAPS": ("p3",),\n    }\n'
    )
    (section,) = reference.read_class_keys(tmp_path, "KD")
    assert section.name == "KD.P3" and section.notes == ["A term."]
    assert section.keys == [("KD.P3.WEIGHT", "1.0", "of the loss"), ("KD.P3.MAPS", "('p3',)", "")]
    assert "| `KD.P3.WEIGHT` | `1.0` | of the loss |" in reference.render([section])
