"""Pairing the student's classes with the teacher's by name."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage

from kd_det.common.errors import SetupError
from kd_det.losses import dkd_loss, kd_loss
from kd_det.modeling.regions import on_shared_classes
from kd_det.teacher.classes import class_map
from kd_det.teacher.config import teacher_config
from kd_det.teacher.frozen import load_teacher
from tests.tiny import batch, build, loss_gradients, shared_regions, student_config, teacher_files

STUDENT = ["cat", "dog", "person"]
BACKGROUND = 9.0  # in every table of logits below


@pytest.mark.parametrize(
    ("entries", "teacher", "pairs"),
    [
        (["*"], ["person", "cat", "dog"], ((0, 1), (1, 2), (2, 0))),
        (["*"], ["car", "dog", "bus", "person", "cat"], ((0, 4), (1, 1), (2, 3))),
        (["*"], ["dog", "car"], ((1, 0),)),
        (["dog"], ["person", "cat", "dog"], ((1, 2),)),
        (["person=pedestrian"], ["pedestrian", "cat"], ((2, 0),)),
        (["*", "person = pedestrian"], ["pedestrian", "cat"], ((0, 1), (2, 0))),
        (["cat=dog", "*"], ["cat", "dog", "person"], ((0, 1), (2, 2))),
    ],
    ids=["other order", "superset", "subset", "one", "other name", "other name and *", "crossed"],
)
def test_pairs(entries, teacher, pairs):
    mapped = class_map(entries, STUDENT, teacher)
    assert tuple(zip(mapped.student, mapped.teacher, strict=True)) == pairs
    assert mapped.partial == (len(pairs) < len(STUDENT))


def test_logits_and_labels_go_to_the_pairs():
    mapped = class_map(["cat", "person=pedestrian"], STUDENT, ["bus", "pedestrian", "car", "cat"])
    ours = torch.tensor([[0.0, 1.0, 2.0, BACKGROUND]])
    theirs = torch.tensor([[0.0, 1.0, 2.0, 3.0, BACKGROUND]])
    assert mapped.student_logits(ours).tolist() == [[0.0, 2.0, BACKGROUND]]
    assert mapped.teacher_logits(theirs).tolist() == [[3.0, 1.0, BACKGROUND]]
    assert mapped.labels(torch.tensor([0, 1, 2, 3])).tolist() == [0, -1, 1, 2]
    cells = ours[..., None].expand(-1, -1, 4)
    assert mapped.student_logits(cells).shape == (1, 3, 4)


@pytest.mark.parametrize(
    ("entries", "teacher", "message"),
    [
        (["cta"], STUDENT, r"the student has no class 'cta'. Did you mean 'cat'\?"),
        (["cat=kitten"], STUDENT, r"the teacher has no class 'kitten'"),
        (["cat", "cat"], STUDENT, "'cat' or 'cat' is listed twice"),
        (["cat=dog", "dog=dog"], STUDENT, "'dog' or 'dog' is listed twice"),
        (["*"], ["bus", "car"], "no class name in common"),
    ],
)
def test_invalid_class_maps(entries, teacher, message):
    with pytest.raises(SetupError, match=f"KD.TEACHER.CLASS_MAP.*{message}"):
        class_map(entries, STUDENT, teacher)


def regions(labels, classes=3):
    rng = torch.Generator().manual_seed(0)
    student = torch.randn(len(labels), classes + 1, generator=rng).requires_grad_()
    return shared_regions(student, torch.randn(len(labels), 5, generator=rng), torch.tensor(labels))


def test_proposals_of_unmatched_classes_are_left_out():
    given = regions([1, 0, 3, 1, 2])
    shared = on_shared_classes(given, class_map(["cat", "person"], STUDENT, ["person", "bus", "cat", "car"]))
    assert shared.labels.tolist() == [0, 2, 1]
    assert torch.equal(shared.student_logits, given.student_logits[[1, 2, 4]][:, [0, 2, 3]])
    assert torch.equal(shared.teacher_logits, given.teacher_logits[[1, 2, 4]][:, [2, 0, 4]])


def test_all_proposals_left_out_give_a_zero_with_a_graph():
    given = regions([1, 1])
    shared = on_shared_classes(given, class_map(["cat"], STUDENT, ["person", "bus", "cat", "car"]))
    s, t, y = shared.student_logits, shared.teacher_logits, shared.labels
    assert s.shape == t.shape == (0, 2)
    loss = dkd_loss(s, t, y) + kd_loss(s, t)
    loss.backward()
    assert loss.item() == 0 and given.student_logits.grad.abs().sum() == 0


def named(name, classes):
    if name not in MetadataCatalog.list():
        MetadataCatalog.get(name).thing_classes = classes
    return ("DATASETS.TRAIN", (name,))


def rearranged(files, folder, rows, classes):
    """The teacher's files with its class layer's rows put in another order, the background's kept last."""
    saved = torch.load(files[1], weights_only=True)
    for part in ("weight", "bias"):
        key = f"roi_heads.box_predictor.cls_score.{part}"
        saved["model"][key] = saved["model"][key][[*rows, -1]]
    boxes = [4 * row + side for row in rows for side in range(4)]
    for part in ("weight", "bias"):
        key = f"roi_heads.box_predictor.bbox_pred.{part}"
        saved["model"][key] = saved["model"][key][boxes]
    torch.save(saved, folder / "rearranged.pth")
    return ["MODEL.ROI_HEADS.NUM_CLASSES", len(rows), *classes], str(folder / "rearranged.pth")


