"""Folders of stored knowledge: what is read is what was written, and only a whole, unchanged folder opens."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax

from kd_det.common.errors import SetupError
from kd_det.data.knowledge import DETECTION, FLOOR, GROUND_TRUTH, PROPOSAL, StoredImage, open_knowledge
from kd_det.data.knowledge_format import INDEX, Recipe, decoded_logits, encoded_logits, shard_files
from kd_det.data.knowledge_writer import KnowledgeWriter
from kd_det.losses import dkd_loss

CLASSES = ("cat", "dog", "owl")
RECIPE = Recipe(CLASSES, dtype="float32", made_of={"teachers": [{"weights": "t.pth", "sha256": "0"}], "boxes": 4})
COMMAND = "kd-det store-teacher --config-file a.yaml --output here"


def record(number: int, **changed: object) -> dict:
    return {"image_id": number, "file_name": f"images/{number}.png", "height": 30, "width": 40, **changed}


def content(number: int) -> StoredImage:
    """Of an image: as many boxes as its number, none for image 0."""
    rng = torch.Generator().manual_seed(number)
    kinds = torch.tensor([GROUND_TRUTH, DETECTION, PROPOSAL], dtype=torch.uint8).repeat(number)[:number]
    return StoredImage(
        torch.rand(number, 4, generator=rng), log_softmax(3 * torch.randn(number, 4, generator=rng), dim=1), kinds
    )


def writer(folder: Path, sets: dict, recipe: Recipe = RECIPE) -> KnowledgeWriter:
    return KnowledgeWriter(str(folder), recipe, sets, command=COMMAND, shard_images=2)


def store(folder: Path, sets: dict, recipe: Recipe = RECIPE, shards: int | None = None) -> Path:
    """Writes the missing shards, or only the first ``shards`` of them, as a killed command leaves them."""
    to_do = writer(folder, sets, recipe)
    for part in to_do.missing()[:shards]:
        to_do.write(part, [content(sets[part.dataset][place]["image_id"]) for place in part.positions])
    if shards is None:
        to_do.finish()
    return folder


SETS = {"train": [record(number) for number in range(5)], "more": [record(7), record(8)]}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_read_is_what_was_written(tmp_path):
    opened = open_knowledge(str(store(tmp_path, SETS)), "KD.TEACHER.STORED")
    assert opened.classes == CLASSES and opened.shared is None and opened.top_k == 0 and len(opened) == 7
    assert opened.about["command"] == COMMAND and opened.about["boxes"] == 4
    for dataset, records in SETS.items():
        for each in records:
            found, expected = opened.image(opened.place(dataset, each)), content(each["image_id"])
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            assert found.boxes.dtype == found.logits.dtype == torch.float32 and found.kinds.dtype == torch.uint8


def test_half_precision_is_exact_to_a_thousandth(tmp_path):
    opened = open_knowledge(str(store(tmp_path, SETS, replace(RECIPE, dtype="float16"))), "STORED")
    found, expected = opened.image(opened.place("more", record(8))), content(8)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-6)
    assert torch.equal(found.boxes, expected.boxes)


def test_the_rest_is_one_number_spread_evenly():
    # Of probabilities 0.6, 0.1, 0.02, 0.03 and a background of 0.25, two are kept: 0.15 remain for three classes.
    stored = encoded_logits(
        torch.tensor([[0.6, 0.1, 0.02, 0.03, 0.25]]).log(), Recipe(("a", "b", "c", "d"), top_k=2, dtype="float32")
    )
    assert stored["logits_classes"].tolist() == [[0, 4]]
    torch.testing.assert_close(stored["logits_rest"].exp(), torch.tensor([0.15]))
    found = decoded_logits(stored, Recipe(("a", "b", "c", "d"), top_k=2))
    torch.testing.assert_close(found.softmax(1), torch.tensor([[0.6, 0.05, 0.05, 0.05, 0.25]]))


def test_dkd_parts_of_the_top_are_those_of_all_logits():
    """With the target among the kept logits, its mass and that of the others do not change: TCKD is the same."""
    rng = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(16, 21, generator=rng), torch.randn(16, 21, generator=rng)
    recipe = Recipe(tuple(map(str, range(20))), top_k=5)
    kept = decoded_logits(encoded_logits(log_softmax(teacher, dim=1), recipe), recipe)
    target = teacher.topk(3, dim=1).indices[:, 2]  # not the largest
    whole, top = (dkd_loss(student, logits, target, alpha=1.0, beta=0.0, temperature=1.0) for logits in (teacher, kept))
    torch.testing.assert_close(top, whole, rtol=2e-3, atol=0)
    everything = dkd_loss(student, kept, target, alpha=1.0, beta=1.0, temperature=1.0)
    assert everything.isfinite() and everything > top


@pytest.mark.parametrize("top_k", [0, 1, 2, 3, 9])
def test_classes_that_the_teacher_lacks_get_no_mass(top_k):
    recipe = Recipe(("a", "b", "c", "d"), shared=(1, 3), top_k=top_k, dtype="float32")
    given = torch.tensor([[-math.inf, 0.5, -math.inf, 0.3, 0.2], [-math.inf, 1.0, 0.0, 0.0, 0.0]])
    logits = torch.where(given > 0, given, 0.0).log()
    found = decoded_logits(encoded_logits(logits, recipe), recipe)
    assert found.isfinite().all() and (found[:, [0, 2]] == FLOOR).all()
    expected = [[0, 0.5, 0, 0.25, 0.25]] if top_k == 1 else [[0, 0.5, 0, 0.3, 0.2]]
    torch.testing.assert_close(found.softmax(1), torch.tensor([*expected, [0, 1.0, 0, 0, 0]]))


def read_in_worker(opened, queue) -> None:
    queue.put(float(opened.image(opened.place("more", record(8))).logits.sum()))


def test_data_workers_read_it(tmp_path):
    opened = open_knowledge(str(store(tmp_path, SETS)), "STORED")
    expected = float(opened.image(opened.place("more", record(8))).logits.sum())  # the shard is open here
    assert float(pickle.loads(pickle.dumps(opened)).image(6).logits.sum()) == expected
    context = get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=read_in_worker, args=(opened, queue))
    worker.start()
    worker.join(120)
    assert worker.exitcode == 0 and queue.get() == expected


def test_an_interrupted_folder_does_not_open_and_continues_to_the_same_bytes(tmp_path):
    whole = files(store(tmp_path / "whole", SETS))
    folder = store(tmp_path / "killed", SETS, shards=2)
    with pytest.raises(SetupError, match=r"STORED .*has shards: the command that writes it was stopped. Run kd-det"):
        open_knowledge(str(folder), "STORED")
    before = {path: path.stat().st_mtime_ns for path in shard_files(folder)}
    assert files(store(folder, SETS)) == whole
    assert len(before) == 2 and all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_two_writers_make_the_same_folder(tmp_path):
    whole = files(store(tmp_path / "whole", SETS))
    folder = tmp_path / "two"
    writers = [writer(folder, SETS) for _ in range(2)]
    parts = writers[0].missing()
    for number, part in reversed(list(enumerate(parts))):
        writers[number % 2].write(part, [content(SETS[part.dataset][i]["image_id"]) for i in part.positions])
    with pytest.raises(SetupError, match=r"not complete"):
        open_knowledge(str(folder), "STORED")
    writers[0].finish()
    assert files(folder) == whole and len(parts) == 4


def test_missing_images_are_refused_and_added_by_running_again(tmp_path):
    few = {"train": SETS["train"][:3]}
    opened = open_knowledge(str(store(tmp_path, few)), "STORED")
    with pytest.raises(
        SetupError, match=r"no knowledge of 2 of the 5 images of 'train' \(3 3.png, 4 4.png\).* --output"
    ):
        opened.places("train", SETS["train"])
    with pytest.raises(SetupError, match=r"1 of the 1 images of 'more'"):
        opened.place("more", record(7))
    store(tmp_path, SETS)
    again = open_knowledge(str(tmp_path), "STORED")
    assert [len(again.image(place).boxes) for place in again.places("train", SETS["train"])] == [0, 1, 2, 3, 4]
    store(tmp_path, {"more": SETS["more"]})  # what another command of the same recipe stored stays
    assert len(open_knowledge(str(tmp_path), "STORED")) == 7


@pytest.mark.parametrize("changed", [{"height": 31}, {"file_name": "images/other.png"}])
def test_other_images_are_refused(tmp_path, changed):
    opened = open_knowledge(str(store(tmp_path, SETS)), "STORED")
    images = [*SETS["train"][:4], record(4, **changed)]
    with pytest.raises(
        SetupError, match=r"made for other images: 1 of 'train' differ; the image 4 is .* and was '4.png'"
    ):
        opened.places("train", images)
    with pytest.raises(SetupError, match=r"--output .* other images of 'train': 1 have another file name or size"):
        writer(tmp_path, {"train": images})
    assert opened.place("train", record(4, file_name="elsewhere/4.png")) == opened.place("train", record(4))


def damage(folder: Path, how: str) -> None:
    path = shard_files(folder)[1]
    content, index = path.read_bytes(), json.loads((folder / INDEX).read_text())
    if how == "truncated":
        path.write_bytes(content[:-5])
    elif how == "changed":
        path.write_bytes(content[:-5] + bytes(5))
    elif how == "missing":
        path.unlink()
    elif how == "no index":
        (folder / INDEX).write_text("{")
    else:
        (folder / INDEX).write_text(json.dumps({**index, "format": 2}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", f"bytes instead of .* truncated. Run .* repairs it: {COMMAND}"),
        ("changed", f"its sha256 differs. Run .* repairs it: {COMMAND}"),
        ("missing", f"shard-00001.safetensors is missing. Run .* repairs it: {COMMAND}"),
        ("no index", "knowledge.json is damaged .* Remove this file and run kd-det store-teacher"),
        ("newer", "has format 2, and this kd_det reads up to 1. Update kd_det"),
    ],
)
def test_damaged_folders_are_refused_and_repaired(tmp_path, how, message):
    whole = files(store(tmp_path, SETS))
    damage(tmp_path, how)
    with pytest.raises(SetupError, match=rf"^KD.TEACHER.STORED '.*{message}"):
        open_knowledge(str(tmp_path), "KD.TEACHER.STORED")
    if how in ("no index", "newer"):
        with pytest.raises(SetupError, match=r"--output"):
            store(tmp_path, SETS)
        (tmp_path / INDEX).unlink()
    store(tmp_path, SETS)
    assert files(tmp_path) == whole


def test_another_recipe_is_refused_by_what_differs(tmp_path):
    store(tmp_path, SETS, shards=1)
    with pytest.raises(SetupError, match=r"another command made: top_k is 0 there, 2 now; made_of.boxes is 4 there, 5"):
        writer(tmp_path, SETS, replace(RECIPE, top_k=2, made_of={**RECIPE.made_of, "boxes": 5}))


@pytest.mark.parametrize(
    ("names", "count", "message"),
    [
        (["cat", "dog"], 2, "3 classes, and the student has 2"),
        (None, 4, "3 classes, and the student has 4"),
        (["cat", "owl", "dog"], 3, "class 1 is 'dog' there and 'owl' here"),
    ],
)
def test_other_classes_are_refused(tmp_path, names, count, message):
    opened = open_knowledge(str(store(tmp_path, SETS)), "STORED")
    opened.check_classes(CLASSES, 3)
    opened.check_classes(None, 3)
    with pytest.raises(SetupError, match=rf"other classes: .*{message}.*made by: {COMMAND}"):
        opened.check_classes(names, count)


def test_another_teacher_is_refused(tmp_path):
    weights = tmp_path / "other.pth"
    weights.write_bytes(b"weights")
    opened = open_knowledge(str(store(tmp_path / "folder", SETS)), "STORED")
    with pytest.raises(SetupError, match=r"another teacher \(t.pth\) than KD.TEACHER.WEIGHTS '.*other.pth'"):
        opened.check_teacher("KD.TEACHER.WEIGHTS", str(weights))


@pytest.mark.parametrize("wrong", [{"boxes": torch.full((2, 4), math.nan)}, {"logits": torch.zeros(2, 5)}])
def test_wrong_content_is_not_written(tmp_path, wrong):
    to_do = writer(tmp_path, {"train": [record(2)]})
    with pytest.raises(ValueError, match=r"not finite|shapes"):
        to_do.write(to_do.missing()[0], [content(2)._replace(**wrong)])
    assert not shard_files(tmp_path)
    with pytest.raises(RuntimeError, match=r"not written"):
        to_do.finish()
