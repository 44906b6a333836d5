"""Detectors small enough for a test: a thin ResNet-50-FPN for 3 classes, its teacher, and a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks

import kd_det.modeling  # noqa: F401  (registers the models)
from kd_det.config import load_config, plain_config
from kd_det.modeling.regions import SharedRegions
from kd_det.teacher.box_stages import BoundBoxStage, box_stages

TINY = [
    "MODEL.DEVICE", "cpu", "MODEL.MASK_ON", False, "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
    "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]],
    "MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"], "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50,
    "MODEL.RPN.PRE_NMS_TOPK_TEST", 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 40, "MODEL.RPN.POST_NMS_TOPK_TEST", 40,
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 3,
    "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
    "MODEL.WEIGHTS", "", "DATASETS.TRAIN", [], "DATASETS.TEST", [],
]  # fmt: skip


def teacher_files(folder: Path, *overrides: Any) -> tuple[str, str]:
    """Writes a random plain teacher: the paths of its configuration and its checkpoint."""
    cfg = plain_config(load_config("", [*TINY, "MODEL.FPN.OUT_CHANNELS", 24, *overrides]))
    torch.manual_seed(7)
    model = build_model(cfg)
    sharpen(model)
    config, weights = folder / "teacher.yaml", folder / "teacher.pth"
    config.write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, weights)
    return str(config), str(weights)


def student_config(teacher: tuple[str, str], *overrides: Any, terms: tuple[str, ...] = ("dkd",)) -> CfgNode:
    distilling = [
        "MODEL.META_ARCHITECTURE", "DistillRCNN", "MODEL.ROI_HEADS.NAME", "DistillROIHeads", "KD.TERMS", terms,
        "KD.TEACHER.CONFIG_FILE", teacher[0], "KD.TEACHER.WEIGHTS", teacher[1],
        "KD.TEACHER.DTYPE", "float32",  # not auto: the same values on every machine
    ]  # fmt: skip
    return load_config("", [*TINY, *distilling, *overrides])


def build(cfg: CfgNode, seed: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = build_model(cfg)
    sharpen(model)
    return model.train()


def sharpen(model: torch.nn.Module) -> None:
    """Sizes the class layer so that its logits differ by a few units: random frozen networks have large features."""
    with torch.no_grad():
        for stage in box_stages(model.roi_heads):
            stage.predictor.cls_score.weight.normal_(std=1e-4)


def batch(count: int = 2, size: tuple[int, int] = (64, 96), seed: int = 3, objects: int = 3) -> list[dict[str, Any]]:
    """Images with random pixels and ``objects`` random boxes with masks, as Detectron2's mapper gives them."""
    rng = torch.Generator().manual_seed(seed)
    return [_item(number, size, rng, objects) for number in range(count)]


def _item(number: int, size: tuple[int, int], rng: torch.Generator, objects: int) -> dict[str, Any]:
    height, width = size
    corner = torch.rand(objects, 2, generator=rng) * torch.tensor([width - 34.0, height - 34.0])
    boxes = torch.cat([corner, corner + 10 + 24 * torch.rand(objects, 2, generator=rng)], dim=1)
    instances = Instances(size)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(0, 3, (objects,), generator=rng)
    instances.gt_masks = PolygonMasks(
        [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.double().tolist()]
    )
    image = torch.randint(0, 256, (3, height, width), generator=rng, dtype=torch.uint8)
    return {
        "image": image,
        "instances": instances,
        "height": height,
        "width": width,
        "file_name": f"image_{number}.png",
    }


def shared_regions(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, boxes: list[Boxes] | None = None, **others: Any
) -> SharedRegions:
    """Regions with these logits; without ``student_stage`` and ``teacher_stage`` no term can ask for more of them."""
    nothing: Any = None
    stages = dict.fromkeys(("student_stage", "teacher_stage"), BoundBoxStage(nothing, [], nothing, nothing))
    given = [Boxes(torch.zeros(len(labels), 4))] if boxes is None else boxes
    return SharedRegions(student, teacher, labels, given, **{**stages, **others})


def loss_gradients(model: torch.nn.Module, inputs: list[dict[str, Any]], seed: int = 5) -> tuple[dict, dict]:
    """Losses by name and gradients by parameter of one training step's forward and backward."""
    torch.manual_seed(seed)
    model.zero_grad()
    losses = model(inputs)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, gradients
