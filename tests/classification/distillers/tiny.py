"""Networks small enough for a test, with the protocol of classification.models, and what distillers are built from."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from classification.config import get_config
from classification.data.loaders import Batch
from classification.distillers import Distiller, NetworkPair, build_distiller
from classification.models import ReusedClassifier
from classification.models.protocol import ModelOutput

CLASSES = 5


class Tiny(nn.Module):
    """Stages of ``widths``, each half the size of the one before, from the image's own; float64.

    BatchNorms are in evaluation mode, as they are made: the identity.
    """

    pools_linearly = True

    def __init__(self, widths: tuple[int, ...], classes: int = CLASSES, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        pairs = zip((3, *widths[:-1]), widths, (1, *(2 for _ in widths[1:])), strict=True)
        self.stages = nn.ModuleList(nn.Conv2d(i, o, 3, stride, 1) for i, o, stride in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width).eval() for width in widths)
        self.classifier = nn.Linear(widths[-1], classes)
        self.double()

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | ModelOutput:
        maps, before = [], []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            before.append(norm(stage(x)))
            x = before[-1].relu()
            maps.append(x)
        pooled = x.mean((2, 3))
        logits = self.classifier(pooled)
        return ModelOutput(logits, x, pooled, maps, before) if return_features else logits

    def norms_before_relu(self):
        return list(self.norms)


def student(**settings) -> Tiny:
    return Tiny((4, 6, 8), **settings)


def teacher(**settings) -> Tiny:
    return Tiny((5, 7, 9), **{"seed": 1, **settings})


def networks_for(name: str) -> tuple[nn.Module, nn.Module]:
    """A student and a teacher that the method ``name`` takes."""
    if name == "kdsvd":  # the channels must be equal
        return student(), student(seed=1)
    if name == "simkd":
        return reusing(student(), teacher()), teacher()
    return student(), teacher()


def reusing(body: Tiny, reused: Tiny, size: int = 4) -> ReusedClassifier:
    """``body`` with the classifier of ``reused``."""
    channels = body.classifier.in_features, reused.classifier.in_features
    settings = {"student_channels": channels[0], "teacher_channels": channels[1], "size": (size, size), "reduction": 2}
    model = ReusedClassifier(body, reused.classifier.out_features, **settings).double().eval()
    model.classifier.load_state_dict(reused.classifier.state_dict())
    return model


def batch(size: int = 4, side: int = 16, seed: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, side, side, generator=generator, dtype=torch.float64)
    return Batch(images, torch.randint(CLASSES, (size,), generator=generator), torch.arange(size))


def config(name: str, *overrides: object) -> CfgNode:
    cfg = get_config()
    cfg.merge_from_list(["DISTILLER", name, "STUDENT.NAME", "tiny", "TEACHER.NAME", "large", *overrides])
    return cfg


class Case:
    """A distiller, its two networks, and what they say about a batch."""

    def __init__(self, name: str, *overrides: object, networks=None, size: int = 4, side: int = 16) -> None:
        self.student, self.teacher = networks or networks_for(name)
        self.batch = batch(size, side)
        probe = batch(2, side, seed=3).images
        with torch.no_grad():
            pair = NetworkPair(self.student, self.teacher, *(m(probe, return_features=True) for m in self.models), 100)
            self.teacher_out: ModelOutput = self.teacher(self.batch.images, return_features=True)
        torch.manual_seed(0)
        self.distiller: Distiller = build_distiller(config(name, *overrides), pair).double()
        self.student_out: ModelOutput = self.student(self.batch.images, return_features=True)

    @property
    def models(self) -> tuple[nn.Module, nn.Module]:
        return self.student, self.teacher

    def losses(self) -> dict[str, Tensor]:
        return self.distiller(self.batch, self.student_out, self.teacher_out)
