"""The plain formulas of the losses on logits, for reading next to the papers.

They are right for moderate logits only: each docstring says where its formula fails. For training use the losses of
``kd_det.losses``, which give the same values and gradients for any finite logits, in every dtype, with less time and
memory. Tests compare the two; ``kd-det bench losses`` times them.

Each function takes student and teacher logits (B, C), and labels (B,) where it needs them, and returns one loss for
each sample (B,): call ``.mean()`` for the mean. Detach the teacher's logits before the call. T is the temperature, p
and q are the softmax of the teacher's and the student's logits divided by T, and the target is the class of the label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def kd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """T² KL(p ‖ q) (Hinton et al. 2015).

    Limits: in float32, logits in the thousands lose their small differences when they are divided by T. In half
    precision every step rounds, and float16 overflows above 65504.
    """
    log_q = F.log_softmax(student_logits / temperature, dim=1)
    p = F.softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, p, reduction="none").sum(1)


def tckd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float = 4.0) -> Tensor:
    """T² KL between the two-way distributions (p_target, 1 − p_target) (Zhao et al. 2022, eq. 5 to 7, first part).

    Limits: the formula takes the log of a softmax. Once a logit gap exceeds about 100 T in float32 (740 T in float64),
    a probability is 0, and the loss infinite or nan.
    """
    two_way_q = two_way(F.softmax(student_logits / temperature, dim=1), labels)
    two_way_p = two_way(F.softmax(teacher_logits / temperature, dim=1), labels)
    return temperature**2 * F.kl_div(two_way_q.log(), two_way_p, reduction="none").sum(1)


def nckd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float = 4.0) -> Tensor:
    """T² KL between p and q renormalised over the C − 1 other classes (Zhao et al. 2022, eq. 5 to 7, second part).

    Limits: those of ``kd``.
    """
    return kd(others(student_logits, labels), others(teacher_logits, labels), temperature=temperature)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """α TCKD + β NCKD, both times T² (Zhao et al. 2022, eq. 7).

    Limits: those of ``tckd``.
    """
    target_part = tckd(student_logits, teacher_logits, labels, temperature=temperature)
    other_part = nckd(student_logits, teacher_logits, labels, temperature=temperature)
    return alpha * target_part + beta * other_part


def coupled_dkd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, alpha: float = 1.0, temperature: float = 4.0
) -> Tensor:
    """α TCKD + (1 − p_target) NCKD, both times T²; KD where α = 1 (Zhao et al. 2022, eq. 6).

    Limits: those of ``tckd``.
    """
    target_part = tckd(student_logits, teacher_logits, labels, temperature=temperature)
    other_part = nckd(student_logits, teacher_logits, labels, temperature=temperature)
    _, rest = two_way(F.softmax(teacher_logits / temperature, dim=1), labels).unbind(1)
    return alpha * target_part + rest * other_part


def nkd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """−p_target log q_target at T = 1, less γ T² Σ p̂ log q̂ over the others (Yang et al. 2023).

    p̂ and q̂ are renormalised over the C − 1 other classes, at the temperature T.

    Limits: those of ``kd``.
    """
    target = labels.unsqueeze(1)
    p, log_q = F.softmax(teacher_logits, dim=1), F.log_softmax(student_logits, dim=1)
    target_part = -(p * log_q).gather(1, target).squeeze(1)
    p_hat = F.softmax(others(teacher_logits, labels) / temperature, dim=1)
    log_q_hat = F.log_softmax(others(student_logits, labels) / temperature, dim=1)
    return target_part - gamma * temperature**2 * (p_hat * log_q_hat).sum(1)


def sdd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    base: Callable[..., Tensor] = dkd,
    complementary_weight: float = 2.0,
    **base_settings: Any,
) -> Tensor:
    """The mean over the N regions of w · base, region 0 being the whole (Wei et al. 2024).

    w is ``complementary_weight`` where the teacher is right about the region and wrong about the whole, or the
    reverse, and 1 otherwise.

    Limits: those of ``base``. It calls ``base`` once for each region.

    Args:
        student_logits: (B, C, N), and the teacher's too.
        base: any loss above that takes labels. For ``kd``, use ``lambda s, t, y: kd(s, t)``.
    """
    regions = zip(student_logits.unbind(2), teacher_logits.unbind(2), strict=True)
    losses = torch.stack([base(s, t, labels, **base_settings) for s, t in regions], dim=1)
    right = teacher_logits.argmax(1) == labels.unsqueeze(1)
    weights = torch.where(right != right[:, :1], complementary_weight, 1.0)
    return (weights * losses).mean(1)


def standardize(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """(z − mean) / (std + eps) over the classes, before any loss above (Sun et al. 2024).

    Limits: where the logits of a row are nearly equal, its gradient is up to 1/eps times that of the loss.
    """
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + eps)


def two_way(probabilities: Tensor, labels: Tensor) -> Tensor:
    """(B, C) to (B, 2): the probability of the target, and of all other classes together."""
    target = probabilities.gather(1, labels.unsqueeze(1))
    return torch.cat((target, others(probabilities, labels).sum(1, keepdim=True)), dim=1)


def others(values: Tensor, labels: Tensor) -> Tensor:
    """(B, C) to (B, C − 1): the values of all classes but the target."""
    classes = torch.arange(values.shape[1] - 1, device=values.device)
    # From the target on, every class is shifted by one.
    return values.gather(1, classes + (classes >= labels.unsqueeze(1)))
