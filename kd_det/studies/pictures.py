"""Figures of the digits benchmark: loss curves, bars of AP, and detections on validation scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, Instances, pairwise_iou
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from kd_det.common.figures import save_figure, tidy
from kd_det.config import load_config, plain_config
from kd_det.modeling.drawing import Panel, side_by_side
from kd_det.studies.methods import METHODS, arm_colours
from kd_det.studies.metrics import read_metrics, series

VAL = "digits_det_val"
SCENES = 4
SCORE = 0.5
IOU = 0.5
TRUTH, RIGHT, WRONG = (to_rgb(colour) for colour in ("#ffd54a", "#4ade80", "#ff6b6b"))

Results = Mapping[str, Sequence[Mapping[str, Any]]]


def draw_pictures(
    output_dir: Path,
    results: Results,
    runs: Mapping[str, Path],
    models: Mapping[str, tuple[str, Path]],
    device: str,
) -> list[Path]:
    """Draws loss_curves.png, ap.png and detections.png.

    Args:
        output_dir: the folder for the figures.
        results: an arm's title to the results of its seeds.
        runs: an arm's title to the folder of the run whose losses are drawn.
        models: the title of an arm whose detections are drawn to its configuration and its run's folder.
        device: the device that the detectors run on.

    Returns:
        The files written.
    """
    metrics = {title: read_metrics(path / "metrics.json") for title, path in runs.items()}
    figures = {"loss_curves": loss_curves(metrics), "ap": ap_bars(results), "detections": detections(models, device)}
    return [path for name, figure in figures.items() for path in save_figure(figure, output_dir, name, ("png",))]


def loss_curves(metrics: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Total losses of all arms, and the KD terms of the arms that have any, against iterations."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    total, terms = figure.subplots(1, 2)
    colours = arm_colours(metrics)
    known = sorted({f"loss_{term}" for names in METHODS.values() for term in names})
    for title, entries in metrics.items():
        total.plot(*series(entries, "total_loss"), label=title, color=colours[title], linewidth=2)
        for key in known:
            iterations, values = series(entries, key)
            if values:
                terms.plot(iterations, values, label=f"{title} ({key})", color=colours[title], linewidth=2)
    total.set_title("Total loss (with the KD term, if there is one)")
    terms.set_title("KD term, weighted")
    for axes in (total, terms):
        axes.set(xlabel="iteration", ylabel="training loss", xlim=(0, None), ylim=(0, None))
        tidy(axes, grid="both")
        if axes.lines:
            axes.legend(frameon=False)
    return figure


def ap_bars(results: Results) -> Figure:
    """Last AP, AP50 and AP75 of every arm: means over seeds, with the sample standard deviation as error bars."""
    many = len(results) > 5
    figure = Figure(figsize=(max(8, 1.5 * len(results)), 5 if many else 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(results)
    colours = arm_colours(results)
    for number, (title, runs) in enumerate(results.items()):
        values = np.array([[run[key] for key in ("AP", "AP50", "AP75")] for run in runs])
        spread = values.std(axis=0, ddof=1) if len(runs) > 1 else None
        places = np.arange(3) + (number - (len(results) - 1) / 2) * width
        heights = values.mean(axis=0)
        bars = axes.bar(places, heights, width * 0.92, yerr=spread, label=title, color=colours[title])
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7 if many else 9)
    axes.set_xticks(range(3), ["AP", "AP50", "AP75"])
    axes.set(ylabel="percent", ylim=(0, 108), title="Digits scenes, validation, after the last iteration")
    tidy(axes, grid="y")
    figure.legend(loc="outside lower center", ncols=min(len(results), 6), frameon=False)
    return figure


def detections(models: Mapping[str, tuple[str, Path]], device: str) -> Figure:
    """The first validation scenes with four digits or more: ground truth, then every model's detections.

    Args:
        models: a title to a configuration and the folder with its ``model_final.pth``.
        device: the device that the detectors run on.
    """
    scenes = [scene for scene in DatasetCatalog.get(VAL) if len(scene["annotations"]) >= 4][:SCENES]
    images = [read_image(scene["file_name"], "BGR") for scene in scenes]
    panels = [[_truth_panel(scene)] for scene in scenes]
    for title, (config, folder) in models.items():
        overrides = ["MODEL.WEIGHTS", str(folder / "model_final.pth"), "MODEL.DEVICE", device]
        predictor = DefaultPredictor(plain_config(load_config(config, overrides)))
        for image, scene, row in zip(images, scenes, panels, strict=True):
            row.append(_prediction_panel(title, predictor(image)["instances"].to("cpu"), scene))
    rows = [side_by_side(image[..., ::-1], row) for image, row in zip(images, panels, strict=True)]
    figure = Figure(figsize=(3 * len(panels[0]), 3.2 * len(rows) + 0.4), layout="constrained")
    for axes, picture in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        axes.imshow(picture)
        axes.set_axis_off()
    figure.suptitle(f"Scores ≥ {SCORE:.0%}. Green: right class and IoU ≥ {IOU}. Red: wrong.", fontsize=11)
    return figure


def right_detections(instances: Instances, boxes: Boxes, classes: Sequence[int]) -> list[bool]:
    """Which detections find an object: right class, IoU of 0.5 or more, and no better-scored one has found it.

    Args:
        instances: N detections with ``pred_boxes``, ``pred_classes`` and ``scores``.
        boxes: M ground-truth boxes.
        classes: their M classes.

    Returns:
        N truth values, in the detections' order.
    """
    overlaps = pairwise_iou(instances.pred_boxes, boxes)
    right = [False] * len(instances)
    free = set(range(len(classes)))
    for index in instances.scores.argsort(descending=True).tolist():
        label = int(instances.pred_classes[index])
        fitting = [m for m in free if classes[m] == label and overlaps[index, m] >= IOU]
        if fitting:
            free.remove(max(fitting, key=lambda m: float(overlaps[index, m])))
            right[index] = True
    return right


def _truth(scene: Mapping[str, Any]) -> tuple[Boxes, list[int]]:
    corners = np.array([item["bbox"] for item in scene["annotations"]], dtype=np.float32)
    corners[:, 2:] += corners[:, :2]
    return Boxes(corners), [item["category_id"] for item in scene["annotations"]]


def _truth_panel(scene: Mapping[str, Any]) -> Panel:
    names = MetadataCatalog.get(VAL).thing_classes
    boxes, classes = _truth(scene)
    labels = [names[label] for label in classes]
    return Panel("ground truth", boxes.tensor.numpy(), labels, [TRUTH] * len(classes))


def _prediction_panel(title: str, instances: Instances, scene: Mapping[str, Any]) -> Panel:
    shown = instances[instances.scores >= SCORE]
    names = MetadataCatalog.get(VAL).thing_classes
    pairs = zip(shown.pred_classes.tolist(), shown.scores.tolist(), strict=True)
    labels = [f"{names[label]} {score:.0%}" for label, score in pairs]
    colours = [RIGHT if right else WRONG for right in right_detections(shown, *_truth(scene))]
    return Panel(title, shown.pred_boxes.tensor.numpy(), labels, colours)
