"""What a COCO instances file must look like: one schema, for training's start-up and for the report on a data set.

It takes what Detectron2's ``load_coco_json``, its mapper and COCO's evaluation can work with, and nothing that makes
them fail or go wrong silently.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from kd_det.common.errors import SetupError
from kd_det.data.coco_masks import is_dropped, mask_problem

SECTIONS = ("images", "annotations", "categories")
LARGEST = 1e5  # pixels: of a side and of a coordinate
LARGEST_IMAGE = 178_956_970  # pixels: Pillow reads none that is larger
EXAMPLES = 3  # of each fault, named by index

Item = dict[str, Any]
Problems = Iterator[tuple[str, Any]]  # what is wrong, in words that follow "5 images", and the value


@dataclass
class Fault:
    """Something wrong with some items of a section; its text names the first by index."""

    what: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = "; ..." if self.count > len(self.examples) else ""
        return f"{self.count} {self.what} ({'; '.join(self.examples)}{more})"


@dataclass(frozen=True)
class CheckedCoco:
    """The items of a file that have no fault, and the faults of the others in the order of the file."""

    images: list[Item]
    annotations: list[Item]
    categories: list[Item]
    faults: list[Fault]

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names in the order of their ids."""
        return tuple(category["name"] for category in sorted(self.categories, key=lambda category: category["id"]))

    @property
    def objects(self) -> list[Item]:
        """What Detectron2 trains on: no crowds, and nothing that it drops for want of a valid polygon."""
        return [item for item in self.annotations if not item.get("iscrowd", 0) and not is_dropped(item)]

    @property
    def degenerate(self) -> list[Item]:
        """Annotations whose box has no area."""
        return [item for item in self.annotations if min(item["bbox"][2:]) <= 0]


