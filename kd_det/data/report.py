"""The report on a COCO instances file: its images, classes and box sizes, and what is wrong with it."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kd_det.common.images import UnreadableImageError
from kd_det.data.coco_schema import CheckedCoco, check_items, read_coco_json
from kd_det.data.mapper import read_image

# COCO's limits of small, medium and large, pixels². COCO uses the area of the mask, the report that of the box.
SIZES = {"small": 32**2, "medium": 96**2, "large": math.inf}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NO_OBJECT = "no image has an object to train on"


@dataclass(frozen=True)
class Finding:
    """A fault of a data set, or a note on it.

    Attributes:
        text: what it is, how often it occurs, and an example.
        stops: whether it makes training, or a meaningful evaluation, impossible.
    """

    text: str
    stops: bool


@dataclass(frozen=True)
class CocoReport:
    """The content of a data set, counted over the images and annotations without faults.

    Attributes:
        name: of the data set.
        images: number of images.
        empty: number of images without an object to train on.
        crowds: number of annotations of crowds. These are not trained on and not counted below.
        classes: name to number of objects, in the order of the category ids; empty for unlabelled images.
        sides: (N,) square roots of the boxes' areas, pixels.
        files: paths of the images.
        coco: the images and annotations without faults.
        findings: faults and notes.
    """

    name: str
    images: int
    empty: int
    crowds: int
    classes: dict[str, int]
    sides: np.ndarray
    files: frozenset[str]
    coco: CheckedCoco = field(repr=False)
    findings: list[Finding] = field(default_factory=list)

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of small, medium and large boxes."""
        counts = dict.fromkeys(SIZES, 0)
        for side in self.sides:
            counts[next(size for size, limit in SIZES.items() if side**2 < limit)] += 1
        return counts


def examine(name: str, json_file: str, image_root: str, *, sizes: bool = False) -> CocoReport:
    """Reports on a COCO instances file and its images.

    Args:
        name: of the data set.
        json_file, image_root: its file and the folder of its images.
        sizes: decode every image as training does, and compare its size with the file's.

    Raises:
        SetupError: the file is missing, damaged or not a COCO instances file.
    """
    coco = check_items(read_coco_json(json_file, name), json_file)
    images = {image["id"]: image for image in coco.images}
    names = {category["id"]: category["name"] for category in coco.categories}
    objects = coco.objects
    boxes = coco.trained_on
    counts = Counter(item["category_id"] for item in objects)
    findings = [
        *(Finding(str(fault), stops=True) for fault in coco.faults),
        *_image_findings(coco.images, image_root, sizes),
        *_annotation_findings(coco, images),
        *_class_findings(names, counts),
    ]
    empty = len(images) - len({item["image_id"] for item in boxes if item["image_id"] in images})
    if empty == len(images):
        findings.append(Finding(NO_OBJECT, stops=True))
    return CocoReport(
        name=name,
        images=len(images),
        empty=empty,
        crowds=sum(bool(item.get("iscrowd", 0)) for item in coco.annotations),
        classes={names[number]: counts[number] for number in sorted(names)},
        sides=np.sqrt([item["bbox"][2] * item["bbox"][3] for item in boxes]),
        files=frozenset(_path(image_root, image) for image in images.values()),
        coco=coco,
        findings=findings,
    )


def examine_unlabeled(name: str, records: list[dict[str, Any]], *, sizes: bool = False) -> CocoReport:
    """Reports on images that are trained on without annotations.

    Args:
        name: of the data set.
        records: Detectron2's.
        sizes: see ``examine``.
    """
    findings = list(_image_findings(records, "", sizes))
    labeled = [record["file_name"] for record in records if record.get("annotations")]
    findings += _found("images have annotations, which DATASETS.UNLABELED ignores", labeled, stops=False)
    return CocoReport(
        name=name,
        images=len(records),
        empty=len(records),
        crowds=0,
        classes={},
        sides=np.zeros(0),
        files=frozenset(_path("", record) for record in records),
        coco=CheckedCoco([], [], [], []),
        findings=findings,
    )


def compare_sets(reports: Iterable[CocoReport]) -> list[Finding]:
    """What is wrong between the data sets of one training: images in common, different classes."""
    first, *others = reports
    findings = []
    for other in others:
        common = first.files & other.files
        if common:
            example = sorted(common)[0]
            text = f"{first.name} and {other.name} have {len(common)} images in common ({example}); "
            what = "an evaluation on training images gives too good results"
            if not (first.classes and other.classes):
                what = "one of them is unlabelled"
            findings.append(Finding(text + what, stops=False))
        if first.classes and other.classes and list(first.classes) != list(other.classes):
            text = f"{first.name} and {other.name} have different classes, or their ids have a different order"
            findings.append(Finding(text, stops=True))
    return findings


