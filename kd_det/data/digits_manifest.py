"""Tells whether a generated data set is whole, by a list of every file's sha256 and of what made them."""

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def write_manifest(folder: Path, recipe: dict[str, Any]) -> None:
    """List every file below ``folder`` with its digest, and the JSON-able ``recipe`` that made them."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = {"recipe": recipe, "files": _digests(folder, names)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def matches_manifest(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether ``folder`` holds what ``recipe`` made: a missing, edited or half-written file says no."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["recipe"] != json.loads(json.dumps(recipe)):
            return False
        return manifest["files"] == _digests(folder, list(manifest["files"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
