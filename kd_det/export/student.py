"""Exports the student of a training run, and compares each exported file with the trained model."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN
from torch import Tensor

from kd_det.checkpoint import load_strictly, read_checkpoint
from kd_det.common.command_line import output_folder
from kd_det.common.errors import SetupError, did_you_mean
from kd_det.export.comparison import Detections, Detector, detect, inputs, largest_difference
from kd_det.export.formats import check_onnx_packages, last_line, write_checkpoint, write_onnx, write_torchscript

KEY = "--weights"
WRITERS = {"checkpoint": write_checkpoint, "torchscript": write_torchscript, "onnx": write_onnx}
FORMATS = tuple(WRITERS)
# The largest differences allowed between the student and the exported file: of a box coordinate (pixels) and of a
# score. Rounding causes a thousandth of them.
TOLERANCES = (1.0, 0.01)
# Entries of older checkpoints that are not weights.
NO_WEIGHTS = ("num_batches_tracked", "cell_anchors", "pixel_mean", "pixel_std")


@dataclass(frozen=True)
class Exported:
    """A format that was written, and its differences from the trained model.

    Attributes:
        format: one of ``FORMATS``.
        files: the files written.
        detections: number of detections compared, over all images and sizes.
        boxes, scores: the largest difference of a coordinate (pixels) and of a score.
    """

    format: str
    files: list[Path]
    detections: int
    boxes: float
    scores: float


def export_student(
    cfg: CfgNode, weights: str, output: str, formats: Sequence[str] = FORMATS[:2], images: Sequence[str] = ()
) -> Iterator[Exported]:
    """Writes the student of ``cfg`` with ``weights`` into the folder ``output``, one format after the other.

    The files of a format appear together, after a comparison with the trained model.

    Args:
        cfg: the student's configuration.
        weights: a checkpoint of this student.
        output: a folder; created if missing.
        formats: some of ``FORMATS``.
        images: files to compare on, each at two sizes; empty: the two photographs that come with scikit-learn.

    Raises:
        SetupError: the checkpoint does not fit; ``cfg`` is not an R-CNN; an image cannot be read; a package for a
            format is missing; the student detects nothing on the images to trace; torch cannot export the student; the
            exported file takes images of one size only or finds different objects; or ``output`` is not writable.
    """
    check_formats(formats)
    model = load_trained(cfg, weights)
    examples = list(inputs(cfg, images))
    expected = [detect(model, image) for image in examples]
    existed = os.path.exists(output)
    folder = output_folder("--output", output)
    try:
        yield from _written(cfg, model, formats, examples, expected, folder)
    finally:
        if not existed:
            with suppress(OSError):  # unless files were written
                folder.rmdir()


def _written(
    cfg: CfgNode,
    model: GeneralizedRCNN,
    formats: Sequence[str],
    examples: list[Tensor],
    expected: list[Detections],
    folder: Path,
) -> Iterator[Exported]:
    most = max(range(len(examples)), key=lambda number: len(expected[number].scores))
    for name in formats:
        if name != "checkpoint" and len(expected[most].scores) == 0:
            raise SetupError(
                f"--format {name}: the student detects nothing on these images, so a trace would not contain the "
                "code that follows a detection. Give images with objects by --image."
            )
        with _staging(folder) as staged:
            files, detector = WRITERS[name](cfg, model, examples[most], staged, folder)
            boxes, scores = _compare(name, detector, examples, expected)
            for file in files:
                os.replace(file, folder / file.name)
        final = [folder / file.name for file in files]
        yield Exported(name, final, sum(len(ours.scores) for ours in expected), boxes, scores)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A temporary folder in ``folder``. Those of exports that were killed are removed first."""
    for left in folder.glob(".export.*.tmp"):
        shutil.rmtree(left)
    staged = folder / f".export.{os.getpid()}.tmp"
    staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged)


def _compare(name: str, detector: Detector, examples: list[Tensor], expected: list[Detections]) -> tuple[float, float]:
    """The largest differences over all images, as ``Exported`` has them."""
    pairs = []
    for ours, image in zip(expected, examples, strict=True):
        try:
            pairs.append(largest_difference(ours, detector(image)))
        except RuntimeError as error:
            if name == "checkpoint":  # it is not a trace: this is a bug
                raise
            raise SetupError(
                f"--format {name}: the trace works only for the image size that it was made with; an image of "
                f"{image.shape[1]} x {image.shape[2]} fails ({last_line(error)}). A part of the student, probably its "
                "backbone, computes with the size in Python. Use --format checkpoint, or a student with a different "
                "backbone."
            ) from error
    boxes, scores = map(max, zip(*pairs, strict=True))
    if boxes > TOLERANCES[0] or scores > TOLERANCES[1]:
        apart = "in number or class" if math.isinf(boxes) else f"by {boxes:.2g} pixels"
        raise SetupError(
            f"--format {name}: the exported file finds different objects than the trained model (they differ {apart}), "
            "so it was not kept. Use another format, or compare on other images with --image."
        )
    return boxes, scores


def check_formats(formats: Sequence[str]) -> None:
    """Raises ``SetupError`` if a format does not exist or its packages are not installed."""
    for name in formats:
        if name not in WRITERS:
            raise SetupError(
                f"--format {name!r} does not exist; known: {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}"
            )
    if "onnx" in formats:
        check_onnx_packages()


def load_trained(cfg: CfgNode, weights: str) -> GeneralizedRCNN:
    """The trained model in evaluation mode; its teacher is not needed.

    Raises:
        SetupError: see ``export_student``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.KD.TERMS = ()
    model = build_model(cfg).eval().requires_grad_(False)
    if not isinstance(model, GeneralizedRCNN):
        raise SetupError(f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}; only an R-CNN can be exported.")
    load_strictly(model, weights, KEY)
    _refuse_surplus(model, weights)
    return model


def _refuse_surplus(model: GeneralizedRCNN, weights: str) -> None:
    checkpoint = read_checkpoint(weights, KEY)
    if checkpoint.get("matching_heuristics"):  # the names are those of another library
        return
    surplus = [name for name in checkpoint["model"] if name not in model.state_dict()]
    surplus = [name for name in surplus if not any(part in name for part in NO_WEIGHTS)]
    if surplus:
        raise SetupError(
            f"{KEY} {weights!r} is a checkpoint of a different architecture than --config-file: it has "
            f"{', '.join(surplus[:5])}"
            + (f" and {len(surplus) - 5} more" if len(surplus) > 5 else "")
            + ", which this student lacks. Give the configuration that it was trained with."
        )
