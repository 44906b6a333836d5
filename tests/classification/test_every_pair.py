"""Every method takes a step on every family of models: finite losses, and gradients wherever they are expected."""

from __future__ import annotations

import pytest
import torch

from classification.config import load_config
from classification.data.loaders import Batch
from classification.distillers import DISTILLERS, NetworkPair, build_distiller
from classification.models import create_model
from classification.networks import FrozenTeacher
from classification.step import TrainingStep
from kd_det.common.errors import SetupError

CLASSES, SAMPLES = 10, 4
# Teacher and student of one family, so that methods which go stage by stage apply.
FAMILIES = {
    "resnet": ("resnet14", "resnet8"),
    "wide resnet": ("wrn_16_2", "wrn_16_1"),
    "vgg": ("vgg11", "vgg8"),
    "bottleneck": ("ResNet50", "ResNet50"),
    "MobileNetV2": ("MobileNetV2", "MobileNetV2"),
    "ShuffleV1": ("ShuffleV1", "ShuffleV1"),
    "ShuffleV2": ("ShuffleV2", "ShuffleV2"),
    "torchvision": ("torchvision/resnet18", "torchvision/resnet18"),
    "timm CNN": ("timm/resnet10t", "timm/resnet10t"),
    "timm ViT": ("timm/test_vit", "timm/test_vit"),
    "timm Mixer": ("timm/mixer_s32_224", "timm/mixer_s32_224"),
    "ViT to CNN": ("timm/test_vit", "resnet8"),
}
SIZES = {"timm ViT": 160, "ViT to CNN": 160, "timm Mixer": 224, "torchvision": 64, "timm CNN": 64}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    teacher_name, student_name = FAMILIES[request.param]
    size = SIZES.get(request.param, 32)
    torch.manual_seed(0)
    student = create_model(student_name, CLASSES, image_size=size)
    teacher = FrozenTeacher(create_model(teacher_name, CLASSES, image_size=size), (0.0,) * 3, (1.0,) * 3)
    images = torch.randn(SAMPLES, 3, size, size)
    batch = Batch(images, torch.tensor([1, 1, 2, 3]), torch.arange(SAMPLES))
    student.eval()
    with torch.no_grad():
        student_out = student(images[:2], return_features=True)
    student.train()
    return NetworkPair(student, teacher.model, student_out, teacher(images[:2]), 100), teacher, batch


def suits(name: str, pair: NetworkPair) -> bool:
    """Whether the protocol has what the method needs; if not, it must say so."""
    both = (pair.student, pair.teacher)
    if name in ("sdd", "catkd"):
        return all(model.pools_linearly and model.classifier is not None for model in both)
    if name in ("at", "reviewkd", "nst", "vid"):
        return len(pair.student_out.stages) == len(pair.teacher_out.stages)
    if name == "kdsvd":
        ours, theirs = ([stage.shape[1] for stage in out.stages] for out in (pair.student_out, pair.teacher_out))
        return ours == theirs and len(ours) > 1
    if name == "ofd":
        norms = pair.teacher.norms_before_relu()
        return bool(norms) and all(norm is not None for norm in norms)
    if name == "simkd":  # build_networks gives the student a classifier first
        return False
    if name == "mcld":
        return bool(pair.student_out.logits.any())
    return True


@pytest.mark.parametrize("name", sorted(DISTILLERS))
def test_a_step(pair, name):
    description, teacher, batch = pair
    side = min(*description.student_out.map.shape[2:], *description.teacher_out.map.shape[2:])
    cfg = load_config("", ["DISTILLER", name, "DATA.BATCH_SIZE", str(SAMPLES)])
    cfg.SDD.SCALES = tuple(scale for scale in (1, 2, 4) if scale <= side)
    if not suits(name, description):
        with pytest.raises(SetupError, match=name):
            build_distiller(cfg, description)
        return
    step = TrainingStep(description.student, build_distiller(cfg, description), 1.0)
    step.zero_grad()
    teacher_out = teacher(batch.images) if step.distiller.needs_teacher else None
    losses, logits = step.train()(batch, teacher_out, None, 1.0)
    assert logits.shape == (SAMPLES, CLASSES) and losses
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values()), losses
    sum(losses.values()).backward()
    for owner in (step.student, step.distiller):
        for parameter_name, parameter in owner.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    assert any(parameter.grad.abs().sum() > 0 for parameter in step.student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
