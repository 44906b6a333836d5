"""``digits_det``: handwritten digits on photographs, a detection data set that needs no download.

The scenes are PNG files with COCO annotations, made on first use. A manifest lists every file with its sha256, and the
settings that made it: it shows whether the set is complete, and which files may be removed.
"""

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

NAME = "digits_det"
CLASSES = tuple("0123456789")
GENERATOR_VERSION = 1  # raised whenever the same settings would give different pictures
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class DigitsDetSettings:
    """The settings of the data set.

    Attributes:
        seed: of everything random, including the split of the scans.
        train_images: scenes in ``digits_det_train``.
        val_images: scenes in ``digits_det_val``.
        scene: settings of every scene.
    """

    seed: int = 0
    train_images: int = 1500
    val_images: int = 300
    scene: SceneSettings = field(default_factory=SceneSettings)

    def images(self, split: str) -> int:
        """The number of scenes of a split."""
        check_split(split)
        return self.train_images if split == "train" else self.val_images


def image_root(root: str | Path, split: str) -> Path:
    """The folder of a split's PNG files in the data sets' root."""
    check_split(split)
    return Path(root) / NAME / split


def annotation_file(root: str | Path, split: str) -> Path:
    """The COCO JSON file of a split in the data sets' root."""
    check_split(split)
    return Path(root) / NAME / "annotations" / f"{split}.json"


def make_digits_det(root: str | Path, settings: DigitsDetSettings | None = None) -> None:
    """Makes the data set in ``root/digits_det``, unless it is complete there with these settings.

    Several processes may call it at once. A generated set that is incomplete, edited or of different settings is
    replaced. The same settings give the same bytes with the same versions of NumPy, Pillow and OpenCV.

    Args:
        root: folder of data sets, as in ``DETECTRON2_DATASETS``; created if missing.
        settings: of the data set; None: ``DigitsDetSettings()``.

    Raises:
        SetupError: the folder has files that this function did not make. Nothing is removed then.
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


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def write_manifest(folder: Path, recipe: dict[str, Any]) -> None:
    """Writes the manifest: every file in ``folder`` with its sha256, and the JSON-able ``recipe`` that made them."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = {"recipe": recipe, "files": _digests(folder, names)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def matches_manifest(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether ``folder`` has all files of ``recipe``, none of them missing, edited or incomplete."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["recipe"] != json.loads(json.dumps(recipe)):
            return False
        return manifest["files"] == _digests(folder, list(manifest["files"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def check_removable(folder: Path) -> None:
    """Raises ``SetupError`` unless the manifest of ``folder`` names every file in it."""
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
        foreign = f"it has {name!r}, which is not in " + ("its manifest" if ours else "a manifest of kd_det")
    raise SetupError(
        f"DETECTRON2_DATASETS: the digits scenes would be made in {str(folder)!r}, but kd_det did not make what is "
        f"there: {foreign}. Nothing was removed. Move it away, or set DETECTRON2_DATASETS to another folder."
    )


def remove_made(folder: Path) -> None:
    """Removes the files that the manifest names, the manifest last, so that the call can be repeated if it is killed.

    To be called after ``check_removable``; the folder may be missing.
    """
    ours = _made(folder)
    for path in sorted(folder.rglob("*"), reverse=True):  # a folder after what is in it
        if path.relative_to(folder).as_posix() in ours - {MANIFEST}:
            remove = path.rmdir if path.is_dir() else path.unlink
            remove()
    if folder.is_dir():
        (folder / MANIFEST).unlink(missing_ok=True)
        folder.rmdir()


def _made(folder: Path) -> set[str]:
    """The files and folders that a folder's manifest names, and the manifest; empty without such a manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        names = list(manifest["files"]) if "generator" in manifest["recipe"] else []
        inner = {parent.as_posix() for name in names for parent in Path(name).parents}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    return {*names, *inner, MANIFEST} if names else set()


def _load(
    root: str | Path, split: str, dataset_name: str, settings: DigitsDetSettings
) -> list[dict[str, Any]]:
    from detectron2.data.datasets import load_coco_json

    make_digits_det(root, settings)
    return load_coco_json(str(annotation_file(root, split)), str(image_root(root, split)), dataset_name)


def register_digits_det(
    root: str | Path, *, prefix: str = NAME, settings: DigitsDetSettings | None = None
) -> None:
    """Registers ``<prefix>_train`` and ``<prefix>_val`` with Detectron2; the files are made on first use.

    Args:
        root: folder of data sets; the files go to ``root/digits_det``.
        prefix: of the registered names.
        settings: of the data set; None: ``DigitsDetSettings()``.
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