@pytest.mark.parametrize("rows", [(2, 0, 1), (1, 0, 2, 2, 1)], ids=["other order", "superset"])
def test_a_rearranged_teacher_gives_the_same_loss(tmp_path, rows):
    files = teacher_files(tmp_path)
    names = ["other" + str(place) if row in rows[:place] else STUDENT[row] for place, row in enumerate(rows)]
    ours = named("class_map_student", STUDENT)
    opts, weights = rearranged(files, tmp_path, rows, named(f"class_map_teacher_{len(rows)}", names))
    given = ["KD.TEACHER.OPTS", opts, "KD.TEACHER.CLASS_MAP", ["*"], "KD.TEACHER.WEIGHTS", weights]
    with EventStorage(0):
        expected, expected_gradients = loss_gradients(build(student_config(files, *ours)), batch())
        losses, gradients = loss_gradients(build(student_config(files, *ours, *given)), batch())
    assert losses == expected and losses["loss_dkd"] > 0
    assert all(torch.equal(gradients[name], value) for name, value in expected_gradients.items())


def test_without_a_map_a_rearranged_teacher_is_refused(tmp_path):
    files = teacher_files(tmp_path)
    opts = list(named("class_map_other_order", STUDENT[::-1]))
    cfg = student_config(files, *named("class_map_student", STUDENT), "KD.TEACHER.OPTS", opts)
    with pytest.raises(SetupError, match=r"class 0 is 'cat' for the student and 'person' for the teacher.*CLASS_MAP"):
        load_teacher(cfg)


def test_a_map_needs_the_names_of_both(tmp_path):
    files = teacher_files(tmp_path)
    cfg = student_config(files, *named("class_map_student", STUDENT), "KD.TEACHER.CLASS_MAP", ["*"])
    assert teacher_config(cfg).DATASETS.TRAIN == ()
    with pytest.raises(SetupError, match=r"the teacher's names are not known.*KD.TEACHER.OPTS"):
        load_teacher(cfg)


FEATURES = ("fitnet", "pkd", "reviewkd", "fgfi")
OTHERS = ["bus", "car", "person", "pedestrian", "traffic light"]


@pytest.fixture
def others(tmp_path):
    """Settings for a student of three classes and a teacher of five, one of them common."""
    files = teacher_files(tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", 5)
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", 5, *named("class_map_others", OTHERS)]
    return files, [*named("class_map_student", STUDENT), "KD.TEACHER.OPTS", opts]


@pytest.mark.parametrize("term", FEATURES)
def test_terms_on_features_take_a_teacher_of_any_classes(others, caplog, term):
    files, settings = others
    model = build(student_config(files, *settings, terms=(term,)))
    with EventStorage(0), caplog.at_level(logging.INFO):
        losses, gradients = loss_gradients(model, batch())
    assert losses[f"loss_{term}"] > 0 and gradients["backbone.fpn_output2.weight"].abs().sum() > 0
    assert f"Distilled classes: none. The terms {term} compare feature maps" in caplog.text
    assert "3 classes and the teacher's 5" in caplog.text and "CLASS_MAP" not in caplog.text


def test_a_term_on_logits_beside_one_on_features_asks_for_the_classes(others):
    files, settings = others
    model = build(student_config(files, *settings, terms=("fitnet", "dkd")))
    with pytest.raises(SetupError, match=r"NUM_CLASSES is 3 for the student and 5 for the teacher.*CLASS_MAP"):
        model.load_teacher()


@pytest.mark.parametrize(
    ("terms", "entries", "expected"),
    [
        (
            ("dkd",),
            ["*", "cat=pedestrian"],
            "Distilled classes: 2 of the student's 3 (cat=pedestrian, person). Not distilled, without a partner: the "
            "student's dog; the teacher's bus, car, traffic light",
        ),
        (("pkd",), ["person"], "need not be the same; KD.TEACHER.CLASS_MAP ['person'] is not used"),
    ],
)
def test_the_log_says_which_classes_are_distilled(others, caplog, terms, entries, expected):
    files, settings = others
    with caplog.at_level(logging.INFO):
        build(student_config(files, *settings, "KD.TEACHER.CLASS_MAP", entries, terms=terms)).load_teacher()
    assert expected in caplog.text


def test_the_log_says_that_all_classes_are_distilled(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        load_teacher(student_config(teacher_files(tmp_path)))
    assert "Distilled classes: all 3, in the same order" in caplog.text
