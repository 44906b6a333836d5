"""Tells whether a generated data set is whole, by a list of every file's sha256 and of what made them; and which files
are its own, so that none but those are ever removed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from kd_det.common.errors import SetupError

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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def check_removable(folder: Path) -> None:
    """Raises ``SetupError`` unless all that is in ``folder`` was made by us: its manifest names every file."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        foreign = "it is a link, or a file"
    elif not folder.is_dir():
        return
    else:
        ours = _made(folder)
        found = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
        name = next((name for name in found if name not in ours), None)
        if name is None:
            return
        foreign = f"it has {name!r}, which " + ("its manifest does not name" if ours else "no manifest of ours names")
    raise SetupError(
        f"DETECTRON2_DATASETS: the digits scenes would be made in {str(folder)!r}, but it is not ours to replace: "
        f"{foreign}. Nothing was removed. Move it away, or set DETECTRON2_DATASETS to another folder."
    )


def remove_made(folder: Path) -> None:
    """Removes what the manifest names and nothing else, the manifest last: what a killed process leaves is still known
    as ours. For a folder that ``check_removable`` passes, or none."""
    ours = _made(folder)
    for path in sorted(folder.rglob("*"), reverse=True):  # a folder after what is in it
        if path.relative_to(folder).as_posix() in ours - {MANIFEST}:
            remove = path.rmdir if path.is_dir() else path.unlink
            remove()
    if folder.is_dir():
        (folder / MANIFEST).unlink(missing_ok=True)
        folder.rmdir()


def _made(folder: Path) -> set[str]:
    """What the manifest of a folder names, files and folders, and itself; nothing without a manifest of this kind."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        names = list(manifest["files"]) if "generator" in manifest["recipe"] else []
        inner = {parent.as_posix() for name in names for parent in Path(name).parents}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    return {*names, *inner, MANIFEST} if names else set()
