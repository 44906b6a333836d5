"""Student and teacher as one (2, B, C) tensor: their softmax, its KL divergence, and losses built on it.

Index 0 of the leading 2 is the student, 1 the teacher. Those losses know their gradient in closed form and
work it out in the forward pass, within the buffers of the value: 3 times the size of the logits at the most,
1 from then on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits beyond these count as these, so that neither a difference of two nor T² times a sum of some can
# overflow.
LARGEST = {torch.float32: 1e18, torch.float64: 1e150}


def stack_pair(s: Tensor, t: Tensor) -> Tensor:
    """A new (2, B, C) tensor in the wider of the two dtypes, at least float32; no logit beyond LARGEST."""
    pair = torch.stack((s, t))
    if pair.dtype not in LARGEST:
        pair = pair.float()
    largest = LARGEST[pair.dtype]
    return pair.clamp_(-largest, largest)


def softmax_pair_(pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The softmax of ``pair`` (2, B, C), in place. The greatest logit of each row must be 0.

    Returns:
        KL(teacher ‖ student) (B, 1), the logarithm of the normalisers (2, B, 1), a spare buffer (B, C).
    """
    student, teacher = pair.unbind()
    # Of logits and not of logarithms of probabilities: nothing to cancel where the two networks agree.
    buffer = teacher - student
    normalizer = pair.exp_().sum(2, keepdim=True)
    pair.div_(normalizer)
    log_normalizer = normalizer.log_()
    log_s, log_t = log_normalizer.unbind()
    divergence = buffer.mul_(teacher).sum(1, keepdim=True).add_(log_s).sub_(log_t)
    return divergence, log_normalizer, buffer


class ClosedFormLoss(torch.autograd.Function):
    """A loss (B,) or () whose forward saves its gradient (B, C) by its first input, and nothing else.

    Subclasses add ``forward``. autograd casts the gradient to the input's dtype. A second derivative raises
    RuntimeError.
    """

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # Under create_graph the saved gradient would pass for a constant. The guard against that costs time.
        times = _times_gradient_once if torch.is_grad_enabled() else _times_gradient
        return times(ctx, *grad_outputs)


def _times_gradient(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    grad_input = gradient * (grad_output.unsqueeze(1) if grad_output.ndim else grad_output)
    return (grad_input, *(None,) * (len(ctx.needs_input_grad) - 1))


_times_gradient_once = once_differentiable(_times_gradient)
