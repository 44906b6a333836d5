"""The terms ``fitnet``, ``pkd`` and ``reviewkd`` on feature maps, and what every such term is built from.

Shape legend: N images, D channels of a map, H and W its height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F

from kd_det.common.errors import SetupError, did_you_mean, non_negative
from kd_det.common.setting_checks import Check, channels, name_pair, name_pairs
from kd_det.losses import ReviewKDFusion, fitnet_loss, hcl_loss, pkd_loss
from kd_det.modeling.regions import DistillationInputs
from kd_det.modeling.terms.base import KDTerm, Maps, register_term


@dataclass(frozen=True)
class MapPair:
    """A map of the student and the map of the teacher that it is compared with.

    Attributes:
        student, teacher: their names.
        student_shape, teacher_shape: their channels and strides (pixels).
    """

    student: str
    teacher: str
    student_shape: ShapeSpec
    teacher_shape: ShapeSpec


class FeatureTerm(KDTerm):
    """A term with one loss on the maps of both backbones. Subclasses define ``map_loss``.

    Channels and strides are those of the networks' maps, so that a term needs no such numbers of its own.

    Args:
        weight: of the loss.
        pairs: which maps are compared, the student's largest first.
        adapt: from the student's maps, (N, D, H, W) each, to maps of the same sizes with the teacher's channels.
    """

    @configurable
    def __init__(self, *, weight: float, pairs: Sequence[MapPair], adapt: nn.Module) -> None:
        super().__init__()
        self.weight = weight
        self.pairs = tuple(pairs)
        self.adapt = adapt

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        """The arguments from ``KD.<NAME>.WEIGHT`` (1 if the term has no such key) and ``KD.<NAME>.FEATURES`` (all maps
        of the same name), with a 1x1 convolution for each pair."""
        key = cls.name.upper()
        node = cfg.KD.get(key, {})
        pairs = feature_pairs(f"KD.{key}.FEATURES", node.get("FEATURES", ()), maps)
        return {"weight": node.get("WEIGHT", 1.0), "pairs": pairs, "adapt": Adapters(pairs)}

    @abstractmethod
    def map_loss(self, student: list[Tensor], teacher: list[Tensor], inputs: DistillationInputs) -> Tensor:
        """Returns the scalar loss, unweighted.

        Args:
            student: for each pair the student's adapted map, (N, D, H, W).
            teacher: for each pair the teacher's map, of the same shape.
            inputs: all that the term was given.
        """

    def forward(self, inputs: DistillationInputs) -> dict[str, Tensor]:
        adapted = self.adapt([inputs.student_features[pair.student] for pair in self.pairs])
        aligned = [
            align(ours, inputs.teacher_features[pair.teacher], pair)
            for ours, pair in zip(adapted, self.pairs, strict=True)
        ]
        student, teacher = map(list, zip(*aligned, strict=True))
        return {f"loss_{self.name}": self.weight * self.map_loss(student, teacher, inputs)}


class Adapters(nn.ModuleList):
    """A 1x1 convolution for each pair, from the student's channels to the teacher's.

    Args:
        pairs: the pairs.
        where_equal: whether pairs with equal channels get a convolution too; if not, their maps pass unchanged.
    """

    def __init__(self, pairs: Sequence[MapPair], *, where_equal: bool = True) -> None:
        super().__init__(_adapter(pair, where_equal) for pair in pairs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(N, D, H, W) each to (N, the teacher's D, H, W) each."""
        return [adapter(each) for adapter, each in zip(self, maps, strict=True)]


def _adapter(pair: MapPair, where_equal: bool) -> nn.Module:
    given, wanted = pair.student_shape.channels, pair.teacher_shape.channels
    if given == wanted and not where_equal:
        return nn.Identity()
    convolution = nn.Conv2d(given, wanted, 1)
    # As Detectron2's FPN: no ReLU follows, and the adapted map starts with about the variance of the student's.
    c2_xavier_fill(convolution)
    return convolution


@register_term("fitnet")
class FitNetTerm(FeatureTerm):
    """``loss_fitnet``: ``fitnet_loss`` (Romero et al. 2015) between the adapted student's and the teacher's maps."""

    checks: ClassVar[Mapping[str, Check]] = {
        "KD.FITNET.WEIGHT": non_negative,
        "KD.FITNET.FEATURES": name_pairs,
    }

    def map_loss(self, student: list[Tensor], teacher: list[Tensor], inputs: DistillationInputs) -> Tensor:
        del inputs
        return fitnet_loss(student, teacher)


@register_term("pkd")
class PKDTerm(FeatureTerm):
    """``loss_pkd``: ``pkd_loss`` (Cao et al. 2022) between the student's and the teacher's maps.

    As in the paper there is no adapter, except where the numbers of channels differ.
    """

    checks: ClassVar[Mapping[str, Check]] = {
        "KD.PKD.WEIGHT": non_negative,
        "KD.PKD.FEATURES": name_pairs,
    }

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        node = cfg.KD.PKD
        pairs = feature_pairs("KD.PKD.FEATURES", node.FEATURES, maps)
        return {"weight": node.WEIGHT, "pairs": pairs, "adapt": Adapters(pairs, where_equal=False)}

    def map_loss(self, student: list[Tensor], teacher: list[Tensor], inputs: DistillationInputs) -> Tensor:
        del inputs
        return pkd_loss(student, teacher)


