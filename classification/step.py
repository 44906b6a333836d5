"""What one process computes in a step: the student's forward pass and the losses."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from classification.data import Batch
from classification.distillers import Distiller
from classification.models import ModelOutput, ReusedClassifier

TASK = "loss_ce"  # the names of the losses with the labels begin with it


class TrainingStep(nn.Module):
    """Student and distiller as one module, which has every trained parameter.

    Args:
        student: a model of ``classification.models``.
        distiller: the method.
        ce_weight: the weight of the cross-entropy with the labels, for methods that use it.
    """

    def __init__(self, student: nn.Module, distiller: Distiller, ce_weight: float) -> None:
        super().__init__()
        self.student = student
        self.distiller = distiller
        self.ce_weight = ce_weight

    @property
    def extra_parameters(self) -> int:
        """Trained parameters of the distiller, and those that the method adds to the student itself (SimKD)."""
        own = sum(p.numel() for p in self.distiller.parameters() if p.requires_grad)
        return own + (self.student.added_parameters if isinstance(self.student, ReusedClassifier) else 0)

    def forward(
        self,
        batch: Batch,
        teacher_out: ModelOutput | None,
        distilled: Tensor | None,
        warmup: float,
        strong_teacher_out: ModelOutput | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """
        Args:
            batch: B samples.
            teacher_out: the teacher's output for them, without a graph; None if there is no teacher.
            distilled: the samples that the distiller gets, as indices into the batch (int64); None: all. Its terms are
                means over these, so that their weight beside the cross-entropy is the same for a part as for all.
            warmup: the factor on the distillation terms.
            strong_teacher_out: as ``teacher_out``, for the batch's strong view if it has one.

        Returns:
            The losses by name, to be added up (those of the labels begin with "loss_ce"), and the student's logits of
            the first view (B, C).
        """
        losses, logits = self._view(batch, teacher_out, distilled, warmup)
        if batch.strong is not None:
            strong = Batch(batch.strong, batch.labels, batch.indices)
            losses |= self._view(strong, strong_teacher_out, distilled, warmup, strong=True)[0]
        return losses, logits

    def _view(
        self,
        batch: Batch,
        teacher_out: ModelOutput | None,
        distilled: Tensor | None,
        warmup: float,
        *,
        strong: bool = False,
    ) -> tuple[dict[str, Tensor], Tensor]:
        out = self.student(batch.images, return_features=True)
        losses = {}
        if self.distiller.uses_cross_entropy:
            name = f"{TASK}_strong" if strong else TASK
            losses[name] = self.ce_weight * F.cross_entropy(out.logits.float(), batch.labels)
        terms = self.distiller(*_chosen(batch, out, teacher_out, distilled), strong=strong)
        losses.update({name: warmup * term for name, term in terms.items()})
        return losses, out.logits


def _chosen(
    batch: Batch, out: ModelOutput, teacher_out: ModelOutput | None, rows: Tensor | None
) -> tuple[Batch, ModelOutput, ModelOutput | None]:
    if rows is None:
        return batch, out, teacher_out
    chosen = Batch(batch.images[rows], batch.labels[rows], batch.indices[rows])
    return chosen, _rows_of(out, rows), None if teacher_out is None else _rows_of(teacher_out, rows)


def _rows_of(out: ModelOutput, rows: Tensor) -> ModelOutput:
    preactivations = None if out.preactivations is None else [stage[rows] for stage in out.preactivations]
    stages = [stage[rows] for stage in out.stages]
    return ModelOutput(out.logits[rows], out.map[rows], out.pooled[rows], stages, preactivations)
