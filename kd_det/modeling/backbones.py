"""``build_timm_fpn_backbone``: an FPN on any timm network with maps at strides 4 to 32.

timm is imported only when such a backbone is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from kd_det.common.errors import SetupError, did_you_mean
from kd_det.pretrained.weights import import_timm

# Detectron2's names of the maps at these strides: the IN_FEATURES of a ResNet's configuration are valid here too.
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
NORMS = ("FrozenBN", "BN")


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's FPN, p2 to p6, on the timm network ``MODEL.TIMM.NAME``.

    ``MODEL.TIMM.NORM`` freezes its BatchNorm or trains it; ``MODEL.FPN.*`` have the same meaning as for a ResNet. The
    weights are random until a checkpoint is loaded: ``MODEL.WEIGHTS timm://NAME`` loads timm's own.

    Raises:
        SetupError: see ``TimmBackbone``; or ``MODEL.BACKBONE.FREEZE_AT`` is not 0.
    """
    if cfg.MODEL.BACKBONE.FREEZE_AT != 0:
        raise SetupError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}: timm's networks have no common stages to "
            "freeze. Set it to 0; MODEL.TIMM.NORM FrozenBN freezes the normalisation."
        )
    bottom_up = TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        norm=cfg.MODEL.TIMM.NORM,
        out_features=cfg.MODEL.FPN.IN_FEATURES,
        in_channels=input_shape.channels,
    )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


class TimmBackbone(Backbone):
    """A timm network as a Detectron2 backbone: from (N, C, H, W) to maps named "res2" to "res5".

    Args:
        name: timm's name, such as "mobilenetv2_100".
        norm: "FrozenBN" (statistics and scale fixed) or "BN" (trained). Other kinds of normalisation are unchanged.
        out_features: which of "res2", "res3", "res4", "res5" (strides 4, 8, 16, 32) to return.
        in_channels: C.

    Raises:
        SetupError: timm is not installed or does not have the name, or the network lacks one of the strides, returns
            maps that are not (N, C, H, W), or takes images of one size only.
    """

    def __init__(
        self, name: str, *, norm: str = "FrozenBN", out_features: Sequence[str] = tuple(STRIDES), in_channels: int = 3
    ) -> None:
        super().__init__()
        _check_names(name, norm, out_features)
        self.name = name
        strides = _create(name, features_only=True, in_chans=in_channels).feature_info.reduction()
        chosen = _indices(name, strides, [STRIDES[feature] for feature in out_features])
        body = _create(name, features_only=True, in_chans=in_channels, out_indices=chosen)
        self._out_features = list(out_features)
        self._out_feature_strides = {feature: STRIDES[feature] for feature in out_features}
        self._out_feature_channels = dict(zip(out_features, body.feature_info.channels(), strict=True))
        _check_maps(name, body, self.output_shape(), in_channels)
        self.body = import_timm().layers.freeze_batch_norm_2d(body) if norm == "FrozenBN" else body

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._out_features, self.body(images), strict=True))

    def from_timm(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of this backbone, from the weights of timm's classifier of the same name.

        Args:
            state: the classifier's state dict, as timm publishes it; its last layers may be missing or may have a
                different number of classes.

        Raises:
            SetupError: the entries are those of a different network.
        """
        classifier = _create(self.name).state_dict()
        # timm's feature extractors call "stages.0" of the classifier "stages_0", and some wrap it as "model".
        ours = {_plain(name.removeprefix("model.")): name for name in self.body.state_dict()}
        faults = [f"{name} is not one of its entries" for name in state if name not in classifier]
        found = {}
        for name in classifier.keys() & state.keys():
            if _plain(name) in ours:
                found[ours[_plain(name)]] = state[name]
        for name, value in self.body.state_dict().items():
            if name not in found and not name.endswith("num_batches_tracked"):
                faults.append(f"{name} is missing")
            elif name in found and found[name].shape != value.shape:
                faults.append(f"{name} is {tuple(value.shape)} in it and {tuple(found[name].shape)} in the file")
        if faults:
            raise SetupError(
                f"MODEL.WEIGHTS: the timm weights are not those of MODEL.TIMM.NAME {self.name!r}: "
                f"{'; '.join(faults[:5])}" + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "") + "."
            )
        return {f"body.{name}": value for name, value in found.items()}


def _plain(name: str) -> str:
    return name.replace("_", ".")


def _create(name: str, **settings: Any) -> Any:
    return import_timm().create_model(name, pretrained=False, **settings)


def _check_names(name: str, norm: str, out_features: Sequence[str]) -> None:
    if not import_timm().is_model(name):
        raise SetupError(
            f"MODEL.TIMM.NAME: timm has no model {name!r}.{did_you_mean(name, import_timm().list_models())}"
        )
    if norm not in NORMS:
        raise SetupError(f"MODEL.TIMM.NORM is {norm!r}; it must be one of {', '.join(NORMS)}.")
    if not out_features or not set(out_features) <= set(STRIDES):
        raise SetupError(
            f"MODEL.FPN.IN_FEATURES is {list(out_features)}; a timm backbone's maps are {', '.join(STRIDES)} "
            "(strides 4 to 32)."
        )


def _indices(name: str, has: Sequence[int], needed: Sequence[int]) -> list[int]:
    lacking = [stride for stride in needed if stride not in has]
    if lacking:
        raise SetupError(
            f"MODEL.TIMM.NAME {name!r} gives maps at strides {', '.join(map(str, has))}; the FPN needs "
            f"{', '.join(map(str, needed))}. Take a network that has them, such as mobilenetv2_100."
        )
    return [max(index for index, stride in enumerate(has) if stride == wanted) for wanted in needed]


@torch.no_grad()
def _check_maps(name: str, body: nn.Module, shapes: Mapping[str, ShapeSpec], in_channels: int) -> None:
    height, width = 96, 64  # neither square nor the size that timm's networks are trained at
    expected = [(1, shape.channels, height // shape.stride, width // shape.stride) for shape in shapes.values()]
    mode = body.training
    try:
        given = [tuple(value.shape) for value in body.eval()(torch.zeros(1, in_channels, height, width))]
    except (AssertionError, RuntimeError, ValueError) as error:
        raise SetupError(
            f"MODEL.TIMM.NAME {name!r} does not take an image of {height} x {width} ({error}); detectors see images "
            "of many sizes. Take a network that allows them, such as mobilenetv2_100."
        ) from error
    finally:
        body.train(mode)
    if given != expected:
        raise SetupError(
            f"MODEL.TIMM.NAME {name!r} gives maps of the shapes {given}, not {expected} (N, C, H, W). Take a network "
            "with channels first, such as mobilenetv2_100."
        )
