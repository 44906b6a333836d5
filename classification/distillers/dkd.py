"""``dkd``, ``dkd_tckd``, ``dkd_nckd`` and ``dkd_coupled``: decoupled knowledge distillation and its ablations."""

from __future__ import annotations

from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data import Batch
from classification.distillers.base import LogitDistiller, NetworkPair, register_distiller
from classification.models import ModelOutput
from classification.schema import checked
from kd_det.losses import coupled_dkd_loss, dkd_loss


@register_distiller("dkd")
class DKD(LogitDistiller):
    """``loss_dkd``: ``dkd_loss`` (Zhao et al. 2022, eq. 7)."""

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "DKD.WEIGHT")
        self.settings = self.read_settings(cfg)

    @staticmethod
    def read_settings(cfg: CfgNode) -> dict[str, Any]:
        """The arguments of ``dkd_loss`` besides logits and labels."""
        return {
            "alpha": checked(cfg, "DKD.ALPHA"),
            "beta": checked(cfg, "DKD.BETA"),
            "temperature": checked(cfg, "DKD.TEMPERATURE"),
        }

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        loss = dkd_loss(self.logits(student_out), self.logits(teacher_out), batch.labels, **self.settings)
        return {"loss_dkd": self.weight * loss}


@register_distiller("dkd_tckd")
class TCKD(DKD):
    """``loss_dkd_tckd``: the target part alone, with weight DKD.WEIGHT; DKD.ALPHA and DKD.BETA are not used.

    Zhao et al. 2022, section 3.2 and table 1: all weights are 1.0 (section A.4).
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.settings |= {"alpha": 1.0, "beta": 0.0}

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        loss = dkd_loss(self.logits(student_out), self.logits(teacher_out), batch.labels, **self.settings)
        return {"loss_dkd_tckd": self.weight * loss}


@register_distiller("dkd_nckd")
class NCKD(DKD):
    """``loss_dkd_nckd``: the non-target part alone, with weight DKD.WEIGHT; DKD.ALPHA and DKD.BETA are not used.

    Zhao et al. 2022, section 3.2, tables 1 and 5: all weights are 1.0 (section A.4).
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.settings |= {"alpha": 0.0, "beta": 1.0}

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        loss = dkd_loss(self.logits(student_out), self.logits(teacher_out), batch.labels, **self.settings)
        return {"loss_dkd_nckd": self.weight * loss}


@register_distiller("dkd_coupled")
class CoupledDKD(DKD):
    """``loss_dkd_coupled``: ``coupled_dkd_loss`` (Zhao et al. 2022, eq. 6, and "1 − p_t" in the
    ablation of β in section 4.1).

    The weight of NCKD is 1 − p_y, as in plain KD; DKD.BETA is not used. With DKD.ALPHA 1 it equals ``kd`` at
    DKD.TEMPERATURE.
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        del self.settings["beta"]

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        loss = coupled_dkd_loss(self.logits(student_out), self.logits(teacher_out), batch.labels, **self.settings)
        return {"loss_dkd_coupled": self.weight * loss}
