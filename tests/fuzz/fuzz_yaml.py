"""YAML configurations of both packages: python tests/fuzz/fuzz_yaml.py --cases 1000"""

from __future__ import annotations

import random
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import classification.config
import kd_det.config
from kd_det.common.errors import SetupError
from tests.conftest import ROOT
from tests.fuzz.harness import Target, main, mutated

FILES = (
    "configs/coco/_base.yaml", "configs/coco/dkd_r101_r18.yaml", "configs/digits_det/teacher.yaml",
    "configs/digits/pairs/resnet20_resnet8.yaml", "configs/cifar100/base.yaml",
)  # fmt: skip
PARTS = (
    "!!python/object/apply:os.system ['touch {marker}']", "!!python/name:os.system", "!!python/object/apply:eval ['1']",
    "!foo x", "!!binary aGk=", "!!set {a}", "!!int x", "!!timestamp 2001-99-99", "2001-01-01", "&a [*a]", "*b", "&a",
    "<<: {SEED: 1}", "<<: *a", "[", "]", "{", "}", "- x", ": ", "? ", "\t", "'", '"', "|", ">", "%YAML 9.9", "---",
    "...", "\n---\n", "null", "yes", "=", "0x", "0b2", "1:2:3", "1e400", ".nan", "9" * 5000, "-" * 20000 + "1",
    "[" * 3000, "{a: " * 400, "(" * 300, "\x00", "\ud800", "é", "\ufeff", "VERSION: 1", "VERSION: [1]", "MODEL: 3",
    "1: 2", "_BASE_: case.yaml", "_BASE_: nowhere.yaml", "_BASE_: /", "_BASE_: [other.yaml, case.yaml]", "_BASE_: 3",
    "_BASE_: ~/x", "_BASE_: other.yaml", "_BASE_: x.py",
)  # fmt: skip
LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in pairwise("abcdefghij")
)


@cache
def whole() -> list[str]:
    files = [ROOT / name for name in FILES]
    texts = [re.sub(r"_BASE_: (.*)", rf"_BASE_: {file.parent}/\1", file.read_text()) for file in files]
    return [*texts, "", "x", "- a\n", LAUGHS, "SEED: 1\n"]


def make(rng: random.Random, folder: Path) -> Path:
    """The case and, beside it, another file that it may name as its base."""
    path = folder / "case.yaml"
    for name in ("other.yaml", "case.yaml"):
        (folder / name).write_bytes(_damaged(rng.choice(whole()), rng, folder))
    return path


def _damaged(text: str, rng: random.Random, folder: Path) -> bytes:
    for _ in range(rng.randint(0, 3)):
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        part = rng.choice(PARTS).replace("{marker}", str(folder / "ran"))
        kind = rng.choice((0, 1, 2, 2, 2, 3, 4))
        if kind == 0:
            lines.insert(at, part)
        elif kind == 1:
            lines[at] += f" {part}"
        elif kind == 2:
            lines[at] = f"{lines[at].partition(':')[0]}: {part}"
        elif kind == 3:
            lines.insert(at, lines[at])
        else:
            lines[at] = " " * rng.randrange(6) + lines[at].lstrip()
        text = "\n".join(lines)
    content = text.encode("utf-8", "surrogatepass")
    return mutated(content, rng) if rng.random() < 0.15 else content


def read(path: Path) -> None:
    """Reads it as a configuration of each package; raises the last ``SetupError``."""
    refused = None
    try:
        kd_det.config.load_config(str(path))
    except SetupError as error:
        refused = error
    try:
        classification.config.load_config(str(path), [])
    finally:
        assert not (path.parent / "ran").exists(), "code of the file was run"
    if refused:
        raise refused


TARGET = Target("yaml", make, read)

if __name__ == "__main__":
    import logging

    logging.disable()
    main(TARGET)
