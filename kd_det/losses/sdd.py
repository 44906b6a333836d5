"""Scale decoupled distillation (Wei et al. 2024)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kd_det.losses._checks import check_labels, check_weight, gather_targets
from kd_det.losses.dkd import dkd_loss


def sdd_loss(
    s: Tensor,
    t: Tensor,
    y: Tensor,
    *,
    base: Callable[..., Tensor] = dkd_loss,
    complementary_weight: float = 2.0,
    **base_settings: Any,
) -> Tensor:
    """1 / (B N) Σ_bn w_bn ℓ_bn: a loss on the logits of the whole and of each of its regions.

    ℓ_bn is ``base`` on region n of sample b, with the sample's label. w_bn is ``complementary_weight`` where the
    teacher is right (its greatest logit is the label's) about the region and wrong about the whole, or the reverse, and
    1 otherwise; for region 0, the whole, it is always 1.

    Source: Wei, Luo, Luo, "Scaled Decoupled Distillation", CVPR 2024, section 3: D_con + β D_com, averaged over the
    regions. The paper takes β = 2.

    Args:
        s: student logits (B, C, N), N >= 1 regions, the first of which is the whole; ``multi_scale_logits`` gives them.
            The dtypes are those that ``base`` takes.
        t: teacher logits (B, C, N). They get no gradient.
        y: target classes (B,), int64, from 0 to C − 1.
        base: a loss on logits (B·N, C), called as ``base(s, t, y, reduction="none", **base_settings)`` if it needs a
            third argument beside those named, or takes ``*args``; without y if not, as ``kd_loss``. It returns (B·N,).
        complementary_weight: β, 0 or more.
        **base_settings: what else ``base`` takes, such as ``temperature``.

    Returns:
        A scalar in the dtype that ``base`` computes in; 0 with a graph for an empty batch.

    Raises:
        ValueError: a shape, device, label or setting other than these, ``reduction`` among the settings, or a ``base``
            that does not return (B·N,).
    """
    _check_regions(s, t)
    check_labels(y, s)
    check_weight("complementary_weight", complementary_weight)
    if "reduction" in base_settings:
        raise ValueError("sdd_loss averages over samples and regions itself; leave out reduction.")
    t = t.detach()
    rows = [_rows(s), _rows(t)]
    if _takes_labels(base, {"reduction", *base_settings}):
        rows.append(y.repeat_interleave(s.shape[2]))
    losses = base(*rows, reduction="none", **base_settings)
    if losses.shape != rows[0].shape[:1]:
        raise ValueError(
            f'base must return one loss a row, ({len(rows[0])},), for reduction="none"; got {tuple(losses.shape)}.'
        )
    weighted = torch.where(_complementary(t, y).flatten(), complementary_weight * losses, losses)
    return weighted.sum() / max(len(losses), 1)


def _check_regions(s: Tensor, t: Tensor) -> None:
    if s.shape != t.shape or s.ndim != 3 or s.shape[1] < 2 or s.shape[2] < 1:
        raise ValueError(
            "student and teacher logits must both be (B, C, N) with C >= 2 and N >= 1; "
            f"got {tuple(s.shape)} and {tuple(t.shape)}."
        )
    if s.device != t.device:
        raise ValueError(f"student logits are on {s.device}, the teacher's on {t.device}; move one.")


def _rows(logits: Tensor) -> Tensor:
    """(B, C, N) to (B·N, C), the regions of a sample together."""
    return logits.transpose(1, 2).flatten(0, 1)


def _takes_labels(base: Callable[..., Tensor], keywords: set[str]) -> bool:
    """Whether ``base`` must get a third argument by position, ``keywords`` being given by name, or takes any number."""
    kinds = inspect.Parameter
    parameters = inspect.signature(base).parameters.values()
    by_position = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in by_position if p.default is kinds.empty and p.name not in keywords]
    return len(needed) >= 3 or any(p.kind == kinds.VAR_POSITIONAL for p in parameters)


def _complementary(t: Tensor, y: Tensor) -> Tensor:
    """(B, N): whether the teacher is right about just one of the region and the whole."""
    gather_targets(t[:, :, 0], y.unsqueeze(1))  # A base without labels would not notice one out of range.
    right = t.argmax(1) == y.unsqueeze(1)
    return right != right[:, :1]
