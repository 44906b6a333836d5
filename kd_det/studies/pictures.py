"""The benchmark in pictures: loss curves, AP bars, and detections on validation scenes side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.visualizer import ColorMode, Visualizer
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from kd_det.config import load_config, plain_config
from kd_det.studies.methods import METHODS, TITLES
from kd_det.studies.metrics import read_metrics, series

matplotlib.use("Agg")

PALETTE = ("#2a9d4e", "#3b8ea5", "#8e5ea2", "#c0392b", "#b8860b", "#5d6d7e", "#d16ba5", "#1f4e9c", "#6b8e23")
# Of DKD, then of the other methods in their order.
COLOURS = {"teacher": "#444444", "student alone": "#e07b39"} | {
    f"student + {title}": colour
    for title, colour in zip(sorted(TITLES.values(), key=lambda title: title != "DKD"), PALETTE, strict=True)
}
VAL = "digits_det_val"
SCALE = 3
SCENES = 4
SCORE = 0.5
IOU = 0.5
TRUTH, RIGHT, WRONG = "#ffd54a", "#4ade80", "#ff6b6b"


def draw_pictures(
    output_dir: Path,
    results: dict[str, list[dict[str, Any]]],
    runs: dict[str, Path],
    models: dict[str, tuple[str, Path]],
    device: str,
) -> list[Path]:
    """Draw all pictures into ``output_dir``.

    Args:
        output_dir: an existing folder.
        results: arm's title to the results of its seeds.
        runs: arm's title to the folder of the run to draw.
        models: title of an arm whose detections to draw to the name of its configuration and its run's folder.
        device: where to run the detectors.

    Returns:
        The files written.
    """
    metrics = {title: read_metrics(path / "metrics.json") for title, path in runs.items()}
    figures = {
        "loss_curves.png": loss_curves(metrics),
        "ap.png": ap_bars(results),
        "detections.png": detections(models, device),
    }
    for name, figure in figures.items():
        figure.savefig(output_dir / name, dpi=130)
    return [output_dir / name for name in figures]


def loss_curves(metrics: dict[str, list[dict[str, Any]]]) -> Figure:
    """Total losses of all arms, and the KD terms of those that have any, against iterations."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    total, terms = figure.subplots(1, 2)
    for title, entries in metrics.items():
        total.plot(*series(entries, "total_loss"), label=title, color=COLOURS[title], linewidth=2)
        for key in (f"loss_{term}" for term in sorted({term for terms in METHODS.values() for term in terms})):
            iterations, values = series(entries, key)
            if values:
                terms.plot(iterations, values, label=f"{title} ({key})", color=COLOURS[title], linewidth=2)
    total.set_title("Total loss (with the KD term, where there is one)")
    terms.set_title("KD term, weighted")
    for axes in (total, terms):
        axes.set(xlabel="iteration", ylabel="training loss", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def ap_bars(results: dict[str, list[dict[str, Any]]]) -> Figure:
    """Last AP, AP50 and AP75 of every arm: means over seeds, whiskers the sample standard deviation."""
    many = len(results) > 5
    figure = Figure(figsize=(max(8, 1.5 * len(results)), 5 if many else 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(results)
    for number, (title, runs) in enumerate(results.items()):
        values = np.array([[run[key] for key in ("AP", "AP50", "AP75")] for run in runs])
        spread = values.std(axis=0, ddof=1) if len(runs) > 1 else None
        places = np.arange(3) + (number - (len(results) - 1) / 2) * width
        style = {"label": title, "color": COLOURS[title]}
        bars = axes.bar(places, values.mean(axis=0), width * 0.92, yerr=spread, **style)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7 if many else 9)
    axes.set_xticks(range(3), ["AP", "AP50", "AP75"])
    axes.set(ylabel="percent", ylim=(0, 108), title="Digits scenes, validation, after the last iteration")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(len(results), 6), frameon=False)
    return figure


def detections(models: dict[str, tuple[str, Path]], device: str) -> Figure:
    """The first validation scenes with four digits or more: ground truth, then every model's detections.

    Args:
        models: title to name of the configuration and folder with ``model_final.pth``.
        device: where to run them.
    """
    scenes = [scene for scene in DatasetCatalog.get(VAL) if len(scene["annotations"]) >= 4][:SCENES]
    images = [cv2.imread(scene["file_name"]) for scene in scenes]
    columns = {"ground truth": [_draw_truth(*pair) for pair in zip(images, scenes, strict=True)]}
    for title, (config, folder) in models.items():
        overrides = ["MODEL.WEIGHTS", str(folder / "model_final.pth"), "MODEL.DEVICE", device]
        predictor = DefaultPredictor(plain_config(load_config(config, overrides)))
        columns[title] = [
            _draw_predictions(image, predictor(image)["instances"].to("cpu"), scene)
            for image, scene in zip(images, scenes, strict=True)
        ]
    return _grid(columns)


def right_detections(instances: Instances, boxes: Boxes, classes: Sequence[int]) -> list[bool]:
    """Which detections find an object: right class, IoU of 0.5 or more, no better-scored one had it before.

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


def _visualizer(image: np.ndarray) -> Visualizer:
    enlarged = cv2.resize(image, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    return Visualizer(enlarged[..., ::-1], MetadataCatalog.get(VAL), instance_mode=ColorMode.IMAGE)


def _truth(scene: dict[str, Any]) -> tuple[Boxes, list[int]]:
    corners = np.array([item["bbox"] for item in scene["annotations"]], dtype=np.float32)
    corners[:, 2:] += corners[:, :2]
    return Boxes(corners), [item["category_id"] for item in scene["annotations"]]


def _draw(image: np.ndarray, boxes: Boxes, labels: list[str], colours: list[str]) -> np.ndarray:
    enlarged = boxes.tensor.numpy() * SCALE
    drawn = _visualizer(image).overlay_instances(
        boxes=enlarged, labels=labels, assigned_colors=[to_rgb(colour) for colour in colours]
    )
    return drawn.get_image()


def _draw_truth(image: np.ndarray, scene: dict[str, Any]) -> np.ndarray:
    names = MetadataCatalog.get(VAL).thing_classes
    boxes, classes = _truth(scene)
    return _draw(image, boxes, [names[label] for label in classes], [TRUTH] * len(classes))


def _draw_predictions(image: np.ndarray, instances: Instances, scene: dict[str, Any]) -> np.ndarray:
    shown = instances[instances.scores >= SCORE]
    names = MetadataCatalog.get(VAL).thing_classes
    pairs = zip(shown.pred_classes.tolist(), shown.scores.tolist(), strict=True)
    labels = [f"{names[label]} {score:.0%}" for label, score in pairs]
    colours = [RIGHT if right else WRONG for right in right_detections(shown, *_truth(scene))]
    return _draw(image, shown.pred_boxes, labels, colours)


def _grid(columns: dict[str, Sequence[np.ndarray]]) -> Figure:
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(3 * len(columns), 3 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=14)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture)
            axes[row, column].set_axis_off()
    what = f"Scores of {SCORE:.0%} or more. Green: right class and IoU of {IOU} or more. Red: not."
    figure.suptitle(what, fontsize=12)
    return figure