def read_coco_json(json_file: str, key: str) -> Item:
    """The content of a COCO instances JSON.

    Args:
        json_file: its path.
        key: the configuration key (and set) that named it, for the messages.

    Returns:
        a dict with the lists "images", "annotations" and "categories", at least; every category with an id of its own
        and a name. Images and annotations are as they are: see ``check_items``.

    Raises:
        SetupError: it is missing, no JSON, or lacks one of these.
    """
    content = _parse(json_file, key)
    missing = [part for part in SECTIONS if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if missing:
        raise SetupError(f"{key}: {json_file!r} has no section {', '.join(missing)}; it is no COCO instances file.")
    _check_categories(content["categories"], f"{key}: {json_file!r}")
    return content


def check_items(content: Item, json_file: str) -> CheckedCoco:
    """Looks at every image and annotation of what ``read_coco_json`` gave."""
    faults: dict[str, Fault] = {}
    images = _sound("images", content["images"], _image_problems, faults)
    by_id = {image["id"]: image for image in content["images"] if isinstance(image, dict) and _is_id(image.get("id"))}
    if len({isinstance(number, str) for number in by_id}) > 1:
        _note(faults, "images have ids of which some are numbers and some text", "images", 0, next(iter(by_id)))
    categories = {category["id"] for category in content["categories"]}

    def problems(annotation: Any) -> Problems:
        return _annotation_problems(annotation, by_id, categories)

    annotations = _sound("annotations", content["annotations"], problems, faults)
    _check_repeated("images", content["images"], faults)
    if "minival" not in json_file:  # COCO 2014's have some; Detectron2 lets them pass by this name
        _check_repeated("annotations", content["annotations"], faults)
    return CheckedCoco(images, annotations, content["categories"], list(faults.values()))


def refuse(key: str, json_file: str, faults: Collection[Fault]) -> None:
    """Raises a ``SetupError`` with the first faults, if there are any."""
    if faults:
        listed = "; ".join(map(str, list(faults)[:5]))
        more = f"; and {len(faults) - 5} other kinds of fault" if len(faults) > 5 else ""
        raise SetupError(
            f"{key}: {json_file}: {listed}{more}. Correct these items or remove them; kd-det check-data reports "
            "on the whole file."
        )


def _parse(json_file: str, key: str) -> Any:
    if not os.path.exists(json_file):
        raise SetupError(
            f"{key}: there is no annotation file {json_file!r}. Give the right path; for a built-in set put it there, "
            f"or set DETECTRON2_DATASETS (now {os.getenv('DETECTRON2_DATASETS', 'datasets')!r}) to the folder above."
        )
    try:
        if not os.path.isfile(json_file):
            raise OSError("it is no file")
        with open(json_file, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise SetupError(f"{key}: {json_file!r} cannot be read ({error}). Give the path of a readable file.") from error
    except UnicodeDecodeError as error:
        raise SetupError(f"{key}: {json_file!r} is no JSON in UTF-8 ({error}); save it in UTF-8.") from error
    except ValueError as error:  # JSONDecodeError, and a number of more digits than Python reads
        reason = str(error).split(";")[0]
        raise SetupError(f"{key}: {json_file!r} is no JSON ({reason}); it is damaged, fetch it again.") from error
    except RecursionError as error:
        raise SetupError(f"{key}: {json_file!r} is nested too deeply; it is no COCO instances file.") from error
    except MemoryError as error:
        raise SetupError(f"{key}: {json_file!r} does not fit into the memory; split the data set.") from error


def _check_categories(categories: list[Any], where: str) -> None:
    if not categories:
        raise SetupError(f"{where} has no categories; list every class with its id and name.")
    for index, category in enumerate(categories):
        if not isinstance(category, dict) or not _is_id(category.get("id")) or not _is_text(category.get("name")):
            raise SetupError(f"{where}: categories[{index}] is {reprlib.repr(category)}; each needs an id and a name.")
        names = category.get("keypoints") or []
        if not isinstance(names, list) or not all(map(_is_text, names)):
            raise SetupError(
                f"{where}: categories[{index}] has the keypoints {reprlib.repr(names)}; write a list of their names."
            )
    number, count = Counter(category["id"] for category in categories).most_common(1)[0]
    if count > 1:
        raise SetupError(f"{where} has {count} categories with the id {number}; give each its own.")
    if len({isinstance(category["id"], str) for category in categories}) > 1:
        raise SetupError(f"{where} has categories whose ids are numbers and some whose are text; use one kind.")


def _sound(section: str, items: list[Any], problems: Callable[[Any], Problems], faults: dict[str, Fault]) -> list[Item]:
    """The items without a problem; the problems of the others are noted."""
    sound = []
    for index, item in enumerate(items):
        found = list(problems(item))
        for what, value in found:
            _note(faults, f"{section} {what}", section, index, value)
        if not found:
            sound.append(item)
    return sound


def _note(faults: dict[str, Fault], what: str, section: str, index: int, value: Any) -> None:
    fault = faults.setdefault(what, Fault(what))
    fault.count += 1
    if fault.count <= EXAMPLES:
        fault.examples.append(f"{section}[{index}]: {reprlib.repr(value)}")


def _check_repeated(section: str, items: list[Any], faults: dict[str, Fault]) -> None:
    seen = set()
    for index, item in enumerate(items):
        number = item.get("id") if isinstance(item, dict) else None
        if not _is_id(number):
            continue
        if number in seen:
            _note(faults, f"{section} have an id that is listed twice", section, index, number)
        seen.add(number)


def _image_problems(image: Any) -> Problems:
    if not isinstance(image, dict):
        yield "are no JSON objects", image
        return
    if not _is_id(image.get("id")):
        yield "have no id (a whole number, or text)", image.get("id")
    if not _is_text(image.get("file_name")) or not image["file_name"]:
        yield "have no file_name", image.get("file_name")
    if not _has_size(image):
        yield f"have no height and width of 1 to {LARGEST:.0f} pixels", [image.get("height"), image.get("width")]
    elif image["height"] * image["width"] > LARGEST_IMAGE:
        yield f"have more than {LARGEST_IMAGE} pixels; cut them into tiles", [image["height"], image["width"]]


def _annotation_problems(annotation: Any, images: dict[Any, Item], categories: Collection[Any]) -> Problems:
    if not isinstance(annotation, dict):
        yield "are no JSON objects", annotation
        return
    get = annotation.get
    if not _is_id(get("id")):
        yield "have no id (a whole number, or text)", get("id")
    for key, known in (("image_id", images), ("category_id", categories)):
        if not _is_id(get(key)):
            yield f"have no {key}", get(key)
        elif get(key) not in known:
            yield f"have a {key} that the file does not define", get(key)
    box = get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not are_numbers(box):
        yield f"have no bbox of four numbers within ±{LARGEST:.0f}", box
    if not _is_flag(get("iscrowd", 0)):
        yield 'have an "iscrowd" that is neither 0 nor 1', get("iscrowd")
    if not _is_flag(get("ignore", 0)) or get("ignore"):
        yield 'have "ignore", which Detectron2 refuses', get("ignore")
    area = get("area")
    if area is not None and not (are_numbers([area], LARGEST**2) and area >= 0):
        yield "have an area that is no number of pixels (without an area it is computed)", area
    yield from _shape_problems(annotation, images)


def _shape_problems(annotation: Item, images: dict[Any, Item]) -> Problems:
    mask, keypoints, visible = (annotation.get(key) for key in ("segmentation", "keypoints", "num_keypoints"))
    if mask:
        number = annotation.get("image_id")
        image = images.get(number) if _is_id(number) else None
        size = (image["height"], image["width"]) if image and _has_size(image) else None
        problem = mask_problem(mask, size, are_numbers)
        if problem:
            yield problem, mask
    if keypoints and not (isinstance(keypoints, list) and len(keypoints) % 3 == 0 and are_numbers(keypoints)):
        yield "have keypoints that are no list x, y, visibility, x, y, ... of numbers", keypoints
    if visible is not None and not (_is_whole(visible) and visible >= 0):
        yield "have a num_keypoints that is no number", visible


def are_numbers(values: list[Any], largest: float = LARGEST) -> bool:
    """Whether all are numbers, finite and from ``-largest`` to ``largest``. Quick: masks have many."""
    if not values:
        return True
    if not set(map(type, values)) <= {int, float} or min(values) < -largest or max(values) > largest:
        return False
    return math.isfinite(sum(values))  # min and max may pass over a nan


def _has_size(image: Item) -> bool:
    sides = (image.get("height"), image.get("width"))
    return all(_is_whole(side) and 1 <= side <= LARGEST for side in sides)


def _is_whole(value: Any) -> bool:
    """Whole numbers written as 3.0, as some tools do, count."""
    return type(value) is int or (type(value) is float and value.is_integer())


def _is_id(value: Any) -> bool:
    return _is_whole(value) or (_is_text(value) and bool(value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, (int, float)) and value in (0, 1)


def _is_text(value: Any) -> bool:
    """Lone surrogates cannot be printed or be part of a path, nor can a zero byte."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
