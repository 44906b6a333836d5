"""``kd`` and ``nkd``: knowledge distillation, classical and normalised."""

from __future__ import annotations

from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data import Batch
from classification.distillers.base import LogitDistiller, NetworkPair, register_distiller
from classification.models import ModelOutput
from classification.schema import checked
from kd_det.losses import kd_loss, nkd_loss


@register_distiller("kd")
class KD(LogitDistiller):
    """``loss_kd``: ``kd_loss`` (Hinton et al. 2015)."""

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "KD.WEIGHT")
        self.settings = self.read_settings(cfg)

    @staticmethod
    def read_settings(cfg: CfgNode) -> dict[str, Any]:
        """The arguments of ``kd_loss`` besides the logits."""
        return {"temperature": checked(cfg, "KD.TEMPERATURE")}

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        loss = kd_loss(self.logits(student_out), self.logits(teacher_out), **self.settings)
        return {"loss_kd": self.weight * loss}


@register_distiller("nkd")
class NKD(LogitDistiller):
    """``loss_nkd``: ``nkd_loss`` (Yang et al. 2023)."""

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "NKD.WEIGHT")
        self.settings = self.read_settings(cfg)

    @staticmethod
    def read_settings(cfg: CfgNode) -> dict[str, Any]:
        """The arguments of ``nkd_loss`` besides logits and labels."""
        return {"gamma": checked(cfg, "NKD.GAMMA"), "temperature": checked(cfg, "NKD.TEMPERATURE")}

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        loss = nkd_loss(self.logits(student_out), self.logits(teacher_out), batch.labels, **self.settings)
        return {"loss_nkd": self.weight * loss}
