"""The picture of proposals with both networks' top classes: what it shows, and that drawing has no side effects."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes
from detectron2.utils import comm
from matplotlib.figure import Figure

from kd_det.modeling import drawing
from kd_det.modeling.drawing import AGREE, DIFFER, draw_teacher_and_student
from kd_det.modeling.regions import on_shared_classes
from kd_det.teacher.classes import class_map
from tests.tiny import batch, build, loss_gradients, shared_regions, student_config, teacher_files

NAME = "teacher and student"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def panels(monkeypatch):
    """What the picture was drawn from: the panels given to ``side_by_side``."""
    given = []
    draw = drawing.side_by_side
    monkeypatch.setattr(drawing, "side_by_side", lambda image, panels: given.extend(panels) or draw(image, panels))
    return given


def regions(corners, student, teacher, labels=None):
    """One image's proposals; logits ``10 * row`` over 3 classes and the background."""
    logits = [10.0 * torch.eye(4)[torch.tensor(classes, dtype=torch.int64)] for classes in (student, teacher)]
    labels = torch.tensor(labels if labels is not None else teacher, dtype=torch.int64)
    boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
    return shared_regions(*logits, labels, [boxes])


IMAGE = np.full((40, 60, 3), 90, dtype=np.uint8)
APART = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]


def test_each_network_names_its_top_class(panels):
    names = ["cat", "dog", "person"]
    picture = draw_teacher_and_student(IMAGE, regions(APART, [0, 2, 3], [0, 1, 2]), class_names=names)
    assert picture.dtype == np.uint8 and picture.shape[0] == 3 and picture.shape[2] > 2 * 60
    theirs, ours = panels
    assert (theirs.title, ours.title) == ("teacher", "student")
    by_place = {
        tuple(box): found
        for box, *found in zip(theirs.boxes.tolist(), theirs.labels, ours.labels, ours.colours, strict=True)
    }
    assert by_place[0, 0, 10, 10] == ["cat 100%", "cat 100%", AGREE]
    assert by_place[20, 0, 30, 10] == ["dog 100%", "person 100%", DIFFER]
    assert by_place[40, 0, 50, 10] == ["person 100%", "background 100%", DIFFER]
    assert np.array_equal(theirs.boxes, ours.boxes) and theirs.colours == ours.colours


def test_unknown_names_are_shown_as_numbers(panels):
    draw_teacher_and_student(IMAGE, regions(APART, [0, 0, 0], [2, 2, 2]))
    assert panels[0].labels == ["2 100%"] * 3


def test_the_surest_proposals_are_shown_once_each(panels):
    corners = [[x, y, x + 4, y + 4] for y in range(0, 40, 5) for x in range(0, 60, 5)]
    shared = regions(corners * 2, [0] * 192, [0] * 192)
    sure = torch.linspace(0, 5, 192)
    shared.teacher_logits[:, 0] = sure
    draw_teacher_and_student(IMAGE, shared)
    assert panels[0].boxes.tolist() == [list(map(float, corner)) for corner in corners[::-1][:20]]


def test_what_both_take_for_background_is_not_shown(panels):
    draw_teacher_and_student(IMAGE, regions(APART, [3, 3, 0], [3, 1, 3]))
    assert sorted(map(tuple, panels[0].boxes.tolist())) == [(20, 0, 30, 10), (40, 0, 50, 10)]
    assert sorted(panels[1].labels) == ["0 100%", "background 100%"]


def test_only_the_first_image_is_drawn(panels):
    shared = regions(APART, [0, 1, 2], [0, 1, 2])
    first, second = Boxes(shared.boxes[0].tensor[:2]), Boxes(shared.boxes[0].tensor[2:])
    draw_teacher_and_student(IMAGE, replace(shared, boxes=[first, second]))
    assert sorted(panels[0].labels) == ["0 100%", "1 100%"]


def test_without_proposals_the_image_is_drawn(panels):
    picture = draw_teacher_and_student(IMAGE, regions([], [], []))
    assert len(panels[0].boxes) == 0 and np.abs(picture[:, -20:, -20:].astype(int) - 90).max() < 3


def test_class_map_names_the_pairs_and_skips_what_it_leaves_out(panels):
    names = ["cat", "dog", "person"]
    mapped = class_map(["cat", "person"], names, ["person", "bus", "cat"])
    shared = regions(APART, [0, 1, 2], [2, 1, 0], labels=[0, 1, 2])
    draw_teacher_and_student(IMAGE, on_shared_classes(shared, mapped), names)
    assert sorted(map(tuple, panels[0].boxes.tolist())) == [(0, 0, 10, 10), (40, 0, 50, 10)]
    assert sorted(panels[0].labels) == sorted(panels[1].labels) == ["cat 100%", "person 100%"]


def test_drawing_takes_no_random_numbers():
    # Detectron2 draws the colours of its own picture from NumPy's generator, which the augmentations use too.
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()
    draw_teacher_and_student(IMAGE, regions(APART, [0, 1, 2], [0, 1, 2]))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_before, strict=True))


def images(storage):
    return {name: picture for name, picture, _ in storage._vis_data}


def test_training_shows_it_every_vis_period_and_is_not_changed(teacher, storage, panels):
    name = "drawing_classes"
    MetadataCatalog.get(name).thing_classes = ["cat", "dog", "person"]
    shown = build(student_config(teacher, "VIS_PERIOD", 2, "DATASETS.TRAIN", (name,)))
    plain = build(student_config(teacher))
    expected, expected_gradients = loss_gradients(plain, batch())
    state = torch.get_rng_state()
    losses, gradients = loss_gradients(shown, batch())
    assert losses == expected and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(gradients[key], value) for key, value in expected_gradients.items())
    assert len(images(storage)) == 2 and images(storage)[NAME].ndim == 3
    assert 0 < len(panels[0].labels) <= 20 and panels[0].labels[0].split()[0] in {"cat", "dog", "person", "background"}
    storage._vis_data.clear()
    storage.iter = 1
    shown(batch())
    assert not storage._vis_data


def test_without_a_logit_term_there_is_only_detectron2s_picture(teacher, storage, monkeypatch):
    model = build(student_config(teacher, "VIS_PERIOD", 1))
    monkeypatch.setattr(type(model.terms["dkd"]), "needs_logits", False)
    monkeypatch.setattr(type(model.terms["dkd"]), "forward", lambda self, inputs: {})
    model(batch())
    assert len(images(storage)) == 1 and NAME not in images(storage)


def test_figures_are_freed_with_their_picture(teacher, storage):
    model = build(student_config(teacher, "VIS_PERIOD", 1))
    for _ in range(2):
        model(batch())
        assert not any(type(thing) is Figure for thing in gc.get_objects())
    assert len(storage._vis_data) == 4


@pytest.mark.parametrize("terms", [("dkd",), ()])
def test_a_process_that_writes_no_pictures_keeps_none(teacher, storage, monkeypatch, terms):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    build(student_config(teacher, "VIS_PERIOD", 1, "MODEL.MASK_ON", True, terms=terms))(batch())
    assert not storage._vis_data
