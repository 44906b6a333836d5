"""The student written in each format, and read again as a user of that format reads it."""

from __future__ import annotations

import importlib.util
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
from kd_det.export.description import OUTPUTS, describe
from kd_det.export.detections import Detections, Detector, detect

ONNX_OPSET = 16  # the first with the RoIAlign that Detectron2 means
# What torch raises for a model that it cannot trace or save, and the model itself for what the trace puts in.
TRACE_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, AssertionError)
REASON_LENGTH = 200


def write_checkpoint(
    cfg: CfgNode, model: GeneralizedRCNN, example: Tensor, folder: Path, final: Path
) -> tuple[list[Path], Detector]:
    """``model.pth`` and ``config.yaml`` for plain Detectron2: ``DefaultPredictor`` of that configuration.

    Args:
        cfg: the student's configuration.
        model: the student.
        example: (3, H, W), an image on which it finds something; not looked at here.
        folder: where to write.
        final: the folder that the files will be moved to.

    Returns:
        the files, and the student as read from them.
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
    """``model.ts``, which needs torch and torchvision alone, and ``model.json``, which says what goes in and out.

    Arguments and results are those of ``write_checkpoint``; the detector raises ``RuntimeError`` for an image that the
    file does not take.

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
    buffer = io.BytesIO()
    try:
        with _quiet(), _traceable(model):
            # The exporter on torch.export does not take the detector's data-dependent shapes; the one on tracing does.
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
    except Exception as error:  # both raise many kinds, without a common base, for what they do not know
        raise SetupError(
            f"--format onnx: torch's exporter does not take this student ({first_line(error)}). Take --format "
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
    """Raises ``SetupError`` unless the packages that ``write_onnx`` needs are there."""
    lacking = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if lacking:
        raise SetupError(f"--format onnx needs {' and '.join(lacking)}. Install: pip install {' '.join(lacking)}")


def needs_kd_det(cfg: CfgNode) -> bool:
    """Whether the student has a part that plain Detectron2 cannot build."""
    return cfg.MODEL.BACKBONE.NAME == TIMM_BACKBONE


def first_line(error: Exception) -> str:
    """What an error says before the traces and graphs that torch adds to it."""
    return _shortened([*_lines(error), type(error).__name__][0])


def last_line(error: Exception) -> str:
    """What an error says after the code that TorchScript puts before it."""
    return _shortened([type(error).__name__, *_lines(error)][-1])


def _lines(error: Exception) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]


def _shortened(line: str) -> str:
    return line if len(line) <= REASON_LENGTH else f"{line[:REASON_LENGTH]}..."


@contextmanager
def _quiet() -> Iterator[None]:
    # Tracing warns of every branch it takes and of its own age. What it makes is compared with the model instead.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _traceable(model: GeneralizedRCNN) -> Iterator[None]:
    """Lets a Cascade be traced: in Detectron2 0.6 its stages scale their gradients by a Python function, which no trace
    can hold. Upstream's main branch does so in training alone."""
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