@register_term("reviewkd")
class ReviewKDTerm(FeatureTerm):
    """``loss_reviewkd``: ``hcl_loss`` between the student's maps after ``ReviewKDFusion`` and the teacher's.

    Chen et al. 2021: the smaller maps of the student are fused into each map before it is compared.
    """

    checks: ClassVar[Mapping[str, Check]] = {
        "KD.REVIEWKD.WEIGHT": non_negative,
        "KD.REVIEWKD.FEATURES": name_pairs,
        "KD.REVIEWKD.MID_CHANNELS": channels,
    }

    @classmethod
    def from_config(cls, cfg: CfgNode, maps: Maps) -> dict[str, Any]:
        node = cfg.KD.REVIEWKD
        pairs = feature_pairs("KD.REVIEWKD.FEATURES", node.FEATURES, maps)
        fusion = ReviewKDFusion(
            [pair.student_shape.channels for pair in pairs],
            [pair.teacher_shape.channels for pair in pairs],
            node.MID_CHANNELS,
        )
        return {"weight": node.WEIGHT, "pairs": pairs, "adapt": fusion}

    def map_loss(self, student: list[Tensor], teacher: list[Tensor], inputs: DistillationInputs) -> Tensor:
        del inputs
        return hcl_loss(student, teacher)


def align(student: Tensor, teacher: Tensor, pair: MapPair, mode: str = "bilinear") -> tuple[Tensor, Tensor]:
    """The two maps at the teacher's stride and of the same size.

    Args:
        student: (N, any D, H, W) at the student's stride.
        teacher: (N, any D, H', W') at the teacher's stride.
        pair: has the strides.
        mode: of ``torch.nn.functional.interpolate``, for maps of different strides.
    """
    student = _to_stride(student, pair.student_shape.stride, pair.teacher_shape.stride, mode)
    # Both backbones pad the image at the bottom and on the right only, each to a multiple of its own size divisibility:
    # the maps begin at the same pixel, and the larger one's last rows and columns are padding that the other lacks.
    height, width = map(min, student.shape[2:], teacher.shape[2:])
    return student[..., :height, :width], teacher[..., :height, :width]


def _to_stride(values: Tensor, given: int, wanted: int, mode: str) -> Tensor:
    """``values`` resized by given / wanted, which keeps every position over its pixels whatever the padding."""
    if given == wanted:
        return values
    size = [-(-length * given // wanted) for length in values.shape[2:]]
    # A last row or column that covers only part of a wanted one is repeated until it covers it all.
    down, right = (-(-new * wanted // given) - old for new, old in zip(size, values.shape[2:], strict=True))
    return F.interpolate(F.pad(values, (0, right, 0, down), mode="replicate"), size, mode=mode)


def feature_pairs(
    key: str, entries: Sequence[str], maps: Maps, *, admitted: Collection[str] | None = None
) -> list[MapPair]:
    """The maps to compare, the student's smallest stride first.

    Args:
        key: the ``KD.*.FEATURES`` key, for the messages.
        entries: its value: "p3" for the maps of that name in both backbones, "p3=res4" for the student's p3 and the
            teacher's res4. Empty: all maps with the same name in both.
        maps: the maps of both backbones.
        admitted: the student's maps that the empty value chooses from; None: all.

    Raises:
        SetupError: a name is unknown, a map is listed twice, or no name is common.
    """
    chosen = [name_pair(key, entry) for entry in entries] or [
        (name, name) for name in maps.student if name in maps.teacher and (admitted is None or name in admitted)
    ]
    if not chosen:
        raise SetupError(
            f"{key} is empty, which means all maps of the same name, but there are none. {_both(maps)} Pair them as "
            "\"student's map=teacher's map\"."
        )
    for side, known, names in (
        ("student", maps.student, [ours for ours, _ in chosen]),
        ("teacher", maps.teacher, [theirs for _, theirs in chosen]),
    ):
        _check_names(key, side, names, known, maps)
    pairs = [MapPair(ours, theirs, maps.student[ours], maps.teacher[theirs]) for ours, theirs in chosen]
    return sorted(pairs, key=lambda pair: pair.student_shape.stride)


def _check_names(key: str, side: str, names: list[str], known: Mapping[str, ShapeSpec], maps: Maps) -> None:
    for name in names:
        if name not in known:
            raise SetupError(f"{key}: the {side} has no map {name!r}.{did_you_mean(name, known)} {_both(maps)}")
        if names.count(name) > 1:
            raise SetupError(f"{key}: the {side}'s {name!r} is listed twice; name every map once. {_both(maps)}")


def _both(maps: Maps) -> str:
    return f"The student's maps: {_described(maps.student)}; the teacher's: {_described(maps.teacher)}."


def _described(known: Mapping[str, ShapeSpec]) -> str:
    return ", ".join(f"{name} ({shape.channels} channels, stride {shape.stride})" for name, shape in known.items())
