"""What is in a COCO instances file, and what is wrong with it."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from kd_det.data.checks import read_coco_json

# COCO's limits of small, medium and large, pixels². COCO evaluates by the area of the mask, this looks at the box's.
SIZES = {"small": 32**2, "medium": 96**2, "large": math.inf}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Finding:
    """Something to know about a data set.

    Attributes:
        text: what, how often, and an example.
        stops: whether training (or an evaluation that means anything) is impossible with it.
    """

    text: str
    stops: bool


@dataclass(frozen=True)
class CocoReport:
    """What a data set holds.

    Attributes:
        name: the data set's.
        images: how many the file lists.
        empty: how many of them have no object to train on.
        crowds: annotations of crowds, which are not trained on and not in the figures below.
        classes: name to number of objects, in the order of the category ids.
        unmasked, unposed: objects without "segmentation", and without "keypoints".
        sides: (N,) square roots of the boxes' areas, pixels.
        files: paths of the images.
        findings: faults and duplicates.
    """

    name: str
    images: int
    empty: int
    crowds: int
    classes: dict[str, int]
    unmasked: int
    unposed: int
    sides: np.ndarray
    files: frozenset[str]
    findings: list[Finding] = field(default_factory=list)

    @property
    def sizes(self) -> dict[str, int]:
        """Boxes that are small, medium and large."""
        counts = dict.fromkeys(SIZES, 0)
        for side in self.sides:
            counts[next(size for size, limit in SIZES.items() if side**2 < limit)] += 1
        return counts


def examine(name: str, json_file: str, image_root: str, *, sizes: bool = False) -> CocoReport:
    """Looks at a COCO instances file and its images.

    Args:
        name: the data set's name.
        json_file, image_root: where it is.
        sizes: open every image to compare its size with the file's.

    Raises:
        SetupError: the file is missing, damaged or no COCO instances file.
    """
    content = read_coco_json(json_file, name)
    images = {image["id"]: image for image in content["images"] if "id" in image}
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects = [item for item in content["annotations"] if not item.get("iscrowd", 0)]
    trained = [item for item in objects if item.get("image_id") in images and item.get("category_id") in names]
    boxes = [item for item in trained if _is_box(item) and min(item["bbox"][2:]) > 0]
    counts = Counter(item["category_id"] for item in trained)
    findings = [
        *_image_findings(content["images"], image_root, sizes),
        *_annotation_findings(content["annotations"], images, names),
        *_class_findings(names, counts),
    ]
    empty = len(images) - len({item["image_id"] for item in boxes})
    if empty == len(images):
        findings.append(Finding("no image has an object to train on", stops=True))
    return CocoReport(
        name=name,
        images=len(images),
        empty=empty,
        crowds=len(content["annotations"]) - len(objects),
        classes={names[number]: counts[number] for number in sorted(names)},
        unmasked=sum(not item.get("segmentation") for item in trained),
        unposed=sum(not item.get("keypoints") for item in trained),
        sides=np.sqrt([item["bbox"][2] * item["bbox"][3] for item in boxes]),
        files=frozenset(_path(image_root, image) for image in images.values()),
        findings=findings,
    )


def compare_sets(reports: Iterable[CocoReport]) -> list[Finding]:
    """What is wrong between the data sets of one training: images in common, other classes."""
    first, *others = reports
    findings = []
    for other in others:
        common = first.files & other.files
        if common:
            example = sorted(common)[0]
            text = f"{first.name} and {other.name} have {len(common)} images in common ({example}); training images in "
            findings.append(Finding(text + "an evaluation make its figures too good", stops=False))
        if list(first.classes) != list(other.classes):
            text = f"{first.name} and {other.name} have other classes, or the same in another order of ids"
            findings.append(Finding(text, stops=True))
    return findings


def format_report(report: CocoReport) -> str:
    """The report as text, the findings last."""
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
    incomplete = [image for image in images if not {"id", "file_name", "height", "width"} <= image.keys()]
    yield from _found("images lack an id, file_name, height or width", incomplete, stops=True)
    images = [image for image in images if "file_name" in image]
    yield from _found("image ids stand twice", _repeated(image.get("id") for image in images), stops=True)
    files = [_path(root, image) for image in images]
    yield from _found("image files are listed twice", _repeated(files), stops=False)
    there = {file for file in set(files) if os.path.isfile(file)}
    yield from _found("image files are missing", sorted(set(files) - there), stops=True)
    if sizes:
        pairs = [(image, file) for image, file in zip(images, files, strict=True) if file in there]
        other = [found for image, file in pairs if (found := _other_size(image, file))]
        yield from _found("images cannot be read or have another size than the JSON says", other, stops=True)


def _other_size(image: dict[str, Any], file: str) -> str | None:
    try:
        with Image.open(file) as picture:
            width, height = picture.size
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientation; Detectron2 applies it
    except (OSError, SyntaxError, ValueError) as error:
        return f"{file}: {error}"
    found = (height, width) if turned else (width, height)
    told = (image.get("width"), image.get("height"))
    return None if found == told else f"{file} is {found[0]}x{found[1]}, the JSON says {told[0]}x{told[1]}"


def _annotation_findings(
    annotations: list[dict[str, Any]], images: dict[Any, dict[str, Any]], names: dict[Any, str]
) -> Iterator[Finding]:
    for key, known in (("image_id", images), ("category_id", names)):
        unknown = [item.get(key) for item in annotations if item.get(key) not in known]
        yield from _found(f"annotations have a {key} that the file does not define", unknown, stops=True)
    yield from _found("annotation ids stand twice", _repeated(item.get("id") for item in annotations), stops=True)
    ignored = [_named(item) for item in annotations if item.get("ignore", 0)]
    yield from _found('annotations have "ignore", which Detectron2 refuses', ignored, stops=True)
    unboxed = [_named(item) for item in annotations if not _is_box(item)]
    yield from _found("annotations have no bbox of four numbers", unboxed, stops=True)

    boxed = [item for item in annotations if _is_box(item)]
    flat = [_named(item) for item in boxed if min(item["bbox"][2:]) <= 0]
    yield from _found("boxes have no area; they are left out of training", flat, stops=False)
    outside = [_named(item) for item in boxed if _outside(item["bbox"], images.get(item.get("image_id")))]
    yield from _found("boxes reach more than a pixel beyond their image; they are clipped", outside, stops=False)
    keys = ((item.get("image_id"), item.get("category_id"), tuple(item["bbox"])) for item in boxed)
    twice = [f"image {image}, box {list(box)}" for image, _, box in _repeated(keys)]
    yield from _found("objects have the same box and class as another of their image", twice, stops=False)


def _class_findings(names: dict[Any, str], counts: Counter[Any]) -> Iterator[Finding]:
    yield from _found("class names stand twice", _repeated(names.values()), stops=False)
    bare = [names[number] for number in sorted(names) if not counts[number]]
    yield from _found("classes have no object", bare, stops=False)


def _found(what: str, examples: list[Any], stops: bool) -> Iterator[Finding]:
    if examples:
        yield Finding(f"{len(examples)} {what} ({examples[0]})", stops)


def _named(annotation: dict[str, Any]) -> str:
    return f"annotation {annotation.get('id')}"


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _is_box(annotation: dict[str, Any]) -> bool:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in box)


def _outside(box: list[float], image: dict[str, Any] | None) -> bool:
    if image is None or not {"width", "height"} <= image.keys():
        return False
    x, y, width, height = box
    return min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1


def _path(root: str, image: dict[str, Any]) -> str:
    return os.path.realpath(os.path.join(root, image.get("file_name", "")))
