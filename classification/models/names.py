"""Names of models in the names of files."""

from __future__ import annotations

import re

# What the papers on distillation between families call the libraries' models. A name without its tag of pretrained
# weights is a student's, which starts from random ones.
NICKNAMES = {
    "torchvision/resnet18": "r18",
    "torchvision/resnet34": "r34",
    "torchvision/resnet50.IMAGENET1K_V1": "r50",
    "timm/resnet50.a1_in1k": "r50_a1",
    "timm/mobilenetv1_100": "mv1",
    "timm/mobilenetv2_100": "mv2",
    "timm/swin_tiny_patch4_window7_224.ms_in1k": "swin_t",
    "timm/vit_small_patch16_224.augreg_in21k_ft_in1k": "vit_s",
    "timm/mixer_b16_224.goog_in21k_ft_in1k": "mixer_b16",
    "timm/convnext_tiny.fb_in1k": "convnext_t",
    "timm/deit_tiny_patch16_224": "deit_t",
    "timm/deit_tiny_patch16_224.fb_in1k": "deit_t",
    "timm/resmlp_12_224": "resmlp_s12",
    "timm/test_vit": "vit",
}


def short_name(name: str) -> str:
    """What file and configuration names call the model.

    ``res32x4`` for ``resnet32x4``, ``r18`` for ``torchvision/resnet18``, otherwise the name with ``/`` and ``.``
    replaced by ``_``. Only the CIFAR networks called ``resnet...`` in lower case and the papers' models are shortened,
    so that no two networks share a name.
    """
    return NICKNAMES.get(name) or re.sub(r"^resnet(?=\d)", "res", re.sub(r"[/.]", "_", name))
