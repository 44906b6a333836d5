"""Writes the student in each format, and reads it again as a user of that format does."""

from __future__ import annotations

import importlib.util
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.export.flatten import TracingAdapter
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Instances
from torch import Tensor

from kd_det.common.config_merge import merge_config
from kd_det.common.errors import SetupError
from kd_det.common.files import write_atomically, write_json
from kd_det.config import TIMM_BACKBONE, add_kd_config, plain_config
from kd_det.export.comparison import Detections, Detector, detect
from kd_det.teacher.classes import checked_class_names

ONNX_OPSET = 16  # the first with the RoIAlign that Detectron2 uses
# What torch raises for a model that it cannot trace or save, and the model for values of the trace.
TRACE_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, AssertionError)
REASON_LENGTH = 200
# The outputs of a trace in this order, as far as the student has them, and their meaning. R detections.
OUTPUTS = {
    "pred_boxes": "(R, 4): x0, y0, x1, y1 in pixels of the input",
    "scores": "(R,): probability, 0 to 1",
    "pred_classes": "(R,): index in classes, from 0",
    "pred_masks": "(R, 1, side, side): probability, 0 to 1, of the cells of a grid over the box",
    "pred_keypoints": "(R, keypoints, 3): x, y in pixels of the input, and score, 0 to 1",
}

EDGES = {"shortest_edge": "pixels; 0 for no resizing", "longest_edge": "pixels"}


def write_checkpoint(
    cfg: CfgNode, model: GeneralizedRCNN, example: Tensor, folder: Path, final: Path
) -> tuple[list[Path], Detector]:
    """``model.pth`` and ``config.yaml`` for plain Detectron2: ``DefaultPredictor`` of that configuration.

    Args:
        cfg: the student's configuration.
        model: the student.
        example: (3, H, W), an image with detections; not used here.
        folder: to write to.
        final: the folder that the files will be moved to.

    Returns:
        the files, and the student read from them.
    """
    del example
    weights, config = folder / "model.pth", folder / "config.yaml"
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict()}, buffer)
    write_atomically(weights, buffer.getbuffer())
    plain = plain_config(cfg)
    plain.MODEL.WEIGHTS = os.path.abspath(final / weights.name)
    write_atomically(config, plain.dump().encode())

    read = get_cfg()
    if needs_kd_det(cfg):
        add_kd_config(read)
    merge_config(read, str(config), (), source="config.yaml")
    read.MODEL.WEIGHTS = str(weights)
    predictor = DefaultPredictor(read)
    return [weights, config], lambda image: detect(predictor.model, image)


def write_torchscript(
    cfg: CfgNode, model: GeneralizedRCNN, example: Tensor, folder: Path, final: Path
) -> tuple[list[Path], Detector]:
    """``model.ts``, which needs only torch and torchvision, and ``model.json``, which describes inputs and outputs.

    Arguments and results are those of ``write_checkpoint``. The detector raises ``RuntimeError`` for an image that the
    trace cannot process.

    Raises:
        SetupError: torch cannot trace this student.
    """
    del final
    path, description = folder / "model.ts", folder / "model.json"
    buffer = io.BytesIO()
    try:
        with torch.no_grad(), _quiet(), _traceable(model):
            traced = torch.jit.trace(_adapted(model, example), (example,), check_trace=False)
            torch.jit.save(traced, buffer)
            write_atomically(path, buffer.getbuffer())
            loaded = torch.jit.load(str(path))
    except TRACE_ERRORS as error:
        raise SetupError(
            f"--format torchscript: torch cannot trace this student ({first_line(error)}). Take --format checkpoint."
        ) from error
    write_json(description, describe(cfg, _found(model, example)))
    return [path, description], lambda image: _detections(loaded(image))


def write_onnx(
    cfg: CfgNode, model: GeneralizedRCNN, example: Tensor, folder: Path, final: Path
) -> tuple[list[Path], Detector]:
    """``model.onnx`` for images of any size, and ``model.json`` as for TorchScript.

    Arguments, results and errors are those of ``write_torchscript``.
    """
    import onnxruntime

    del final
    path, description = folder / "model.onnx", folder / "model.json"
    content = describe(cfg, _found(model, example))
    names = content["outputs"]
    buffer: Any = io.BytesIO()  # torch's annotation has paths only, for the other exporter
    try:
        with _quiet(), _traceable(model):
            # The exporter based on torch.export does not support the detector's data-dependent shapes.
            torch.onnx.export(
                _adapted(model, example),
                (example,),
                buffer,
                dynamo=False,
                opset_version=ONNX_OPSET,
                input_names=["image"],
                output_names=names,
                dynamic_axes={"image": {1: "height", 2: "width"}, **{name: {0: "detections"} for name in names}},
            )
        session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    except Exception as error:  # both raise many kinds without a common base
        raise SetupError(
            f"--format onnx: torch cannot export this student ({first_line(error)}). Take --format "
            "torchscript or checkpoint."
        ) from error
    write_atomically(path, buffer.getbuffer())
    write_json(description, content)

    def run(image: Tensor) -> Detections:
        try:
            outputs = session.run(None, {"image": image.numpy()})
        except Exception as error:  # onnxruntime's own errors have no common base
            raise RuntimeError(first_line(error)) from error
        return _detections([torch.as_tensor(output) for output in outputs])

    return [path, description], run


