"""Data sets of the studies on the digits scenes: kinds of scenes, and parts of a split as COCO JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd_det.common.files import read_json, write_json
from kd_det.data.digits_rendering import SceneSettings
from kd_det.data.digits_scenes import DigitsDetSettings, annotation_file, image_root, make_digits_det

# "hard": more digits that are smaller, fainter and overlap more.
SCENES = {
    "usual": SceneSettings(),
    "hard": SceneSettings(digits=(3, 7), digit_size=(14, 36), contrast=(50, 140), max_overlap=0.35),
}
TRAIN_IMAGES, VAL_IMAGES = 1500, 300


@dataclass(frozen=True)
class Part:
    """A data set that a configuration can name.

    Attributes:
        name: in ``DATASETS.TRAIN`` or others.
        json_file: its annotations.
        images: their folder.
    """

    name: str
    json_file: Path
    images: Path

    @property
    def entry(self) -> list[str]:
        """Its entry in ``DATASETS.COCO_JSON``."""
        return [self.name, str(self.json_file), str(self.images)]


def settings_of(kind: str, train_images: int = TRAIN_IMAGES) -> DigitsDetSettings:
    """The scenes of a study: the validation split has two sets of ``VAL_IMAGES`` scenes.

    Args:
        kind: of ``SCENES``.
        train_images: number of scenes for training.
    """
    return DigitsDetSettings(train_images=train_images, val_images=2 * VAL_IMAGES, scene=SCENES[kind])


def make_study_scenes(folder: Path, settings: DigitsDetSettings) -> tuple[Part, Part, Part]:
    """Draws the scenes below ``folder`` unless they are there, and divides those for validation.

    With usual scenes, the reported ones are those of ``digits_det_val``. The tuning scenes are others, with digits and
    backgrounds of the same held-out scans and photographs.

    Args:
        folder: created if it does not exist.
        settings: of ``settings_of``.

    Returns:
        "scenes_train", "scenes_val" (reported) and "scenes_tune" (for choices; not reported).
    """
    make_digits_det(folder, settings)
    train = Part("scenes_train", annotation_file(folder, "train"), image_root(folder, "train"))
    whole, images = annotation_file(folder, "val"), image_root(folder, "val")
    ids = sorted(image["id"] for image in read_json(whole)["images"])
    half = len(ids) // 2
    val = write_part("scenes_val", whole, images, ids[:half], folder)
    tune = write_part("scenes_tune", whole, images, ids[half:], folder)
    return train, val, tune


def label_few(folder: Path, json_file: Path, images: Path, fraction: float) -> tuple[Part, Part]:
    """Divides a data set into a part with labels and the rest without.

    The choice is random and the same in every call: it depends on the images' ids and on ``fraction``, of which a
    larger one takes the images of a smaller one and more.

    Args:
        folder: for the two JSON files; created if it does not exist.
        json_file: of the data set.
        images: its folder.
        fraction: share of the images that keep their labels, rounded to whole images, at least one.

    Returns:
        "scenes_few", with labels, and "scenes_rest", without.
    """
    ids = sorted(image["id"] for image in read_json(json_file)["images"])
    order = np.random.default_rng(0).permutation(len(ids))
    count = max(1, round(fraction * len(ids)))
    few, rest = ([ids[place] for place in part] for part in (order[:count], order[count:]))
    labelled = write_part("scenes_few", json_file, images, few, folder)
    return labelled, write_part("scenes_rest", json_file, images, rest, folder, labels=False)


def write_part(
    name: str, json_file: Path, images: Path, ids: Sequence[int], folder: Path, *, labels: bool = True
) -> Part:
    """Writes ``folder/name.json`` with some images of a COCO JSON, with their annotations or without any."""
    content: dict[str, Any] = read_json(json_file)
    chosen = set(ids)
    part = {
        **content,
        "images": [image for image in content["images"] if image["id"] in chosen],
        "annotations": [item for item in content["annotations"] if labels and item["image_id"] in chosen],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    if read_json(path) != part:
        write_json(path, part)
    return Part(name, path, images)


def overrides_of(
    parts: Sequence[Part], train: Sequence[Part] = (), test: Sequence[Part] = (), **others: Sequence[Part]
) -> tuple[str, ...]:
    """KEY, VALUE, ... that register data sets and use them.

    Args:
        parts: to register.
        train: ``DATASETS.TRAIN``; empty: the key is left as it is.
        test: ``DATASETS.TEST``, likewise.
        others: of other keys of ``DATASETS``, likewise.
    """
    uses = {"TRAIN": train, "TEST": test, **others}
    pairs = {"COCO_JSON": [part.entry for part in parts]}
    values: dict[str, object] = pairs | {key: tuple(each.name for each in used) for key, used in uses.items() if used}
    return tuple(text for key, value in values.items() for text in (f"DATASETS.{key}", str(value)))


@dataclass(frozen=True)
class SharedScenes:
    """The data sets of a teacher, and of a student that has labels of a share of the teacher's scenes.

    Attributes:
        taught: the scenes that the teacher learns.
        learnt: those that the student learns.
        others: the teacher's scenes that the student has no labels of; None: it has all.
        reported: the scenes of the tables.
        tuning: those of the choices.
    """

    taught: Part
    learnt: Part
    others: Part | None
    reported: Part
    tuning: Part

    @classmethod
    def draw(cls, folder: Path, settings: DigitsDetSettings, share: float) -> SharedScenes:
        """Draws the scenes below ``folder`` unless they are there.

        Args:
            folder: created if it does not exist.
            settings: of ``settings_of``.
            share: of the training scenes, the share that the student has labels of, above 0, up to 1.
        """
        train, val, tune = make_study_scenes(folder, settings)
        if share == 1:
            return cls(train, train, None, val, tune)
        few, rest = label_few(folder, train.json_file, train.images, share)
        return cls(train, few, rest, val, tune)

    def overrides(self, train: Part, test: Sequence[Part], unlabeled: Part | None = None) -> tuple[str, ...]:
        """KEY, VALUE, ... of a run on some of the data sets. All are registered."""
        known = (self.taught, self.learnt, self.others, self.reported, self.tuning)
        parts = list(dict.fromkeys(part for part in known if part))
        return overrides_of(parts, train=[train], test=test, UNLABELED=[unlabeled] if unlabeled else [])
