"""Pretrains a detector's backbone on digit classification, as backbones for COCO are pretrained on ImageNet.

Only the training scans and the training parts of the photographs are used.

python -m kd_det.studies.warm_up --config-file digits_det/teacher.yaml --output output/warm_up.pth
"""

from __future__ import annotations

import argparse
import io
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn
from torch.nn import functional as F

from kd_det.common.command_line import add_config_file, command_parser, parse_arguments
from kd_det.common.errors import one_line_errors
from kd_det.common.files import write_atomically
from kd_det.config import load_config
from kd_det.data.digits_rendering import SceneSettings, paste, photographs, random_background, random_opacity, scans
from kd_det.data.digits_scenes import CLASSES

logger = logging.getLogger(__name__)

EMPTY = len(CLASSES)  # the class of crops without a digit


@dataclass(frozen=True)
class WarmUpSettings:
    """Length and data of a warm-up.

    Attributes:
        iterations: number of AdamW steps.
        batch_size: crops per step.
        crops: number of different crops, rendered once.
        crop_size: height and width of a crop, pixels.
        empty_share: share of the crops without a digit, a class of their own.
        max_lr: peak of the one-cycle learning rate.
        seed: of the crops, their order and the initial weights.
    """

    iterations: int = 150
    batch_size: int = 64
    crops: int = 6000
    crop_size: int = 48
    empty_share: float = 0.1
    max_lr: float = 0.001
    seed: int = 0


class PooledClassifier(nn.Module):
    """A linear classifier on the averages of all feature maps of a backbone.

    Args:
        backbone: module that maps images (B, 3, H, W) to a dict of maps (B, C_i, H_i, W_i).
        shapes: the maps' shapes by name, as ``backbone.output_shape()`` has them.
        num_classes: number of logits.
    """

    def __init__(self, backbone: nn.Module, shapes: dict[str, ShapeSpec], num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.linear = nn.Linear(sum(shape.channels for shape in shapes.values()), num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        pooled = [level.mean(dim=(2, 3)) for level in self.backbone(images).values()]
        logits: torch.Tensor = self.linear(torch.cat(pooled, dim=1))
        return logits


def draw_crops(settings: WarmUpSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops (N, 3, S, S) uint8 RGB, with a digit near the middle or without one, and their classes (N,) int64."""
    scene = SceneSettings(image_size=settings.crop_size)
    rng = np.random.default_rng((settings.seed, 2))
    inks, labels = scans("train")
    photos = photographs("train")
    crops = np.empty((settings.crops, settings.crop_size, settings.crop_size, 3), dtype=np.uint8)
    classes = np.full(settings.crops, EMPTY, dtype=np.int64)
    for number in range(settings.crops):
        canvas = random_background(photos, scene, rng)
        if rng.random() >= settings.empty_share:
            index = int(rng.integers(len(labels)))
            opacity = random_opacity(inks[index], scene, rng)
            left, top = (_near_middle(extent, settings.crop_size, rng) for extent in opacity.shape[::-1])
            paste(canvas, opacity, left, top, scene, rng)
            classes[number] = labels[index]
        crops[number] = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
    return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(classes)


def _near_middle(extent: int, size: int, rng: np.random.Generator) -> int:
    room = size - extent
    return int(np.clip(room // 2 + rng.integers(-8, 9), 0, room))


def warm_up_backbone(cfg: CfgNode, output: str | Path, settings: WarmUpSettings | None = None) -> float:
    """Trains the backbone that ``cfg`` describes on digit classification, and saves its weights.

    Args:
        cfg: a detector's configuration. Its backbone, pixel mean and std, channel order and device are used.
        output: the checkpoint to write, for ``MODEL.WEIGHTS``.
        settings: ``WarmUpSettings()`` by default.

    Returns:
        The accuracy on the last tenth of the training batches, between 0 and 1.
    """
    settings = settings or WarmUpSettings()
    torch.manual_seed(settings.seed)
    images, classes = draw_crops(settings)
    if cfg.INPUT.FORMAT == "BGR":
        images = images.flip(1)
    mean = torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1)
    std = torch.tensor(cfg.MODEL.PIXEL_STD).view(-1, 1, 1)
    backbone = build_backbone(cfg)
    # Without an FPN's own layers: they learn quickly and would only hide the trunk from the classifier.
    trunk = getattr(backbone, "bottom_up", backbone)
    classifier = PooledClassifier(trunk, trunk.output_shape(), len(CLASSES) + 1)
    classifier.to(cfg.MODEL.DEVICE).train()
    optimizer = torch.optim.AdamW(classifier.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.max_lr, settings.iterations)
    order = torch.Generator().manual_seed(settings.seed)
    hits: list[float] = []
    start = time.perf_counter()
    for step in range(1, settings.iterations + 1):
        chosen = torch.randint(len(classes), (settings.batch_size,), generator=order)
        batch = ((images[chosen].float() - mean) / std).to(cfg.MODEL.DEVICE)
        target = classes[chosen].to(cfg.MODEL.DEVICE)
        logits = classifier(batch)
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        hits.append((logits.argmax(1) == target).float().mean().item())
        if step % 50 == 0 or step == settings.iterations:
            seconds = (time.perf_counter() - start) / step
            accuracy = np.mean(hits[-50:])
            progress = f"warm-up {step}/{settings.iterations}"
            logger.info("%s: accuracy %.3f, %.3f s/iter", progress, accuracy, seconds)
    prefix = "backbone.bottom_up." if trunk is not backbone else "backbone."
    weights = {prefix + name: value.cpu() for name, value in trunk.state_dict().items()}
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save({"model": weights}, content)
    write_atomically(output, content.getbuffer())
    return float(np.mean(hits[-max(1, settings.iterations // 10) :]))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: writes a checkpoint for MODEL.WEIGHTS."""
    default = WarmUpSettings()
    parser = command_parser(
        "python -m kd_det.studies.warm_up",
        "Warms a detector's backbone up on digit classification and writes it for MODEL.WEIGHTS.",
        "python -m kd_det.studies.warm_up --config-file digits_det/teacher.yaml --output output/warm_up.pth",
    )
    add_config_file(parser, required=True, help="the detector's configuration")
    parser.add_argument("--output", required=True, help="the checkpoint to write")
    parser.add_argument("--iterations", type=int, default=default.iterations)
    parser.add_argument("--max-lr", type=float, default=default.max_lr)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configuration")
    with one_line_errors():
        args = parse_arguments(parser, arguments)
        logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%m/%d %H:%M:%S")
        settings = WarmUpSettings(iterations=args.iterations, max_lr=args.max_lr, seed=args.seed)
        warm_up_backbone(load_config(args.config_file, args.opts), args.output, settings)


if __name__ == "__main__":
    main()
