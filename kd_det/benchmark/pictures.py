"""The benchmark in pictures: loss curves, AP bars, and detections on validation scenes side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from matplotlib.figure import Figure

from kd_det.benchmark.metrics import read_metrics, series
from kd_det.config import load_config, plain_config

matplotlib.use("Agg")

COLOURS = {
    "teacher": "#444444",
    "student alone": "#e07b39",
    "student + KD": "#3b8ea5",
    "student + DKD": "#2a9d4e",
}
VAL = "digits_det_val"
SCALE = 3
SCENES = 4
SCORE = 0.5


def draw_pictures(
    output_dir: Path,
    results: dict[str, list[dict[str, Any]]],
    runs: dict[str, Path],
    configs: dict[str, Path],
    device: str,
) -> list[Path]:
    """Draw all pictures into ``output_dir``.

    Args:
        output_dir: an existing folder.
        results: arm's title to the results of its seeds.
        runs: arm's title to the folder of the run to draw.
        configs: arm's title to its configuration file.
        device: where to run the detectors.

    Returns:
        The files written.
    """
    metrics = {title: read_metrics(path / "metrics.json") for title, path in runs.items()}
    models = {title: (configs[title], path) for title, path in runs.items()}
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
        for key in ("loss_kd", "loss_dkd"):
            iterations, values = series(entries, key)
            if values:
                terms.plot(iterations, values, label=f"{title} ({key})", color=COLOURS[title], linewidth=2)
    total.set_title("Total loss (with the KD term, where there is one)")
    terms.set_title("KD term, weighted")
    for axes in (total, terms):
        axes.set(xlabel="iteration", ylabel="training loss", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def ap_bars(results: dict[str, list[dict[str, Any]]]) -> Figure:
    """Last AP, AP50 and AP75 of every arm: means over seeds, whiskers the sample standard deviation."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(results)
    for number, (title, runs) in enumerate(results.items()):
        values = np.array([[run[key] for key in ("AP", "AP50", "AP75")] for run in runs])
        spread = values.std(axis=0, ddof=1) if len(runs) > 1 else None
        places = np.arange(3) + (number - (len(results) - 1) / 2) * width
        style = {"label": title, "color": COLOURS[title]}
        bars = axes.bar(places, values.mean(axis=0), width * 0.92, yerr=spread, **style)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
    axes.set_xticks(range(3), ["AP", "AP50", "AP75"])
    axes.set(ylabel="percent", ylim=(0, 108), title="Digits scenes, validation, after the last iteration")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(results), frameon=False)
    return figure


def detections(models: dict[str, tuple[Path, Path]], device: str) -> Figure:
    """The first validation scenes with four digits or more: ground truth, then every model's detections.

    Args:
        models: title to configuration file and folder with ``model_final.pth``.
        device: where to run them.
    """
    scenes = [scene for scene in DatasetCatalog.get(VAL) if len(scene["annotations"]) >= 4][:SCENES]
    images = [cv2.imread(scene["file_name"]) for scene in scenes]
    columns = {"ground truth": [_draw_truth(*pair) for pair in zip(images, scenes, strict=True)]}
    for title, (config, folder) in models.items():
        overrides = ["MODEL.WEIGHTS", str(folder / "model_final.pth"), "MODEL.DEVICE", device]
        predictor = DefaultPredictor(plain_config(load_config(str(config), overrides)))
        columns[title] = [_draw_predictions(image, predictor(image)["instances"]) for image in images]
    return _grid(columns)


def _visualizer(image: np.ndarray) -> Visualizer:
    enlarged = cv2.resize(image, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    return Visualizer(enlarged[..., ::-1], MetadataCatalog.get(VAL), instance_mode=ColorMode.IMAGE)


def _draw_truth(image: np.ndarray, scene: dict[str, Any]) -> np.ndarray:
    names = MetadataCatalog.get(VAL).thing_classes
    boxes = np.array([item["bbox"] for item in scene["annotations"]])
    boxes[:, 2:] += boxes[:, :2]
    labels = [names[item["category_id"]] for item in scene["annotations"]]
    return _visualizer(image).overlay_instances(boxes=boxes * SCALE, labels=labels).get_image()


def _draw_predictions(image: np.ndarray, instances: Instances) -> np.ndarray:
    shown = instances[instances.scores >= SCORE].to("cpu")
    names = MetadataCatalog.get(VAL).thing_classes
    boxes = shown.pred_boxes.tensor.numpy() * SCALE
    pairs = zip(shown.pred_classes.tolist(), shown.scores.tolist(), strict=True)
    labels = [f"{names[label]} {score:.0%}" for label, score in pairs]
    return _visualizer(image).overlay_instances(boxes=boxes, labels=labels).get_image()


def _grid(columns: dict[str, Sequence[np.ndarray]]) -> Figure:
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(3 * len(columns), 3 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=14)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture)
            axes[row, column].set_axis_off()
    figure.suptitle(f"Validation scenes; detections with a score of at least {SCORE:.0%}", fontsize=11)
    return figure
