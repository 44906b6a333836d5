"""Losses on class scores at several levels: DIST and MLKD (samples, classes), CTKD (temperatures), CAT-KD (positions).

Shape legend: B samples, C classes, D channels of a feature map, H and W height and width of a map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_det.losses._checks import (
    FLOATS,
    check_logits,
    check_maps,
    check_one_device,
    check_temperature,
    check_weight,
    to_loss_dtype,
)
from kd_det.losses._closed_form import LARGEST
from kd_det.losses.kd import kd_loss
from kd_det.losses.normalize import products, standardize_logits, unit_rows

# Added to a product of norms in dist_loss, as the authors do.
DIST_EPS = 1e-8
# A student's row or column passes no gradient if its deviation from its mean is this share of its size or less.
MIN_SPREAD = 1e-4


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """T² [inter_weight (1 − r_inter) + intra_weight (1 − r_intra)], with Pearson correlations of probabilities.

    With p = softmax(teacher_logits / T) and q = softmax(student_logits / T), both (B, C), r_inter is the correlation of
    a row of q with the same row of p, averaged over the B samples. r_intra is that of a column, averaged over the C
    classes. 1e-8 is added to the product of the two norms in the denominator of a correlation. So a column of small
    probabilities has a correlation near 0, even if student and teacher agree, and so has every column for B = 1.

    A row or column of q that is constant up to 1e-4 of its size passes no gradient, as its gradient would be at least
    1e4 times that of others. So nearly equal logits pass no gradient, as in ``standardize_logits``.

    Source: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022. Its code has
    weight 2 for the sum, 1 for both parts, and T = 1 on ImageNet, 4 on CIFAR-100.

    Args:
        student_logits: (B, C), C >= 2.
        teacher_logits: (B, C).
        inter_weight: 0 or more.
        intra_weight: 0 or more.
        temperature: T, from 1e-6 to 1e6.

    Returns:
        A scalar; 0 with a graph for an empty batch. Precision and range: see ``kd_det.losses``.

    Raises:
        ValueError: a shape, dtype, device or setting other than these.
    """
    check_logits(student_logits, teacher_logits)
    check_weight("inter_weight", inter_weight)
    check_weight("intra_weight", intra_weight)
    check_temperature(temperature)
    q, p = (probabilities(z, temperature) for z in to_loss_dtype(student_logits, teacher_logits))
    if not len(q):
        return q.sum()
    inter, intra = (1 - _correlations(*rows).mean() for rows in ((q, p), (q.mT, p.mT)))
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """The softmax of float32 or float64 ``logits`` (B, C) / T."""
    return (_shifted(logits) / temperature).softmax(1)


def _shifted(logits: Tensor) -> Tensor:
    """``logits`` less the largest of each row, clamped to LARGEST."""
    largest = LARGEST[logits.dtype]
    clamped = logits.clamp(-largest, largest)
    # Before any division, whose rounding would lose small differences of logits in the thousands.
    return clamped - clamped.detach().amax(1, keepdim=True)


def _correlations(s: Tensor, t: Tensor) -> Tensor:
    """(M,): Pearson's r of each row of ``s`` (M, K) with that of ``t``."""
    a, b = _centred(s), _centred(t)
    norm = torch.linalg.vector_norm(a, dim=1)
    r = (a * b).sum(1) / (norm * torch.linalg.vector_norm(b, dim=1) + DIST_EPS)
    spread_out = norm > MIN_SPREAD * torch.linalg.vector_norm(s.detach(), dim=1)
    return torch.where(spread_out, r, r.detach())


def _centred(rows: Tensor) -> Tensor:
    # Shifted first: equal values give exactly 0.
    shifted = rows - rows[:, :1].detach()
    return shifted - shifted.mean(1, keepdim=True)


def mlkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperatures: Sequence[float] = (2, 3, 4, 5, 6),
    relations: bool = True,
    standardize: bool = False,
) -> Tensor:
    """Σ_T [T² KL(p ‖ q) + ‖q qᵀ − p pᵀ‖² / B + ‖qᵀ q − pᵀ p‖² / C]: multi-level logit distillation.

    With p = softmax(teacher_logits / T) and q = softmax(student_logits / T), both (B, C), the first part is
    ``kd_loss``, a mean over the samples. The second compares the relations of samples (B, B), the third those of
    classes (C, C). The third grows with B², as its matrices are sums over the samples.

    Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023. The weights are 0.9 on CIFAR-100 and 0.5 on
    ImageNet, and the loss is taken on a weakly and a strongly augmented view of each image. The published code also
    multiplies the weak view's means by a mask of the samples or classes where the teacher is less sure. Since they are
    means already, this only halves them. This loss has no mask.

    Args:
        student_logits: (B, C), C >= 2.
        teacher_logits: (B, C).
        temperatures: one or more T, each from 1e-6 to 1e6.
        relations: whether the second and the third part are taken. The published code leaves them out on the strongly
            augmented view.
        standardize: whether the first part is taken of ``standardize_logits`` of both (Sun et al. 2024). Their code
            leaves the relations as they are.

    Returns:
        A scalar; 0 with a graph for an empty batch. Precision and range: see ``kd_det.losses``.

    Raises:
        ValueError: a shape, dtype, device or setting other than these.
    """
    check_logits(student_logits, teacher_logits)
    if not temperatures:
        raise ValueError("temperatures must have one entry or more; got none.")
    # Widened here, so that the gradients of all parts are added up in one wide dtype.
    s, t = to_loss_dtype(student_logits, teacher_logits)
    compared = (standardize_logits(s), standardize_logits(t)) if standardize else (s, t)
    # kd_loss also checks each temperature.
    parts = [kd_loss(*compared, temperature=temperature) for temperature in temperatures]
    if relations:
        parts += [_relation_errors(*(probabilities(z, temperature) for z in (s, t))) for temperature in temperatures]
    return torch.stack(parts).sum()


def _relation_errors(q: Tensor, p: Tensor) -> Tensor:
    samples, classes = (products(a, a) - products(b, b) for a, b in ((q, p), (q.mT, p.mT)))
    return samples.square().sum() / max(len(q), 1) + classes.square().sum() / q.shape[1]


def ctkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    theta: Tensor,
    *,
    reversal: float,
    start: float = 1.0,
    span: float = 20.0,
) -> Tensor:
    """KD at the learned temperature T = start + span σ(θ), where θ learns to make the loss larger: curriculum KD.

    The student's gradient is that of ``kd_loss`` at this T. θ gets the gradient of the loss, T² included, times
    −reversal. So the same optimiser step lowers the loss through the student and raises it through θ. ``ctkd_reversal``
    is the curriculum.

    Source: Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge Distillation", AAAI 2023,
    the global temperature; T is between 1 and 21, and θ starts at 1.

    Args:
        student_logits: (B, C), C >= 2.
        teacher_logits: (B, C).
        theta: θ, one floating-point number, of any shape; usually an ``nn.Parameter``.
        reversal: 0 or more; 0 leaves θ unchanged.
        start: the lowest temperature, from 1e-6 to 1e6.
        span: the difference to the highest one, 0 or more; their sum is at most 1e6.

    Returns:
        A scalar, the mean over the samples; 0 with a graph for an empty batch. Precision and range: see
        ``kd_det.losses``.

    Raises:
        ValueError: a shape, dtype, device or setting other than these.
    """
    check_logits(student_logits, teacher_logits)
    if theta.numel() != 1 or theta.dtype not in FLOATS or theta.device != student_logits.device:
        raise ValueError(
            f"theta must be one floating-point number on {student_logits.device}; "
            f"got {theta.dtype} {tuple(theta.shape)} on {theta.device}."
        )
    check_weight("reversal", reversal)
    check_weight("span", span)
    check_temperature(start)
    check_temperature(start + span)
    s, t = to_loss_dtype(student_logits, teacher_logits)
    theta = theta.to(s.dtype).reshape(())
    # The value of theta, with −reversal as its derivative.
    reversed_theta = theta.detach() - reversal * (theta - theta.detach())
    temperature = start + span * reversed_theta.sigmoid()
    log_q, log_p = ((_shifted(z) / temperature).log_softmax(1) for z in (s, t))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum() / max(len(s), 1)


