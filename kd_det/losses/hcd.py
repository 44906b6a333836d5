"""Heterogeneous complementary distillation (Xu et al. 2025).

Shape legend: B images, C classes, D and E channels of the student's map and of the teacher's feature, n sub-logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_det.losses._checks import check_labels, check_logits, check_temperature, check_weight, gather_targets
from kd_det.losses._closed_form import LARGEST
from kd_det.losses.kd import kd_loss
from kd_det.losses.normalize import products, unit_rows


class HCDLoss(nn.Module):
    """KD with the teacher's logits, and with n fusions of them with logits made from both networks' features.

    The student's map goes through a projector (a 1 × 1 convolution) and is averaged over its positions. Concatenated
    with the teacher's penultimate feature, it goes through the complementary feature mapper, one linear layer that
    gives n·C shared logits: n sub-logits. Each sub-logit is added to the teacher's logits: fused_i. With s the
    student's logits, t the teacher's and y the labels, the terms are

    - **kd**: KD(s, t), as in ``kd_loss``;
    - **fused_kd**: Σ_i KD(s, fused_i);
    - **fused_ce**: ce_weight · Σ_i CE(fused_i, y), CE the cross-entropy with the labels;
    - **orthogonality**: λ · OL, OL the mean squared cosine of every two of a sample's sub-logits: 0 if they are
      orthogonal or n = 1, and 1 if they differ only by a factor.

    The cross-entropy of the student itself, CE(s, y), is left to the training loop. fused_i is a target in fused_kd
    and gets no gradient there. So projector and mapper learn from fused_ce and OL. The student learns from the two KD
    terms and, through the projector, from fused_ce and OL. The teacher gets no gradient.

    Source: Xu, Zheng, Wang, Xu, Cheng, "Heterogeneous Complementary Distillation", 2025, arXiv 2511.10942. We know its
    abstract, which names the parts and how they are connected. The rest is our reading: a projector that is only the
    convolution, average pooling to 1 × 1, fusing by addition, OL as squared cosines, the sum over i, and every default.

    Args:
        student_channels: D.
        teacher_channels: E.
        num_classes: C, 2 or more.
        n: the number of sub-logits, 1 or more.
        projector_channels: the projector's output channels; 0 for E, so that the mapper gets equally many from both
            sides.
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
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        student_map: Tensor,
        teacher_feature: Tensor,
    ) -> dict[str, Tensor]:
        """
        Args:
            student_logits: (B, C).
            teacher_logits: (B, C).
            labels: the target classes (B,), int64, from 0 to C − 1.
            student_map: (B, D, H, W), H and W 1 or more.
            teacher_feature: the teacher's penultimate feature (B, E). It gets no gradient.

        Returns:
            Scalars by name, "kd", "fused_kd", "fused_ce" and "orthogonality", weighted; their sum is the loss. They
            are in float32, or in float64 where a logit is; projector and mapper follow autocast. An empty batch gives
            0 with a graph. Range and derivatives: see ``kd_det.losses``.

        Raises:
            ValueError: a shape, dtype, device or label other than these.
        """
        self._check(student_logits, teacher_logits, labels, student_map, teacher_feature)
        sub_logits = self.sub_logits(student_map, teacher_feature)
        sub_logits = sub_logits.to(torch.promote_types(sub_logits.dtype, torch.float32))
        with torch.autocast(student_logits.device.type, enabled=False):
            fused = _add_teacher(sub_logits, teacher_logits)
            kd, fused_kd = self._kd(student_logits, teacher_logits, fused)
            return {
                "kd": kd,
                "fused_kd": fused_kd,
                "fused_ce": _cross_entropy(fused, labels) * self.ce_weight,
                "orthogonality": orthogonality_loss(sub_logits) * self.orthogonal_weight,
            }

    def sub_logits(self, student_map: Tensor, teacher_feature: Tensor) -> Tensor:
        """The sub-logits (B, n, C) of a map (B, D, H, W) and a feature (B, E)."""
        # A 1 × 1 convolution commutes with averaging over the positions: it runs on one position instead of H W.
        projected = self.projector(F.adaptive_avg_pool2d(student_map, 1)).flatten(1)
        feature = teacher_feature.detach().to(projected.dtype)
        shared: Tensor = self.mapper(torch.cat((projected, feature), 1))
        return shared.view(-1, self.n, self.num_classes)

    def _kd(self, student_logits: Tensor, teacher_logits: Tensor, fused: Tensor) -> tuple[Tensor, Tensor]:
        """KD with the teacher, and the sum of KD with each fused (B, n, C), averaged over the samples."""
        targets = torch.cat((teacher_logits.unsqueeze(1), fused), 1).flatten(0, 1)
        # Widened first, so that the n + 1 gradients are added up in float32.
        students = student_logits.to(targets.dtype).unsqueeze(1).expand(-1, self.n + 1, -1).flatten(0, 1)
        losses = kd_loss(students, targets, temperature=self.temperature, reduction="none")
        losses = losses.view(-1, self.n + 1) / max(student_logits.shape[0], 1)
        return losses[:, 0].sum(), losses[:, 1:].sum()

    def _check(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        student_map: Tensor,
        teacher_feature: Tensor,
    ) -> None:
        check_logits(student_logits, teacher_logits)
        check_labels(labels, student_logits)
        batch, channels = student_logits.shape[0], self.projector.in_channels
        if student_logits.shape[1] != self.num_classes:
            raise ValueError(
                f"HCDLoss was built for {self.num_classes} classes; got student_logits {tuple(student_logits.shape)}."
            )
        if student_map.ndim != 4 or student_map.shape[:2] != (batch, channels) or 0 in student_map.shape[2:]:
            raise ValueError(
                f"student_map must be ({batch}, {channels}, H, W) with H and W of 1 or more; "
                f"got {tuple(student_map.shape)}."
            )
        if teacher_feature.shape != (batch, self.teacher_channels):
            raise ValueError(
                f"teacher_feature must be ({batch}, {self.teacher_channels}); got {tuple(teacher_feature.shape)}."
            )


def orthogonality_loss(sub_logits: Tensor) -> Tensor:
    """The mean over samples and pairs of the squared cosine of two of a sample's sub-logits, from 0 to 1.

    Args:
        sub_logits: (B, n, C). A row of norm 1e-4 or less passes no gradient. The cosine with a row of zeros is 0.

    Returns:
        A scalar, at least float32; 0 with a graph for n = 1 and for an empty batch.
    """
    unit = unit_rows(sub_logits)
    batch, n, _ = unit.shape
    cosines = products(unit, unit).triu(1)
    return cosines.square().sum() / max(batch * n * (n - 1) / 2, 1)


def _add_teacher(sub_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """(B, n, C), with no teacher logit beyond LARGEST, so that no difference of two overflows."""
    wide = teacher_logits.detach().to(torch.promote_types(teacher_logits.dtype, torch.float32))
    largest = LARGEST[wide.dtype]
    return sub_logits + wide.clamp(-largest, largest).unsqueeze(1)


def _cross_entropy(fused: Tensor, labels: Tensor) -> Tensor:
    """The mean over B, summed over n, of the cross-entropy of (B, n, C) with labels (B,)."""
    index = labels.view(-1, 1, 1).expand(-1, fused.shape[1], 1)
    return (-gather_targets(fused.log_softmax(2), index)).sum() / max(fused.shape[0], 1)
