"""What the distillers on all stage maps share."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from classification.distillers.base import Pair
from kd_det.common.errors import SetupError


def check_stages(cfg: CfgNode, pair: Pair) -> None:
    """Raises ``SetupError`` unless both networks have the same number of stages."""
    ours, theirs = len(pair.student_out.stages), len(pair.teacher_out.stages)
    if ours != theirs:
        raise SetupError(
            f"DISTILLER {cfg.DISTILLER!r} compares stage by stage, but STUDENT.NAME {cfg.STUDENT.NAME!r} has {ours} "
            f"stages and TEACHER.NAME {cfg.TEACHER.NAME!r} has {theirs}. Take networks with as many, or 'fitnet', "
            "which compares one."
        )