def ctkd_reversal(epoch: float, *, epochs: float = 10.0, maximum: float = 1.0) -> float:
    """maximum (1 − cos(π epoch / epochs)) / 2: from 0 to ``maximum`` along a half cosine, and constant after it.

    The ``reversal`` of ``ctkd_loss``. Source: see ``ctkd_loss``. The published runs count epochs from 1.

    Args:
        epoch: 0 or more.
        epochs: the length of the rise, above 0.
        maximum: 0 or more.

    Raises:
        ValueError: a setting other than these.
    """
    if not epoch >= 0:
        raise ValueError(f"epoch must be 0 or more; got {epoch!r}.")
    if not 0 < epochs < math.inf:
        raise ValueError(f"epochs must be a finite number above 0; got {epochs!r}.")
    check_weight("maximum", maximum)
    return maximum * (1 - math.cos(math.pi * min(epoch / epochs, 1.0))) / 2


def class_activation_maps(feature_map: Tensor, classifier: nn.Linear) -> Tensor:
    """Σ_d w_cd F_d: how much each position of a map supports each class, without the classifier's bias.

    In models that average the map before their classifier, the mean over the positions is the logit less the bias.

    Source: Zhou, Khosla, Lapedriza, Oliva, Torralba, "Learning Deep Features for Discriminative Localization", CVPR
    2016. In CAT-KD's code the classifier is a 1 × 1 convolution without bias, which is the same.

    Args:
        feature_map: the map that the model averages before its classifier (B, D, H, W).
        classifier: the model's last layer, D features to C classes.

    Returns:
        (B, C, H, W), in the dtype of the product. Both the map and the classifier get gradients.

    Raises:
        TypeError: ``classifier`` is not linear.
        ValueError: a shape other than these.
    """
    if not isinstance(classifier, nn.Linear):
        raise TypeError(f"classifier must be an nn.Linear; got {type(classifier).__name__}.")
    if feature_map.ndim != 4 or feature_map.shape[1] != classifier.in_features:
        raise ValueError(
            f"feature_map must be (B, {classifier.in_features}, H, W), as the classifier has {classifier.in_features} "
            f"inputs; got {tuple(feature_map.shape)}."
        )
    return F.conv2d(feature_map, classifier.weight[:, :, None, None])


def catkd_loss(student_cams: Tensor, teacher_cams: Tensor, *, resolution: int = 2, normalize: bool = True) -> Tensor:
    """The mean squared error of class activation maps: class attention transfer.

    Each map is brought to ``resolution`` × ``resolution`` by adaptive average pooling. With ``normalize`` each class's
    map is then divided by its L2 norm over the positions. So its magnitude, the class's score, does not matter. A map
    of norm 1e-4 or less then passes no gradient; a map of zeros stays 0.

    Source: Guo, Yan, Li, Lin, "Class Attention Transfer Based Knowledge Distillation", CVPR 2023. Its code
    takes weight 400 and a resolution of 2 on CIFAR-100. It uses the maps of all classes, as here.

    Args:
        student_cams: (B, C, H, W), such as ``class_activation_maps`` returns.
        teacher_cams: (B, C, any height, any width).
        resolution: 1 or more, and no larger than a side of either map. With 1 and ``normalize`` only signs are left,
            which have no gradient.
        normalize: whether the maps are divided by their norms.

    Returns:
        A scalar; 0 with a graph for an empty batch. Precision and range: see ``kd_det.losses``.

    Raises:
        ValueError: a shape, dtype, device or setting other than these.
    """
    check_maps("student_cams", [student_cams])
    check_maps("teacher_cams", [teacher_cams])
    if student_cams.shape[:2] != teacher_cams.shape[:2]:
        raise ValueError(
            "student_cams and teacher_cams must be maps of the same samples and classes; "
            f"got {tuple(student_cams.shape)} and {tuple(teacher_cams.shape)}."
        )
    check_one_device("cams", student_cams, teacher_cams)
    side = min(*student_cams.shape[2:], *teacher_cams.shape[2:])
    if not 1 <= resolution <= side:
        raise ValueError(f"resolution must be from 1 to {side}, the maps' shortest side; got {resolution!r}.")
    s, t = (F.adaptive_avg_pool2d(cams, resolution).flatten(2) for cams in to_loss_dtype(student_cams, teacher_cams))
    if normalize:
        s, t = unit_rows(s), unit_rows(t)
    return F.mse_loss(s, t) if s.numel() else s.sum()
