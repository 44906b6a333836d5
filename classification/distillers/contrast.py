"""``crd``: contrastive representation distillation."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data import Batch
from classification.distillers.base import Distiller, NetworkPair, register_distiller
from classification.models import ModelOutput
from classification.schema import checked
from kd_det.common.errors import SetupError
from kd_det.losses import CRDLoss


@register_distiller("crd")
class CRD(Distiller):
    """``loss_crd``: ``CRDLoss`` (Tian et al. 2020) on the pooled features, with negatives of other classes.

    The memories are part of the training state, so that ``--resume`` restores them.
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "CRD.WEIGHT")
        if pair.train_samples < 2 or (pair.labels is not None and len(pair.labels.unique()) < 2):
            raise SetupError("DISTILLER 'crd': it needs training samples of two classes or more.")
        self.loss = CRDLoss(
            pair.student_out.pooled.shape[1],
            pair.teacher_out.pooled.shape[1],
            pair.train_samples,
            feature_dim=checked(cfg, "CRD.FEATURE_DIM"),
            negatives=checked(cfg, "CRD.NEGATIVES"),
            temperature=checked(cfg, "CRD.TEMPERATURE"),
            momentum=checked(cfg, "CRD.MOMENTUM"),
            labels=None if pair.labels is None else pair.labels.cpu(),
            seed=cfg.SEED,
        )

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        return {"loss_crd": self.weight * self.loss(student_out.pooled, teacher_out.pooled, batch.indices)}
