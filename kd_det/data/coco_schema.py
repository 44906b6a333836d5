"""The schema of a COCO instances file, for the checks before training and for the report on a data set.

It accepts what Detectron2's ``load_coco_json``, its mapper and COCO's evaluation can process, and nothing that makes
them fail or give wrong results silently.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from kd_det.common.errors import SetupError
from kd_det.data.coco_masks import is_dropped, mask_problem

SECTIONS = ("images", "annotations", "categories")
LARGEST = 1e5  # pixels: of a side and of a coordinate
LARGEST_IMAGE = 178_956_970  # pixels: Pillow refuses larger images
EXAMPLES = 3  # of each fault, named by index

Item = dict[str, Any]
Problems = Iterator[tuple[str, Any]]  # what is wrong, in words that follow "5 images", and the value


@dataclass
class Fault:
    """A fault of some items of a section; its text gives the indices of the first ones."""

    what: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = "; ..." if self.count > len(self.examples) else ""
        return f"{self.count} {self.what} ({'; '.join(self.examples)}{more})"


@dataclass(frozen=True)
class CheckedCoco:
    """The items of a file without a fault, and the faults of the others in the order of the file."""

    images: list[Item]
    annotations: list[Item]
    categories: list[Item]
    faults: list[Fault]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the categories in the order of their ids."""
        return tuple(category["name"] for category in sorted(self.categories, key=lambda category: category["id"]))

    @property
    def objects(self) -> list[Item]:
        """The annotations that Detectron2 trains on: no crowds, and none without a valid polygon, which it drops."""
        return [item for item in self.annotations if not item.get("iscrowd", 0) and not is_dropped(item)]

    @property
    def trained_on(self) -> list[Item]:
        """The objects whose box has an area. Detectron2's mapper drops the others."""
        return [item for item in self.objects if min(item["bbox"][2:]) > 0]

    @property
    def degenerate(self) -> list[Item]:
        """Annotations whose box has no area."""
        return [item for item in self.annotations if min(item["bbox"][2:]) <= 0]


def read_coco_json(json_file: str, key: str, *, images_alone: bool = False) -> Item:
    """The content of a COCO instances JSON.

    Args:
        json_file: its path.
        key: the configuration key (and set) that named it, for the messages.
        images_alone: accept also a file without "annotations", as COCO's of unlabelled images; only its "images" are
            sure to be a list.

    Returns:
        a dict with at least the lists "images", "annotations" and "categories". Every category has a unique id and a
        name. Images and annotations are not checked here: see ``check_items``.

    Raises:
        SetupError: the file is missing, is not JSON, or lacks one of these.
    """
    content = _parse(json_file, key)
    alone = isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" not in content
    if images_alone and alone:
        return content
    missing = [part for part in SECTIONS if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if missing:
        raise SetupError(f"{key}: {json_file!r} has no section {', '.join(missing)}; it is not a COCO instances file.")
    _check_categories(content["categories"], f"{key}: {json_file!r}")
    return content


def check_items(content: Item, json_file: str) -> CheckedCoco:
    """Checks every image and annotation of what ``read_coco_json`` returned."""
    faults: dict[str, Fault] = {}
    images = _sound("images", content["images"], _image_problems, faults)
    by_id = {image["id"]: image for image in content["images"] if isinstance(image, dict) and _is_id(image.get("id"))}
    if len({isinstance(number, str) for number in by_id}) > 1:
        _note(faults, "images have ids of which some are numbers and some are text", "images", 0, next(iter(by_id)))
    categories = {category["id"] for category in content["categories"]}

    def problems(annotation: Any) -> Problems:
        return _annotation_problems(annotation, by_id, categories)

    annotations = _sound("annotations", content["annotations"], problems, faults)
    _check_repeated("images", content["images"], faults)
    if "minival" not in json_file:  # COCO 2014's have some; Detectron2 accepts them by this name
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
            raise OSError("it is not a file")
        with open(json_file, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise SetupError(f"{key}: {json_file!r} cannot be read ({error}). Give the path of a readable file.") from error
    except UnicodeDecodeError as error:
        raise SetupError(f"{key}: {json_file!r} is not JSON in UTF-8 ({error}); save it in UTF-8.") from error
    except ValueError as error:  # JSONDecodeError, and a number with more digits than Python reads
        reason = str(error).split(";")[0]
        raise SetupError(f"{key}: {json_file!r} is not JSON ({reason}); it is damaged, download it again.") from error
    except RecursionError as error:
        raise SetupError(f"{key}: {json_file!r} is nested too deeply; it is not a COCO instances file.") from error
    except MemoryError as error:
        raise SetupError(f"{key}: {json_file!r} does not fit into memory; split the data set.") from error


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
        raise SetupError(f"{where} has {count} categories with the id {number}; give each a unique id.")
    if len({isinstance(category["id"], str) for category in categories}) > 1:
        raise SetupError(f"{where} has categories with numbers and categories with text as ids; use one kind.")


def _sound(section: str, items: list[Any], problems: Callable[[Any], Problems], faults: dict[str, Fault]) -> list[Item]:
    """The items without a problem; the problems of the others are added to ``faults``."""
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
        yield "are not JSON objects", image
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
        yield "are not JSON objects", annotation
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
        yield "have an area that is not a number of pixels (a missing area is computed)", area
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
        yield "have keypoints that are not a list of numbers x, y, visibility, x, y, ...", keypoints
    if visible is not None and not (_is_whole(visible) and visible >= 0):
        yield "have a num_keypoints that is not a number", visible


def are_numbers(values: list[Any], largest: float = LARGEST) -> bool:
    """Whether all are numbers, finite and from ``-largest`` to ``largest``. It must be fast: masks have many."""
    if not values:
        return True
    if not set(map(type, values)) <= {int, float} or min(values) < -largest or max(values) > largest:
        return False
    return math.isfinite(sum(values))  # min and max may miss a nan


def _has_size(image: Item) -> bool:
    return all(_is_whole(side) and 1 <= side <= LARGEST for side in map(image.get, ("height", "width")))


def _is_whole(value: Any) -> TypeGuard[float]:
    """Whether it is a whole number. 3.0 counts, because some tools write so."""
    return type(value) is int or (type(value) is float and value.is_integer())


def _is_id(value: Any) -> bool:
    return _is_whole(value) or (_is_text(value) and bool(value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, (int, float)) and value in (0, 1)


def _is_text(value: Any) -> bool:
    """Whether it is text. Lone surrogates and zero bytes cannot be printed or be part of a path."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
