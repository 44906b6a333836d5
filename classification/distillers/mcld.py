"""``mcld``: multi-perspective contrastive logit distillation."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor

from classification.data import Batch
from classification.distillers.base import LogitDistiller, NetworkPair, register_distiller
from classification.models import ModelOutput
from classification.schema import checked
from kd_det.common.errors import SetupError
from kd_det.losses import MCLDLoss


@register_distiller("mcld")
class MCLD(LogitDistiller):
    """``loss_mcld_instance``, ``loss_mcld_sample``, ``loss_mcld_category``: ``MCLDLoss`` (Wang et al. 2024).

    The queue is part of the training state, so that ``--resume`` restores it. With all three terms off, the student
    learns from the cross-entropy alone, which is the first row of the paper's table 7.
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        node = cfg.MCLD
        plain = not (node.INSTANCE or node.SAMPLE or node.CATEGORY)
        if not (plain or node.CE or pair.student_out.logits.any()):
            raise SetupError(
                f"DISTILLER 'mcld': the logits of STUDENT.NAME {cfg.STUDENT.NAME!r} are all zero at the start: "
                "they have no direction. Set MCLD.CE True."
            )
        self.weight = checked(cfg, "MCLD.WEIGHT")
        self.uses_cross_entropy = node.CE or plain
        self.loss = None if plain else _built(cfg, pair)

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        if self.loss is None:
            return {}
        terms = self.loss(self.logits(student_out), self.logits(teacher_out), batch.labels, batch.indices)
        return {f"loss_mcld_{name}": self.weight * value for name, value in terms.items()}


def _built(cfg: CfgNode, pair: NetworkPair) -> MCLDLoss:
    node = cfg.MCLD
    return MCLDLoss(
        pair.student_out.logits.shape[1],
        _queue_size(cfg, pair.train_samples) if node.INSTANCE else 0,
        temperature=checked(cfg, "MCLD.TEMPERATURE"),
        instance=node.INSTANCE,
        sample=node.SAMPLE,
        category=node.CATEGORY,
        category_norm=checked(cfg, "MCLD.CATEGORY_NORM"),
    )


def _queue_size(cfg: CfgNode, train_samples: int) -> int:
    given, batch = cfg.MCLD.QUEUE, cfg.DATA.BATCH_SIZE
    if not 0 <= given <= train_samples:
        raise SetupError(
            f"MCLD.QUEUE {given}: it must be at least DATA.BATCH_SIZE, {batch}, and at most the number of training "
            f"samples, {train_samples}; 0 means this number."
        )
    size = given or train_samples
    if size < batch:
        raise SetupError(
            f"MCLD.QUEUE {given}: a queue of {size} cannot hold a batch of DATA.BATCH_SIZE, {batch}. Make the batch "
            f"smaller, or the queue larger, up to the number of training samples, {train_samples}."
        )
    return size
