"""What a distiller is, and the list of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from classification.data.batch import Batch
from classification.models.outputs import ModelOutput
from kd_det.common.errors import SetupError
from kd_det.common.registry import Registry
from kd_det.common.setting_checks import Check

D = TypeVar("D", bound=type)


class Pair(NamedTuple):
    """What a distiller is built for. The outputs are those of a small batch in evaluation mode: they tell shapes."""

    student: nn.Module
    teacher: nn.Module | None
    student_out: ModelOutput
    teacher_out: ModelOutput | None
    train_samples: int


class Distiller(nn.Module, ABC):
    """Distillation terms of one method, beside the cross-entropy that the training loop adds.

    Its parameters and buffers are trained and saved with the student's, for ``--resume``, and are no part of the
    student that is saved for use.
    """

    needs_teacher = True
    uses_cross_entropy = True
    # Whether it heeds STANDARDIZE.
    compares_logits = False
    # Configuration keys that a distiller of one's own brings, with their defaults: {"WEIGHT": 1.0} of the distiller
    # "mine" is MINE.WEIGHT. Those of the distillers in this package are in ``classification.config``, with comments.
    keys: ClassVar[Mapping[str, Any]] = {}
    # The checks of these keys' values, by the full key.
    checks: ClassVar[Mapping[str, Check]] = {}

    def __init__(self, cfg: CfgNode, pair: Pair) -> None:
        super().__init__()
        if self.needs_teacher and pair.teacher_out is None:
            raise SetupError(
                f"DISTILLER {cfg.DISTILLER!r} needs a teacher, and TEACHER.NAME is {cfg.TEACHER.NAME!r}. Name one, and "
                "its TEACHER.WEIGHTS."
            )
        if cfg.STANDARDIZE and not self.compares_logits:
            raise SetupError(
                f"STANDARDIZE True: DISTILLER {cfg.DISTILLER!r} has no loss on logits. Set STANDARDIZE False."
            )

    @abstractmethod
    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput | None) -> dict[str, Tensor]:
        """Scalars by name, ``loss_...``, already weighted; the training loop adds them up.

        ``teacher_out`` has no graph; it is None where ``needs_teacher`` is False.
        """

    def forward(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput | None) -> dict[str, Tensor]:
        return self.losses(batch, student_out, teacher_out)


DISTILLERS: Registry[type[Distiller]] = Registry("distiller", "DISTILLER")


def register_distiller(name: str) -> Callable[[D], D]:
    """Class decorator that makes a distiller known as ``DISTILLER: name``.

    Raises:
        ValueError: there is a distiller of that name already, or its ``keys`` or ``checks`` are not valid.
    """
    return DISTILLERS.register(name)


def build_distiller(cfg: CfgNode, pair: Pair) -> Distiller:
    """The distiller that ``cfg.DISTILLER`` names.

    Raises:
        SetupError: there is none of that name, or a setting of it does not fit the pair.
    """
    return distiller_class(cfg.DISTILLER)(cfg, pair)


def distiller_class(name: str) -> Any:
    """The class registered as ``name``.

    Raises:
        SetupError: there is none; the nearest is suggested.
    """
    return DISTILLERS.find(name)
