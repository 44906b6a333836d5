"""What the distillers on logits share: the same classes on both sides, and STANDARDIZE."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.distillers.base import Distiller, Pair
from classification.models.outputs import ModelOutput
from kd_det.common.errors import SetupError
from kd_det.losses import standardize_logits


class LogitDistiller(Distiller):
    """A distiller whose losses compare the two networks' logits, standardised first where STANDARDIZE says so."""

    compares_logits = True

    def __init__(self, cfg: CfgNode, pair: Pair) -> None:
        super().__init__(cfg, pair)
        ours, theirs = pair.student_out.logits.shape[1], pair.teacher_out.logits.shape[1]
        if ours != theirs:
            raise SetupError(
                f"DISTILLER {cfg.DISTILLER!r} compares logits, but the student has {ours} classes and TEACHER.NAME "
                f"{cfg.TEACHER.NAME!r} has {theirs}. Take a teacher that was trained on these classes."
            )
        if cfg.STANDARDIZE and ours < 3:
            raise SetupError("STANDARDIZE True: of 2 classes it leaves nothing but a sign. Set it to False.")
        self.standardize = cfg.STANDARDIZE

    def logits(self, out: ModelOutput) -> Tensor:
        """The logits (B, C) that a loss takes."""
        return self.standardized(out.logits)

    def standardized(self, logits: Tensor) -> Tensor:
        """``logits`` (B, C) or (B, C, N), over the C classes, where STANDARDIZE is True; as they are where not."""
        return standardize_logits(logits) if self.standardize else logits
