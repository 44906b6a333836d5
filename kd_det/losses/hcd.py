"""Heterogeneous complementary distillation (Xu et al. 2025).

Shape legend: B images, C classes, D and E channels of the student's map and of the teacher's feature, n sub-logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_det.losses._checks import check_labels, check_logits, check_temperature, check_weight, gather_targets
from kd_det.losses._pair import LARGEST
from kd_det.losses._unit import products, unit_rows
from kd_det.losses.kd import kd_loss


class HCDLoss(nn.Module):
    """KD with the teacher and with n classifiers made of the student's map, the teacher's feature and its logits.

    The student's map goes through a projector (a 1 × 1 convolution) and is averaged over its positions; concatenated
    with the teacher's penultimate feature, it goes through the complementary feature mapper, one linear layer, which
    gives n·C shared logits. Each of these n sub-logits is added to the teacher's logits t: fused_i. The terms are

    - **kd**: KD(s, t), as in ``kd_loss``;
    - **fused_kd**: Σ_i KD(s, fused_i);
    - **fused_ce**: ce_weight · Σ_i CE(fused_i, y), CE the cross-entropy with the labels;
    - **orthogonality**: λ · OL, OL the mean of the squared cosines of every two of a sample's sub-logits: 0 where they
      are orthogonal and for n = 1, 1 where they are the same but for a factor.

    The cross-entropy of the student itself, CE(s, y), is left to the training loop. fused_i is a target in fused_kd and
    gets no gradient there: projector and mapper learn from fused_ce and OL, the student from the two KD terms and,
    through the projector, from fused_ce and OL, the teacher from nothing.

    Source: Xu, Zheng, Wang, Xu, Cheng, "Heterogeneous Complementary Distillation", 2025, arXiv 2511.10942. We know its
    abstract, which names the parts and how they are connected. The rest is our reading: that the projector is the
    convolution alone and the pooling an average to 1 × 1; that fusing is adding; OL as squared cosines; the sum over i,
    and every default.

    Args:
        student_channels: D.
        teacher_channels: E.
        num_classes: C, 2 or more.
        n: the number of sub-logits.
        projector_channels: what the projector makes of D; 0: E, so that both sides weigh the same in the mapper.
        temperature: T of both KD terms, from 1e-6 to 1e6.
        ce_weight: 0 or more.
        orthogonal_weight: λ, 0 or more.

    Raises:
        ValueError: a setting other than these.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        *,
        n: int = 4,
        projector_channels: int = 0,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        orthogonal_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if min(student_channels, teacher_channels) < 1 or num_classes < 2:
            raise ValueError(
                "student_channels and teacher_channels must be 1 or more and num_classes 2 or more; "
                f"got {student_channels}, {teacher_channels} and {num_classes}."
            )
        if n < 1 or projector_channels < 0:
            raise ValueError(f"n must be 1 or more, projector_channels 0 or more; got {n} and {projector_channels}.")
        check_temperature(temperature)
        check_weight("ce_weight", ce_weight)
        check_weight("orthogonal_weight", orthogonal_weight)
        self.n, self.num_classes, self.teacher_channels = n, num_classes, teacher_channels
        self.temperature, self.ce_weight, self.orthogonal_weight = temperature, ce_weight, orthogonal_weight
        self.projector = nn.Conv2d(student_channels, projector_channels or teacher_channels, 1)
        self.mapper = nn.Linear(self.projector.out_channels + teacher_channels, n * num_classes)

    def forward(
        self, s: Tensor, t: Tensor, y: Tensor, student_map: Tensor, teacher_feature: Tensor
    ) -> dict[str, Tensor]:
        """
        Args:
            s: student logits (B, C), float16, bfloat16, float32 or float64.
            t: teacher logits (B, C), any of these dtypes. They get no gradient.
            y: target classes (B,), int64, from 0 to C − 1. Out of range as in ``dkd_loss``.
            student_map: (B, D, H, W), H and W 1 or more.
            teacher_feature: the teacher's penultimate feature (B, E). It gets no gradient.

        Returns:
            Scalars by name, "kd", "fused_kd", "fused_ce" and "orthogonality", weighted; their sum is the loss. In
            float32, or float64 where a logit is, under autocast too; projector and mapper follow autocast. Finite for
            finite inputs, and 0 with a graph for an empty batch. First derivatives only, as in ``kd_loss``.

        Raises:
            ValueError: a shape, dtype, device or label other than these.
        """
        self._check(s, t, y, student_map, teacher_feature)
        sub_logits = self.sub_logits(student_map, teacher_feature)
        sub_logits = sub_logits.to(torch.promote_types(sub_logits.dtype, torch.float32))
        with torch.autocast(s.device.type, enabled=False):
            fused = _add_teacher(sub_logits, t)
            kd, fused_kd = self._kd(s, t, fused)
            return {
                "kd": kd,
                "fused_kd": fused_kd,
                "fused_ce": _cross_entropy(fused, y) * self.ce_weight,
                "orthogonality": orthogonality_loss(sub_logits) * self.orthogonal_weight,
            }

    def sub_logits(self, student_map: Tensor, teacher_feature: Tensor) -> Tensor:
        """Returns (B, n, C), of a map (B, D, H, W) and a feature (B, E)."""
        # A 1 × 1 convolution commutes with averaging over the positions: it sees one position instead of H W.
        projected = self.projector(F.adaptive_avg_pool2d(student_map, 1)).flatten(1)
        feature = teacher_feature.detach().to(projected.dtype)
        shared: Tensor = self.mapper(torch.cat((projected, feature), 1))
        return shared.view(-1, self.n, self.num_classes)

    def _kd(self, s: Tensor, t: Tensor, fused: Tensor) -> tuple[Tensor, Tensor]:
        """KD with the teacher, and the sum of those with each fused (B, n, C), averaged over the samples."""
        targets = torch.cat((t.unsqueeze(1), fused), 1).flatten(0, 1)
        # Widened first: the n + 1 gradients are then added up in float32.
        students = s.to(targets.dtype).unsqueeze(1).expand(-1, self.n + 1, -1).flatten(0, 1)
        losses = kd_loss(students, targets, temperature=self.temperature, reduction="none")
        losses = losses.view(-1, self.n + 1) / max(s.shape[0], 1)
        return losses[:, 0].sum(), losses[:, 1:].sum()

    def _check(self, s: Tensor, t: Tensor, y: Tensor, student_map: Tensor, teacher_feature: Tensor) -> None:
        check_logits(s, t)
        check_labels(y, s)
        batch, channels = s.shape[0], self.projector.in_channels
        if s.shape[1] != self.num_classes:
            raise ValueError(f"HCDLoss was built for {self.num_classes} classes; got logits {tuple(s.shape)}.")
        if student_map.ndim != 4 or student_map.shape[:2] != (batch, channels) or 0 in student_map.shape[2:]:
            raise ValueError(
                f"the student's map must be ({batch}, {channels}, H, W), H and W 1 or more; "
                f"got {tuple(student_map.shape)}."
            )
        if teacher_feature.shape != (batch, self.teacher_channels):
            raise ValueError(
                f"the teacher's feature must be ({batch}, {self.teacher_channels}); got {tuple(teacher_feature.shape)}."
            )


