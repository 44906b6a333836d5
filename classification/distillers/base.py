"""The base classes of distillers, their registry, and ``none``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from classification.data.loaders import Batch
from classification.models.protocol import ModelOutput
from classification.schema import checked
from kd_det.common.errors import SetupError
from kd_det.common.registry import Registry
from kd_det.common.setting_checks import Check
from kd_det.losses import standardize_logits


class NetworkPair(NamedTuple):
    """The networks that a distiller is built for.

    The outputs are those of a small batch in evaluation mode. They tell the shapes.
    """

    student: nn.Module
    teacher: nn.Module | None
    student_out: ModelOutput
    teacher_out: Any  # a ModelOutput; None where the distiller needs no teacher
    train_samples: int
    labels: Tensor | None = None  # of the training samples, int64 (train_samples,)


class Distiller(nn.Module, ABC):
    """The distillation terms of one method. ``TrainingStep`` adds the cross-entropy.

    A distiller's parameters and buffers are trained with the student's and saved for ``--resume``. They are not part of
    ``model.pth``.

    Attributes:
        needs_teacher: whether the method has a teacher.
        uses_cross_entropy: whether the cross-entropy with the labels is added.
        compares_logits: whether STANDARDIZE applies.
        takes_strong_view: whether DATA.STRONG_VIEW applies.
        reuses_classifier: whether the student's logits are the teacher's classifier's (SimKD).
    """

    needs_teacher = True
    uses_cross_entropy = True
    compares_logits = False
    takes_strong_view = False
    reuses_classifier = False
    # Configuration keys that a distiller of one's own brings, with their defaults: {"WEIGHT": 1.0} of the distiller
    # "mine" is MINE.WEIGHT. Those of the distillers in this package are in ``classification.config``, with comments.
    keys: ClassVar[Mapping[str, Any]] = {}
    # The checks of these keys' values, by the full key.
    checks: ClassVar[Mapping[str, Check]] = {}

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__()
        if self.needs_teacher and pair.teacher_out is None:
            raise SetupError(
                f"DISTILLER {cfg.DISTILLER!r} needs a teacher, and TEACHER.NAME is {cfg.TEACHER.NAME!r}. Set both "
                "TEACHER.NAME and TEACHER.WEIGHTS."
            )
        if cfg.STANDARDIZE and not self.compares_logits:
            raise SetupError(
                f"STANDARDIZE True: DISTILLER {cfg.DISTILLER!r} has no loss on logits. Set STANDARDIZE False."
            )
        if cfg.DATA.STRONG_VIEW and not self.takes_strong_view:
            raise SetupError(
                f"DATA.STRONG_VIEW True: DISTILLER {cfg.DISTILLER!r} trains on one view of an image. Set "
                "DATA.STRONG_VIEW False, or DISTILLER mlkd."
            )

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of each epoch (from 0), and after a resumption."""

    @abstractmethod
    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: Any) -> dict[str, Tensor]:
        """Returns weighted scalars by name, ``loss_...``, to be added up.

        Args:
            batch: B samples. B may be 0: the losses are then zeros with a graph.
            student_out: the student's output for them.
            teacher_out: the teacher's ``ModelOutput`` for them, without a graph; None where ``needs_teacher`` is False.
        """

    def strong_losses(self, batch: Batch, student_out: ModelOutput, teacher_out: Any) -> dict[str, Tensor]:
        """As ``losses``, for the strongly augmented view. The names differ from those of ``losses``."""
        return {}

    def forward(
        self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput | None, *, strong: bool = False
    ) -> dict[str, Tensor]:
        return (self.strong_losses if strong else self.losses)(batch, student_out, teacher_out)


DISTILLERS: Registry[type[Distiller]] = Registry("distiller", "DISTILLER")


def register_distiller(name: str) -> Callable[[type[Distiller]], type[Distiller]]:
    """Class decorator that makes a distiller known as ``DISTILLER: name``.

    Raises:
        ValueError: there is a distiller of that name already, or its ``keys`` or ``checks`` are not valid.
    """
    return DISTILLERS.register(name)


def last_stages(cfg: CfgNode, pair: NetworkPair, key: str) -> int:
    """How many of the last stages are compared: the value of ``key``, or all if it is 0.

    Raises:
        SetupError: a network has fewer, or ``key`` is 0 and the networks have different numbers of stages.
    """
    least = min(len(pair.student_out.stages), len(pair.teacher_out.stages))
    count: int = checked(cfg, key)
    if count == 0:
        check_stages(cfg, pair, f"set {key} to the number of last stages to compare, up to {least}")
    elif count > least:
        raise SetupError(f"{key} {count}: one of the networks has only {least} stages. Set it to {least} or less.")
    return count or least


def check_stages(cfg: CfgNode, pair: NetworkPair, remedy: str = "take 'fitnet', which compares one stage") -> None:
    """Raises ``SetupError`` with the remedy if the networks have different numbers of stages."""
    ours, theirs = len(pair.student_out.stages), len(pair.teacher_out.stages)
    if ours != theirs:
        raise SetupError(
            f"DISTILLER {cfg.DISTILLER!r} compares stage by stage, but STUDENT.NAME {cfg.STUDENT.NAME!r} has {ours} "
            f"stages and TEACHER.NAME {cfg.TEACHER.NAME!r} has {theirs}. Take networks with equally many, or {remedy}."
        )


class LogitDistiller(Distiller):
    """A distiller that compares the two networks' logits. STANDARDIZE True standardises them first."""

    compares_logits = True

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        ours, theirs = pair.student_out.logits.shape[1], pair.teacher_out.logits.shape[1]
        if ours != theirs:
            raise SetupError(
                f"DISTILLER {cfg.DISTILLER!r} compares logits, but the student has {ours} classes and TEACHER.NAME "
                f"{cfg.TEACHER.NAME!r} has {theirs}. Take a teacher that was trained on these classes."
            )
        if cfg.STANDARDIZE and ours < 3:
            raise SetupError("STANDARDIZE True: with 2 classes only a sign would be left. Set it to False.")
        self.standardize = cfg.STANDARDIZE

    def logits(self, out: ModelOutput) -> Tensor:
        """The logits (B, C) for a loss, standardised if STANDARDIZE is True."""
        return self.standardized(out.logits)

    def standardized(self, logits: Tensor) -> Tensor:
        """``logits`` (B, C) or (B, C, N), standardised over the classes if STANDARDIZE is True; unchanged otherwise."""
        return standardize_logits(logits) if self.standardize else logits


@register_distiller("none")
class NoDistiller(Distiller):
    """``none``: the plain student, with no term but the cross-entropy and no teacher."""

    needs_teacher = False

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: None) -> dict[str, Tensor]:
        return {}