def format_report(report: CocoReport) -> str:
    """The report as text, the findings last."""
    if not report.classes:
        return "\n".join([f"{report.name}: {report.images} unlabelled images", *format_findings(report.findings)])
    total = sum(report.classes.values())
    lines = [
        f"{report.name}: {report.images} images, {report.empty} of them without objects; {total} objects in "
        f"{len(report.classes)} classes, {report.crowds} crowds"
    ]
    width = max(len(name) for name in report.classes)
    lines += [f"  {name:<{width}}  {count:>7}  {count / max(total, 1):6.1%}" for name, count in report.classes.items()]
    if len(report.sides):
        counts = ", ".join(f"{count} {size}" for size, count in report.sizes.items())
        sides = np.quantile(report.sides, QUANTILES)
        quantiles = ", ".join(f"{share:.0%} {side:.0f}" for share, side in zip(QUANTILES, sides, strict=True))
        lines.append(f"  box areas (COCO's limits 32² and 96² pixels): {counts}")
        lines.append(f"  square root of the box area, pixels: {quantiles}")
    return "\n".join([*lines, *format_findings(report.findings)])


def format_findings(findings: Iterable[Finding]) -> list[str]:
    """A line for each finding; those that stop training as "fault", the others as "note"."""
    return [f"  {'fault' if finding.stops else 'note'}: {finding.text}" for finding in findings]


def _image_findings(images: list[dict[str, Any]], root: str, sizes: bool) -> Iterator[Finding]:
    files = [_path(root, image) for image in images]
    yield from _found("image files are listed twice", _repeated(files), stops=False)
    there = {file for file in set(files) if os.path.isfile(file)}
    yield from _found("image files are missing", sorted(set(files) - there), stops=True)
    if sizes:
        pairs = [(image, file) for image, file in zip(images, files, strict=True) if file in there]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without Python's lock
            other = [found for found in pool.map(_other_size, pairs) if found]
        yield from _found("images cannot be read, or their size is not the one in the JSON", other, stops=True)


def _other_size(pair: tuple[dict[str, Any], str]) -> str | None:
    image, file = pair
    try:
        height, width = read_image(file, "RGB").shape[:2]
    except UnreadableImageError as error:
        return str(error).rstrip(".")
    listed = (image["width"], image["height"])
    return None if (width, height) == listed else f"{file} is {width}x{height}, the JSON says {listed[0]}x{listed[1]}"


def flat_boxes(coco: CheckedCoco) -> Iterator[Finding]:
    """A note if annotations have boxes without area."""
    flat = [_named(item) for item in coco.degenerate]
    yield from _found("boxes have no area; they are left out of training", flat, stops=False)


def _annotation_findings(coco: CheckedCoco, images: dict[Any, dict[str, Any]]) -> Iterator[Finding]:
    yield from flat_boxes(coco)
    annotations = coco.annotations
    outside = [_named(item) for item in annotations if _outside(item["bbox"], images.get(item["image_id"]))]
    yield from _found("boxes extend more than a pixel beyond their image; they are clipped", outside, stops=False)
    keys = ((item["image_id"], item["category_id"], tuple(item["bbox"])) for item in annotations)
    twice = [f"image {image}, box {list(box)}" for image, _, box in _repeated(keys)]
    yield from _found("objects have the same box and class as another one in their image", twice, stops=False)


def _class_findings(names: dict[Any, str], counts: Counter[Any]) -> Iterator[Finding]:
    yield from _found("class names are listed twice", _repeated(names.values()), stops=False)
    unused = [names[number] for number in sorted(names) if not counts[number]]
    yield from _found("classes have no object", unused, stops=False)


def _found(what: str, examples: list[Any], stops: bool) -> Iterator[Finding]:
    if examples:
        yield Finding(f"{len(examples)} {what} ({examples[0]})", stops)


def _named(annotation: dict[str, Any]) -> str:
    return f"annotation {annotation['id']}"


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _outside(box: list[float], image: dict[str, Any] | None) -> bool:
    if image is None:
        return False
    x, y, width, height = box
    return min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1


def _path(root: str, image: dict[str, Any]) -> str:
    return os.path.realpath(os.path.join(root, image["file_name"]))