def orthogonality_loss(sub_logits: Tensor) -> Tensor:
    """The mean over samples and pairs of the squared cosine of two of a sample's sub-logits, from 0 to 1.

    Args:
        sub_logits: (B, n, C). A row of norm 1e-4 or less passes no gradient, and all zeros have the cosine 0.

    Returns:
        A scalar, at least float32; 0 with a graph for n = 1 and for an empty batch.
    """
    unit = unit_rows(sub_logits)
    batch, n, _ = unit.shape
    cosines = products(unit, unit).triu(1)
    return cosines.square().sum() / max(batch * n * (n - 1) / 2, 1)


def _add_teacher(sub_logits: Tensor, t: Tensor) -> Tensor:
    """(B, n, C), no teacher's logit beyond LARGEST, so that no difference of two overflows."""
    wide = t.detach().to(torch.promote_types(t.dtype, torch.float32))
    largest = LARGEST[wide.dtype]
    return sub_logits + wide.clamp(-largest, largest).unsqueeze(1)


def _cross_entropy(fused: Tensor, y: Tensor) -> Tensor:
    """The mean over B, summed over n, of the cross-entropy of (B, n, C) with y (B,)."""
    index = y.view(-1, 1, 1).expand(-1, fused.shape[1], 1)
    return (-gather_targets(fused.log_softmax(2), index)).sum() / max(fused.shape[0], 1)
