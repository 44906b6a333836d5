"""``none``: the plain student."""

from __future__ import annotations

from torch import Tensor

from classification.data.batch import Batch
from classification.distillers.base import Distiller, register_distiller
from classification.models.outputs import ModelOutput


@register_distiller("none")
class NoDistiller(Distiller):
    """No term beside the cross-entropy, and no teacher."""

    needs_teacher = False

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput | None) -> dict[str, Tensor]:
        return {}
