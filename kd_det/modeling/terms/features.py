"""What the terms on feature maps share: which maps are compared, adapters, and maps of different sizes.

Shape legend: N images, D channels of a map, H and W its height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F

from kd_det.common.errors import SetupError, did_you_mean
from kd_det.common.setting_checks import name_pair
from kd_det.modeling.regions import DistillationInputs
from kd_det.modeling.terms.base import KDTerm, Maps


@dataclass(frozen=True)
class Pair:
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
    """A term that is one loss on the maps of both backbones. Subclasses add ``from_config`` and ``map_loss``.

    Args:
        weight: of the loss.
        pairs: which maps are compared, the student's largest first.
        adapt: from the student's maps, (N, D, H, W) each, to maps of the same sizes with the teacher's channels.
    """

    @configurable
    def __init__(self, *, weight: float, pairs: Sequence[Pair], adapt: nn.Module) -> None:
        super().__init__()
        self.weight = weight
        self.pairs = tuple(pairs)
        self.adapt = adapt

    @abstractmethod
    def map_loss(self, student: list[Tensor], teacher: list[Tensor], inputs: DistillationInputs) -> Tensor:
        """Returns the scalar loss of adapted and teacher's maps of equal shapes, pair by pair, unweighted."""

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
        where_equal: whether pairs of equal channels have one as well; without, their maps pass as they are.
    """

    def __init__(self, pairs: Sequence[Pair], *, where_equal: bool) -> None:
        super().__init__(_adapter(pair, where_equal) for pair in pairs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(N, D, H, W) each to (N, the teacher's D, H, W) each."""
        return [adapter(each) for adapter, each in zip(self, maps, strict=True)]


def _adapter(pair: Pair, where_equal: bool) -> nn.Module:
    given, wanted = pair.student_shape.channels, pair.teacher_shape.channels
    if given == wanted and not where_equal:
        return nn.Identity()
    convolution = nn.Conv2d(given, wanted, 1)
    # As Detectron2's FPN: no ReLU follows, and the adapted map starts with about the variance of the student's.
    c2_xavier_fill(convolution)
    return convolution


def align(student: Tensor, teacher: Tensor, pair: Pair, mode: str = "bilinear") -> tuple[Tensor, Tensor]:
    """The two maps at the teacher's stride, and of one size.

    Args:
        student: (N, any D, H, W) at the student's stride.
        teacher: (N, any D, H', W') at the teacher's.
        pair: tells the strides.
        mode: of ``torch.nn.functional.interpolate``, for maps of different strides.
    """
    student = _to_stride(student, pair.student_shape.stride, pair.teacher_shape.stride, mode)
    # Both backbones pad the image below and to the right only, each to a multiple of its own size divisibility: the
    # maps begin at the same pixel, and the larger one's last rows and columns are padding that the other lacks.
    height, width = map(min, student.shape[2:], teacher.shape[2:])
    return student[..., :height, :width], teacher[..., :height, :width]


def _to_stride(values: Tensor, given: int, wanted: int, mode: str) -> Tensor:
    """``values`` resized by given / wanted, which keeps every position over its pixels whatever the padding."""
    if given == wanted:
        return values
    size = [-(-length * given // wanted) for length in values.shape[2:]]
    # A last row or column that covers part of a wanted one only is repeated until it covers it all.
    down, right = (-(-new * wanted // given) - old for new, old in zip(size, values.shape[2:], strict=True))
    return F.interpolate(F.pad(values, (0, right, 0, down), mode="replicate"), size, mode=mode)


def feature_pairs(
    key: str, entries: Sequence[str], maps: Maps, *, admitted: Collection[str] | None = None
) -> list[Pair]:
    """The maps to compare, the student's smallest stride first.

    Args:
        key: the ``KD.*.FEATURES`` key, for the messages.
        entries: its value: "p3" for maps that both backbones call so, "p3=res4" for the student's p3 and the teacher's
            res4. Empty: all that have the same name in both.
        maps: the maps that there are.
        admitted: the student's maps that the empty value chooses from; None: all.

    Raises:
        SetupError: a name is unknown, a map stands twice, or no name is common.
    """
    chosen = [name_pair(key, entry) for entry in entries] or [
        (name, name) for name in maps.student if name in maps.teacher and (admitted is None or name in admitted)
    ]
    if not chosen:
        raise SetupError(
            f"{key} is empty, which stands for the maps of the same name, but there are none. {_both(maps)} Pair them "
            "as \"student's map=teacher's map\"."
        )
    for side, known, names in (
        ("student", maps.student, [ours for ours, _ in chosen]),
        ("teacher", maps.teacher, [theirs for _, theirs in chosen]),
    ):
        _check_names(key, side, names, known, maps)
    pairs = [Pair(ours, theirs, maps.student[ours], maps.teacher[theirs]) for ours, theirs in chosen]
    return sorted(pairs, key=lambda pair: pair.student_shape.stride)


def _check_names(key: str, side: str, names: list[str], known: Mapping[str, ShapeSpec], maps: Maps) -> None:
    for name in names:
        if name not in known:
            raise SetupError(f"{key}: the {side} has no map {name!r}.{did_you_mean(name, known)} {_both(maps)}")
        if names.count(name) > 1:
            raise SetupError(f"{key}: the {side}'s {name!r} stands twice; name every map once. {_both(maps)}")


def _both(maps: Maps) -> str:
    return f"The student's maps: {_described(maps.student)}; the teacher's: {_described(maps.teacher)}."


def _described(known: Mapping[str, ShapeSpec]) -> str:
    return ", ".join(f"{name} ({shape.channels} channels, stride {shape.stride})" for name, shape in known.items())
