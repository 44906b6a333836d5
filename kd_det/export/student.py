"""From a training run's checkpoint to the student in each format, compared with the model that was trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN

from kd_det.checkpoint import load_strictly, read_checkpoint
from kd_det.common.errors import SetupError
from kd_det.export.detections import detect, largest_difference
from kd_det.export.formats import check_onnx_packages, write_checkpoint, write_onnx, write_torchscript
from kd_det.export.images import inputs

KEY = "--weights"
WRITERS = {"checkpoint": write_checkpoint, "torchscript": write_torchscript, "onnx": write_onnx}
FORMATS = tuple(WRITERS)
# Entries of older checkpoints that are no weights.
NO_WEIGHTS = ("num_batches_tracked", "cell_anchors", "pixel_mean", "pixel_std")


@dataclass(frozen=True)
class Exported:
    """A format that was written, and how it compares with the model that was trained.

    Attributes:
        format: one of ``FORMATS``.
        files: what was written.
        detections: how many were compared, over all images and sizes.
        boxes, scores: the largest difference of a coordinate (pixels) and of a score; infinite if others were found.
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

    Args:
        weights: a checkpoint of this very student.
        formats: of ``FORMATS``.
        images: files to compare on; none: the two photographs that come with scikit-learn. Each at two sizes.

    Raises:
        SetupError: the checkpoint is another student's, ``cfg`` is no R-CNN, an image cannot be read, a package for a
            format is missing, nothing is detected on the images to trace, or torch cannot export the student to ONNX.
    """
    check_formats(formats)
    model = load_trained(cfg, weights)
    examples = list(inputs(cfg, images))
    expected = [detect(model, image) for image in examples]
    most = max(range(len(examples)), key=lambda number: len(expected[number].scores))
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in formats:
        if name != "checkpoint" and len(expected[most].scores) == 0:
            raise SetupError(
                f"--format {name}: the student detects nothing on these images, so a trace would not learn what "
                "follows a detection. Give --image with objects that it finds."
            )
        files, detector = WRITERS[name](cfg, model, examples[most], folder)
        pairs = [largest_difference(ours, detector(image)) for ours, image in zip(expected, examples, strict=True)]
        boxes, scores = (max(differences) for differences in zip(*pairs, strict=True))
        yield Exported(name, files, sum(len(ours.scores) for ours in expected), boxes, scores)


def check_formats(formats: Sequence[str]) -> None:
    """Raises ``SetupError`` for a format that does not exist or whose packages are missing."""
    for name in formats:
        if name not in WRITERS:
            raise SetupError(f"--format {name!r} does not exist; known: {', '.join(FORMATS)}.")
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
