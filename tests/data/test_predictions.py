"""Predictions of any detector: as probabilities, and refused with a count and the first three examples."""

from __future__ import annotations

import json

import pytest
import torch

from kd_det.common.errors import SetupError
from kd_det.data.predictions import read_predictions

CATEGORIES = [{"id": 7, "name": "owl"}, {"id": 2, "name": "cat"}, {"id": 4, "name": "dog"}]
RECORDS = [{"image_id": number, "file_name": f"{number}.png", "height": 30, "width": 40} for number in (1, "b", 3)]


def entry(**changed: object) -> dict:
    return {"image_id": 1, "category_id": 4, "bbox": [5, 6, 10, 20], "score": 0.7, **changed}


def read(tmp_path, entries: object, *, sigmoid: bool = False) -> dict:
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(entries))
    return read_predictions(str(path), CATEGORIES, RECORDS, sigmoid=sigmoid)


def test_boxes_are_corners_best_first(tmp_path):
    entries = [entry(score=0.2, bbox=[0, 0, 1, 1]), entry(image_id="b"), entry(bbox=[30.5, 6, 10, 24.4])]
    found = read(tmp_path, entries)
    assert found.keys() == {1, "b"}  # image 3 has none
    torch.testing.assert_close(found[1].boxes, torch.tensor([[30.5, 6, 40, 30], [0, 0, 1, 1]]))  # half a pixel cut off
    assert found["b"].boxes.tolist() == [[5, 6, 15, 26]]


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_single_score_leaves_the_rest_evenly(tmp_path, sigmoid):
    found = read(tmp_path, [entry()], sigmoid=sigmoid)
    torch.testing.assert_close(found[1].probabilities, torch.tensor([[0.1, 0.7, 0.1, 0.1]]))


def test_a_softmax_leaves_the_rest_to_the_background(tmp_path):
    # In the order of the ids: cat, dog, owl. The second sum is 1 up to rounding.
    given = [{"image_id": 1, "bbox": [0, 0, 9, 9], "scores": scores} for scores in ([0.2, 0.5, 0.1], [0.3, 0.7, 5e-4])]
    found = read(tmp_path, given)
    expected = torch.tensor([[0.3, 0.7, 5e-4, 0.0], [0.2, 0.5, 0.1, 0.2]])
    torch.testing.assert_close(found[1].probabilities, expected)


def test_sigmoids_have_logits_and_the_background_zero(tmp_path):
    # Of 0.8, 0.5 and 0.2 the odds are 4, 1 and 1/4, the background's are 1.
    found = read(tmp_path, [entry(scores=[0.8, 0.5, 0.2]), entry(scores=[1, 0, 0], score=0.1)], sigmoid=True)
    torch.testing.assert_close(found[1].probabilities[0], torch.tensor([4, 1, 0.25, 1]) / 6.25)
    torch.testing.assert_close(found[1].probabilities[1], torch.tensor([1.0, 0, 0, 0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_id": 9}, r"4 have an image_id that the data set does not have \(entry 1: 9; entry 2: 9; entry 3: 9;"),
        ({"image_id": [1]}, r"have an image_id that the data set does not have \(entry 1: \[1\]"),
        ({"category_id": 3}, r"4 have an unknown category_id \(entry 1: 3"),
        ({"score": 1.2}, r"4 have no score from 0 to 1 \(entry 1: 1.2"),
        ({"score": float("nan")}, r"have no score from 0 to 1 \(entry 1: nan"),
        ({"score": None}, r"have no score from 0 to 1 \(entry 1: None"),
        ({"bbox": [35, 6, 10, 20]}, r"4 have a box outside its image .*\(entry 1: \[35, 6, 10, 20, 'in', 40, \.\.\.\]"),
        ({"bbox": [-2, 6, 10, 20]}, "have a box outside its image"),
        ({"bbox": [5, 6, 0, 20]}, "have a box without area"),
        ({"bbox": [5, 6, 10]}, "have no bbox of four numbers"),
        ({"scores": [0.5, 0.5]}, r"have scores that are not a list of 3, one for each category \(entry 1: 2"),
        ({"scores": [0.5, 0.5, -0.1]}, "have a score outside 0 to 1 in scores"),
        ({"scores": [0.5, 0.5, 0.5]}, r"have scores with a sum above 1.*--scores sigmoid.*\(entry 1: 1.5"),
    ],
)
def test_faults_are_counted_and_the_first_three_shown(tmp_path, wrong, message):
    with pytest.raises(SetupError, match=message) as refused:
        read(tmp_path, [entry(), *[entry(**wrong) for _ in range(4)]])
    assert "predictions.json': 4 have" in str(refused.value) and "entry 4" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[", "is not JSON"), ("{}", "is not a list of detections"), ("[]", "is not a list"), ("[5]", "not JSON objects")],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "predictions.json"
    path.write_text(content)
    with pytest.raises(SetupError, match=message):
        read_predictions(str(path), CATEGORIES, RECORDS, sigmoid=False)
    with pytest.raises(SetupError, match=r"nowhere.json' cannot be read"):
        read_predictions("nowhere.json", CATEGORIES, RECORDS, sigmoid=False)
