import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

from kd_det.common.figures import save_figure
from kd_det.data.digits_scenes import DigitsDetSettings, annotation_file, image_root, make_digits_det
from kd_det.modeling.drawing import side_by_side
from kd_det.studies import pictures
from kd_det.studies.digits_det import arms_of
from kd_det.studies.methods import METHODS, arm_colours, arm_title, title
from kd_det.studies.pictures import ap_bars, loss_curves, right_detections


def run(ap):
    return {"AP": ap, "AP50": ap + 30, "AP75": ap + 10}


def test_curves_show_what_was_logged():
    entries = [
        {"iteration": 19, "total_loss": 3.0, "loss_dkd": 1.0},
        {"iteration": 39, "total_loss": 2.0, "loss_dkd": 0.5},
    ]
    plain = [{key: entry[key] for key in ("iteration", "total_loss")} for entry in entries]
    total, terms = loss_curves({"student alone": plain, "student + DKD": entries}).axes
    assert [line.get_xydata().tolist() for line in total.lines] == [[[20, 3.0], [40, 2.0]]] * 2
    (line,) = terms.lines
    assert line.get_xydata().tolist() == [[20, 1.0], [40, 0.5]]
    assert line.get_label() == "student + DKD (loss_dkd)"


def test_a_method_that_is_not_listed_is_drawn(monkeypatch):
    """More arms than the palette has colours: each is drawn, under its own name."""
    names = [*METHODS, "tenth", *(f"{number}th" for number in range(11, 31))]
    titles = ["teacher", "student alone", *map(arm_title, names)]
    assert "student + tenth" in titles and title("tenth") == "tenth"
    axes = ap_bars({name: [run(30.0)] for name in titles}).axes[0]
    assert axes.get_legend_handles_labels()[1] == titles
    entries = [{"iteration": 19, "total_loss": 3.0}, {"iteration": 39, "total_loss": 2.0}]
    total, _ = loss_curves(dict.fromkeys(titles, entries)).axes
    assert len(total.lines) == len(titles)
    colours = arm_colours(titles)
    assert len({colours[name] for name in titles[:12]}) == 12
    # A method keeps its colour whatever is drawn with it.
    assert arm_colours(["student + NKD"])["student + NKD"] == colours["student + NKD"]
    monkeypatch.setitem(METHODS, "tenth", ("kd",))
    assert arms_of(["tenth"]) == ("student", "tenth")


def test_bars_are_means_over_seeds():
    axes = ap_bars({"teacher": [run(50.0)], "student alone": [run(30.0), run(34.0)]}).axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([50, 80, 60, 32, 62, 42])


def test_detections_are_next_to_the_ground_truth(tmp_path, monkeypatch):
    """A row for each scene: ground truth, then a model that finds one object of the scene and invents another."""
    make_digits_det(tmp_path, DigitsDetSettings(train_images=1, val_images=8))
    register_coco_instances(
        "digits_of_this_test", {}, str(annotation_file(tmp_path, "val")), str(image_root(tmp_path, "val"))
    )
    scenes = DatasetCatalog.get("digits_of_this_test")
    first = next(scene for scene in scenes if len(scene["annotations"]) >= 4)
    x, y, width, height = first["annotations"][0]["bbox"]
    found = Instances((first["height"], first["width"]))
    found.pred_boxes = Boxes(torch.tensor([[x, y, x + width, y + height], [0.0, 0, 9, 9], [0, 0, 5, 5]]))
    found.pred_classes = torch.tensor([first["annotations"][0]["category_id"]] * 3)
    found.scores = torch.tensor([0.9, 0.8, 0.3])
    rows = []
    monkeypatch.setattr(pictures, "VAL", "digits_of_this_test")
    monkeypatch.setattr(pictures, "DefaultPredictor", lambda cfg: lambda image: {"instances": found})
    monkeypatch.setattr(pictures, "side_by_side", lambda image, row: rows.append(row) or side_by_side(image, row))
    figure = pictures.detections({"student": ("digits_det/student.yaml", tmp_path)}, "cpu")
    truth, drawn = rows[0]
    assert len(truth.boxes) == len(first["annotations"]) and (truth.title, drawn.title) == ("ground truth", "student")
    assert drawn.boxes.tolist() == found.pred_boxes.tensor[:2].tolist()  # the third has too low a score
    assert drawn.colours == [pictures.RIGHT, pictures.WRONG] and drawn.labels[0].endswith(" 90%")
    assert 1 <= len(rows) == len(figure.axes) <= pictures.SCENES
    (path,) = save_figure(figure, tmp_path, "detections", ["png"])
    assert path.name == "detections.png" and path.stat().st_size > 10_000


def test_an_object_is_found_once_by_the_best_scored_detection_of_its_class():
    truth = Boxes(torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]))
    found = Instances((50, 50))
    # The same object twice (the worse first), another class, an IoU of 1/3, and none at all.
    found.pred_boxes = Boxes(
        torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [25, 0, 35, 10], [40, 40, 50, 50]])
    )
    found.pred_classes = torch.tensor([3, 3, 5, 4, 4])
    found.scores = torch.tensor([0.6, 0.9, 0.8, 0.7, 0.95])
    assert right_detections(found, truth, [3, 4]) == [False, True, False, False, False]
    assert right_detections(found[:0], truth, [3, 4]) == []
