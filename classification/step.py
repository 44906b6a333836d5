"""Student and distiller as one module: all that is trained, and what one process computes in a step."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from classification.data.loaders import Batch
from classification.distillers.base import Distiller
from classification.models.protocol import ModelOutput


class TrainingStep(nn.Module):
    """The forward pass of a step.

    Args:
        student: a model of ``classification.models``.
        distiller: the method's terms.
        ce_weight: the weight of the cross-entropy with the labels, for methods that use it.
    """

    def __init__(self, student: nn.Module, distiller: Distiller, ce_weight: float) -> None:
        super().__init__()
        self.student = student
        self.distiller = distiller
        self.ce_weight = ce_weight

    def forward(
        self, batch: Batch, teacher_out: ModelOutput | None, distilled: Tensor | None, warmup: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """
        Args:
            batch: B samples.
            teacher_out: the teacher's answer to them, without a graph; None where there is no teacher.
            distilled: which of them the distiller sees, their places in the batch (int64); None: all.
            warmup: the factor on the distillation terms.

        Returns:
            The losses by name, to be added up, and the student's logits (B, C).
        """
        out = self.student(batch.images, return_features=True)
        losses = {}
        if self.distiller.uses_cross_entropy:
            losses["loss_ce"] = self.ce_weight * F.cross_entropy(out.logits.float(), batch.labels)
        terms = self.distiller(*_chosen(batch, out, teacher_out, distilled))
        losses.update({name: warmup * term for name, term in terms.items()})
        return losses, out.logits


def _chosen(
    batch: Batch, out: ModelOutput, teacher_out: ModelOutput | None, rows: Tensor | None
) -> tuple[Batch, ModelOutput, ModelOutput | None]:
    if rows is None:
        return batch, out, teacher_out
    teacher_out = None if teacher_out is None else _rows_of(teacher_out, rows)
    return Batch(*(field[rows] for field in batch)), _rows_of(out, rows), teacher_out


def _rows_of(out: ModelOutput, rows: Tensor) -> ModelOutput:
    return ModelOutput(out.logits[rows], out.map[rows], out.pooled[rows], [stage[rows] for stage in out.stages])
