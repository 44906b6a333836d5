"""The student written in each format, and read again as a user of that format reads it."""

from __future__ import annotations

import importlib.util
import io
import json
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
from torch import Tensor

from kd_det.common.config_merge import merge_config
from kd_det.common.errors import SetupError
from kd_det.common.files import write_atomically
from kd_det.config import TIMM_BACKBONE, add_kd_config, plain_config
from kd_det.export.detections import Detections, Detector, detect

# In this order, those that the student has.
OUTPUTS = ("pred_boxes", "scores", "pred_classes", "pred_masks", "pred_keypoints")
ONNX_OPSET = 16  # the first with the RoIAlign that Detectron2 means


def write_checkpoint(
    cfg: CfgNode, model: GeneralizedRCNN, example: Tensor, folder: Path
) -> tuple[list[Path], Detector]:
    """``model.pth`` and ``config.yaml`` for plain Detectron2: ``DefaultPredictor`` of that configuration."""
    del example
    weights, config = folder / "model.pth", folder / "config.yaml"
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict()}, buffer)
    write_atomically(str(weights), buffer.getbuffer())
    plain = plain_config(cfg)
    plain.MODEL.WEIGHTS = os.path.abspath(weights)
    write_atomically(str(config), plain.dump().encode())

    read = get_cfg()
    if needs_kd_det(cfg):
        add_kd_config(read)
    merge_config(read, str(config), (), source="config.yaml")
    predictor = DefaultPredictor(read)
    return [weights, config], lambda image: detect(predictor.model, image)


def write_torchscript(
    cfg: CfgNode, model: GeneralizedRCNN, example: Tensor, folder: Path
) -> tuple[list[Path], Detector]:
    """``model.ts``, which needs torch and torchvision alone, and ``model.json``, which says what goes in and out."""
    path = folder / "model.ts"
    buffer = io.BytesIO()
    with torch.no_grad(), _quiet():
        traced = torch.jit.trace(_adapted(model, example), (example,), check_trace=False)
        torch.jit.save(traced, buffer)
    write_atomically(str(path), buffer.getbuffer())

    with _quiet():
        loaded = torch.jit.load(str(path))
    return [path, _describe(cfg, model, example, folder)], lambda image: _detections(loaded(image))


def write_onnx(cfg: CfgNode, model: GeneralizedRCNN, example: Tensor, folder: Path) -> tuple[list[Path], Detector]:
    """``model.onnx`` for images of any size, and ``model.json`` as for TorchScript.

    Raises:
        SetupError: torch's exporter does not take this student.
    """
    import onnxruntime

    path = folder / "model.onnx"
    description = _describe(cfg, model, example, folder)
    names = json.loads(description.read_text())["outputs"]
    buffer = io.BytesIO()
    try:
        with _quiet():
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
    except Exception as error:  # the exporter raises many kinds for what it does not know
        raise SetupError(
            f"--format onnx: torch's exporter does not take this student ({error}). Take torchscript instead."
        ) from error
    write_atomically(str(path), buffer.getbuffer())

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Detections:
        return _detections([torch.as_tensor(output) for output in session.run(None, {"image": image.numpy()})])

    return [path, description], run


def check_onnx_packages() -> None:
    """Raises ``SetupError`` unless the packages that ``write_onnx`` needs are there."""
    lacking = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if lacking:
        raise SetupError(f"--format onnx needs {' and '.join(lacking)}. Install: pip install {' '.join(lacking)}")


@contextmanager
def _quiet() -> Iterator[None]:
    # Tracing warns of every branch it takes and of its own age. What it makes is compared with the model instead.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def needs_kd_det(cfg: CfgNode) -> bool:
    """Whether the student has a part that plain Detectron2 cannot build."""
    return cfg.MODEL.BACKBONE.NAME == TIMM_BACKBONE


def _adapted(model: GeneralizedRCNN, example: Tensor) -> TracingAdapter:
    def infer(model: GeneralizedRCNN, batched_inputs: list[dict[str, Tensor]]) -> tuple[Tensor, ...]:
        (instances,) = model.inference(batched_inputs, do_postprocess=False)
        fields = (instances.get(name) for name in OUTPUTS if instances.has(name))
        return tuple(field if isinstance(field, Tensor) else field.tensor for field in fields)

    return TracingAdapter(model, [{"image": example}], infer).eval()


def _describe(cfg: CfgNode, model: GeneralizedRCNN, example: Tensor, folder: Path) -> Path:
    with torch.no_grad():
        (instances,) = model.inference([{"image": example}], do_postprocess=False)
    path = folder / "model.json"
    description = {
        "input": "(3, height, width), float32, values 0-255, resized but not normalised",
        "channels": cfg.INPUT.FORMAT,
        "shortest_edge": cfg.INPUT.MIN_SIZE_TEST,
        "longest_edge": cfg.INPUT.MAX_SIZE_TEST,
        "device": cfg.MODEL.DEVICE,
        "outputs": [name for name in OUTPUTS if instances.has(name)],
        "boxes": "x0, y0, x1, y1 in pixels of the input",
    }
    write_atomically(str(path), (json.dumps(description, indent=2) + "\n").encode())
    return path


def _detections(outputs: list[Tensor] | tuple[Tensor, ...]) -> Detections:
    boxes, scores, classes = (output.cpu() for output in outputs[:3])
    return Detections(boxes, scores, classes)
