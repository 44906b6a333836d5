"""From a training run's checkpoint to the student in each format, compared with the model that was trained."""

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
from kd_det.export.detections import Detections, Detector, detect, largest_difference
from kd_det.export.formats import check_onnx_packages, last_line, write_checkpoint, write_onnx, write_torchscript
from kd_det.export.images import inputs

KEY = "--weights"
WRITERS = {"checkpoint": write_checkpoint, "torchscript": write_torchscript, "onnx": write_onnx}
FORMATS = tuple(WRITERS)
# The largest differences of a box coordinate (pixels) and of a score between the student and what was exported.
# Rounding makes thousandths of them.
TOLERANCES = (1.0, 0.01)
# Entries of older checkpoints that are no weights.
NO_WEIGHTS = ("num_batches_tracked", "cell_anchors", "pixel_mean", "pixel_std")


@dataclass(frozen=True)
class Exported:
    """A format that was written, and how it compares with the model that was trained.

    Attributes:
        format: one of ``FORMATS``.
        files: what was written.
        detections: how many were compared, over all images and sizes.
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
    """Writes the student of ``cfg`` with ``weights`` into the folder ``output``, format after format.

    The files of a format appear together, once they have been found to give what the student gives.

    Args:
        weights: a checkpoint of this very student.
        formats: of ``FORMATS``.
        images: files to compare on; none: the two photographs that come with scikit-learn. Each at two sizes.

    Raises:
        SetupError: the checkpoint is another student's, ``cfg`` is no R-CNN, an image cannot be read, a package for a
            format is missing, nothing is detected on the images to trace, torch cannot export the student to a format,
            what it exported takes images of one size alone or finds other objects, or ``output`` cannot be written to.
    """
    check_formats(formats)
    model = load_trained(cfg, weights)
    examples = list(inputs(cfg, images))
    expected = [detect(model, image) for image in examples]
    there = os.path.exists(output)
    folder = output_folder("--output", output)
    try:
        yield from _written(cfg, model, formats, examples, expected, folder)
    finally:
        if not there:
            with suppress(OSError):  # it holds what was written
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
                f"--format {name}: the student detects nothing on these images, so a trace would not learn what "
                "follows a detection. Give --image with objects that it finds."
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
    """A folder in ``folder`` that is gone afterwards. What a killed export left of its own is removed first."""
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
            if name == "checkpoint":  # no trace, and so no fault of the format
                raise
            raise SetupError(
                f"--format {name}: the trace is bound to the size of the image that it was made on; one of "
                f"{image.shape[1]} x {image.shape[2]} fails ({last_line(error)}). Some part of the student, its "
                "backbone most likely, computes with that size in Python. Take --format checkpoint, or a student with "
                "another backbone."
            ) from error
    differences = tuple(map(max, zip(*pairs, strict=True)))
    if any(found > tolerance for found, tolerance in zip(differences, TOLERANCES, strict=True)):
        apart = "in number or class" if math.isinf(differences[0]) else f"by {differences[0]:.2g} pixels"
        raise SetupError(
            f"--format {name}: what was exported finds other objects than the trained model (they differ {apart}), so "
            "that it was not kept. Take another format, or compare on other images with --image."
        )
    return differences


def check_formats(formats: Sequence[str]) -> None:
    """Raises ``SetupError`` for a format that does not exist or whose packages are missing."""
    for name in formats:
        if name not in WRITERS:
            raise SetupError(
                f"--format {name!r} does not exist; known: {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}"
            )
    if "onnx" in formats:
        check_onnx_packages()


def load_trained(cfg: CfgNode, weights: str) -> GeneralizedRCNN:
    """The model that was trained, ready to detect; its teacher is not needed.

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
    _refuse_what_is_left_over(model, weights)
    return model


def _refuse_what_is_left_over(model: GeneralizedRCNN, weights: str) -> None:
    checkpoint = read_checkpoint(weights, KEY)
    if checkpoint.get("matching_heuristics"):  # the names are another library's
        return
    surplus = [name for name in checkpoint["model"] if name not in model.state_dict()]
    surplus = [name for name in surplus if not any(part in name for part in NO_WEIGHTS)]
    if surplus:
        raise SetupError(
            f"{KEY} {weights!r} is a checkpoint of another architecture than --config-file: it has "
            f"{', '.join(surplus[:5])}"
            + (f" and {len(surplus) - 5} more" if len(surplus) > 5 else "")
            + ", which this student has not. Give the configuration that it was trained with."
        )
