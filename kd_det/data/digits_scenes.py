"""doc"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from filelock import FileLock

from kd_det.common.errors import SetupError
from kd_det.data.digits_rendering import SPLITS, PastedDigit, SceneSettings, check_split, draw_scene, photographs, scans

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


NAME = "digits_det"
CLASSES = tuple("0123456789")
GENERATOR_VERSION = 1  # goes up whenever the same settings would give other pictures


@dataclass(frozen=True)
class DigitsDetSettings:
    """What to generate.

    Attributes:
        seed: everything random follows from it, the split of the scans included.
        train_images: scenes in ``digits_det_train``.
        val_images: scenes in ``digits_det_val``.
        scene: how a scene looks.
    """

    seed: int = 0
    train_images: int = 1500
    val_images: int = 300
    scene: SceneSettings = field(default_factory=SceneSettings)

    def images(self, split: str) -> int:
        """Number of scenes of a split."""
        check_split(split)
        return self.train_images if split == "train" else self.val_images


def image_root(root: str | Path, split: str) -> Path:
    """Folder of a split's PNG files, below the data sets' root."""
    check_split(split)
    return Path(root) / NAME / split


def annotation_file(root: str | Path, split: str) -> Path:
    """COCO JSON file of a split, below the data sets' root."""
    check_split(split)
    return Path(root) / NAME / "annotations" / f"{split}.json"


def make_digits_det(root: str | Path, settings: DigitsDetSettings | None = None) -> None:
    """Make the data set in ``root/digits_det`` unless it is there, whole and made with these settings.

    Safe to call from many processes at once. A set of ours that is half-written, edited or made otherwise is
    replaced. The same settings give the same files, byte for byte, under the same NumPy, Pillow and OpenCV.

    Args:
        root: folder of data sets, as in ``DETECTRON2_DATASETS``; created if it does not exist.
        settings: what to generate; ``DigitsDetSettings()`` by default.

    Raises:
        SetupError: the folder has files that this function did not make; nothing is removed.
    """
    settings = settings or DigitsDetSettings()
    recipe = {"generator": GENERATOR_VERSION, "settings": asdict(settings)}
    target = Path(root) / NAME
    if matches_manifest(target, recipe):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{NAME}.lock")):
        if not matches_manifest(target, recipe):
            _build(target, settings, recipe)


def _build(target: Path, settings: DigitsDetSettings, recipe: dict[str, Any]) -> None:
    check_removable(target)
    partial = target.with_name(f".{NAME}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "annotations").mkdir(parents=True)
    for number, split in enumerate(SPLITS):
        (partial / split).mkdir()
        coco = _draw_split(partial / split, split, settings, np.random.default_rng((settings.seed, number)))
        (partial / "annotations" / f"{split}.json").write_text(json.dumps(coco))
    write_manifest(partial, recipe)
    check_removable(target)  # again: drawing takes seconds
    remove_made(target)
    partial.rename(target)


def _draw_split(
    folder: Path, split: str, settings: DigitsDetSettings, rng: np.random.Generator
) -> dict[str, Any]:
    sources = scans(split, settings.seed), photographs(split)
    size = settings.scene.image_size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, settings.images(split) + 1):
        pixels, digits = draw_scene(*sources, settings.scene, rng)
        name = f"{image_id:06d}.png"
        cv2.imwrite(str(folder / name), pixels[..., ::-1])  # OpenCV wants BGR
        images.append({"id": image_id, "file_name": name, "height": size, "width": size})
        for digit in digits:
            annotations.append(_annotation(len(annotations) + 1, image_id, digit))
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
    info = {"description": f"digits scenes, {split}", "version": str(GENERATOR_VERSION)}
    return {
        "info": info,
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _annotation(annotation_id: int, image_id: int, digit: PastedDigit) -> dict[str, Any]:
    x0, y0, x1, y1 = digit.box
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": digit.label + 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": digit.area,
        "iscrowd": 0,
    }


def _load(
    root: str | Path, split: str, dataset_name: str, settings: DigitsDetSettings
) -> list[dict[str, Any]]:
    from detectron2.data.datasets import load_coco_json

    make_digits_det(root, settings)
    return load_coco_json(str(annotation_file(root, split)), str(image_root(root, split)), dataset_name)


def register_digits_det(
    root: str | Path, *, prefix: str = NAME, settings: DigitsDetSettings | None = None
) -> None:
    """Register ``<prefix>_train`` and ``<prefix>_val`` with Detectron2; the files are made on first use.

    Args:
        root: folder of data sets; the files go to ``root/digits_det``.
        prefix: what the names in the catalogue start with.
        settings: what to generate; ``DigitsDetSettings()`` by default.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    settings = settings or DigitsDetSettings()
    for split in SPLITS:
        name = f"{prefix}_{split}"
        DatasetCatalog.register(name, lambda split=split, name=name: _load(root, split, name, settings))
        MetadataCatalog.get(name).set(
            thing_classes=list(CLASSES),
            evaluator_type="coco",
            json_file=str(annotation_file(root, split)),
            image_root=str(image_root(root, split)),
            make=partial(make_digits_det, root, settings),
        )