def check_onnx_packages() -> None:
    """Raises ``SetupError`` unless the packages that ``write_onnx`` needs are installed."""
    lacking = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if lacking:
        raise SetupError(f"--format onnx needs {' and '.join(lacking)}. Install: pip install {' '.join(lacking)}")


def describe(cfg: CfgNode, found: Instances) -> dict[str, Any]:
    """The content of ``model.json``: inputs and outputs of a trace, for users without its configuration.

    Args:
        cfg: the student's configuration.
        found: the student's detections on an image.

    Returns:
        input, channels, sizes and device; the outputs with their shapes and units; the names of the classes, None if
        they are not known, and their number.
    """
    outputs = [name for name in OUTPUTS if found.has(name)]
    return {
        "input": "(3, height, width), float32, values 0-255, resized but not normalised",
        "channels": cfg.INPUT.FORMAT,
        "shortest_edge": cfg.INPUT.MIN_SIZE_TEST,
        "longest_edge": cfg.INPUT.MAX_SIZE_TEST,
        "device": cfg.MODEL.DEVICE,
        "outputs": outputs,
        "units": {**EDGES, **{name: OUTPUTS[name] for name in outputs}},
        "boxes": "x0, y0, x1, y1 in pixels of the input",
        "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        "classes": checked_class_names(cfg),
        "lowest_score": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
    }


def needs_kd_det(cfg: CfgNode) -> bool:
    """Whether the student has a part that plain Detectron2 cannot build."""
    return cfg.MODEL.BACKBONE.NAME == TIMM_BACKBONE


def first_line(error: Exception) -> str:
    """The message of an error without the traces and graphs that torch appends."""
    return _shortened([*_lines(error), type(error).__name__][0])


def last_line(error: Exception) -> str:
    """The message of an error without the code that TorchScript puts before it."""
    return _shortened([type(error).__name__, *_lines(error)][-1])


def _lines(error: Exception) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]


def _shortened(line: str) -> str:
    return line if len(line) <= REASON_LENGTH else f"{line[:REASON_LENGTH]}..."


@contextmanager
def _quiet() -> Iterator[None]:
    # Tracing warns of every branch in Python, and that it is deprecated. The result is compared with the model.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _traceable(model: GeneralizedRCNN) -> Iterator[None]:
    """Makes a Cascade traceable: in Detectron2 0.6 its stages scale their gradients by a Python function, which a trace
    cannot contain. Upstream's main branch does so only in training."""
    heads = model.roi_heads
    if not isinstance(heads, CascadeROIHeads):
        yield
        return

    def run_stage(features: list[Tensor], proposals: list[Instances], stage: int) -> tuple[Tensor, Tensor]:
        pooled = heads.box_pooler(features, [instances.proposal_boxes for instances in proposals])
        return heads.box_predictor[stage](heads.box_head[stage](pooled))

    heads._run_stage = run_stage
    try:
        yield
    finally:
        del heads._run_stage


def _adapted(model: GeneralizedRCNN, example: Tensor) -> TracingAdapter:
    def infer(model: GeneralizedRCNN, batched_inputs: list[dict[str, Tensor]]) -> tuple[Tensor, ...]:
        (instances,) = model.inference(batched_inputs, do_postprocess=False)
        fields = (instances.get(name) for name in OUTPUTS if instances.has(name))
        return tuple(field if isinstance(field, Tensor) else field.tensor for field in fields)

    return TracingAdapter(model, [{"image": example}], infer).eval()


@torch.no_grad()
def _found(model: GeneralizedRCNN, example: Tensor) -> Instances:
    (instances,) = model.inference([{"image": example}], do_postprocess=False)
    return instances


def _detections(outputs: list[Tensor] | tuple[Tensor, ...]) -> Detections:
    boxes, scores, classes = (output.cpu() for output in outputs[:3])
    return Detections(boxes, scores, classes)
