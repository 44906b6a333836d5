"""Shared parts of the losses with a closed-form gradient: the softmax of both networks, and the autograd function.

Shape legend: B samples, C classes. Student and teacher are one (2, B, C) tensor: index 0 of the leading 2 is the
student, 1 the teacher.

Such a loss computes its gradient in the forward pass, in the buffers of its value. It takes at most 3 times the memory
of the logits, and keeps 1 time until the backward pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Logits are clamped to ± these, so that neither a difference of two nor T² times a sum of several overflows.
LARGEST = {torch.float32: 1e18, torch.float64: 1e150}


def stack_pair(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """A new (2, B, C) tensor in the wider of the two dtypes, at least float32; no logit beyond LARGEST."""
    pair = torch.stack((student_logits, teacher_logits))
    if pair.dtype not in LARGEST:
        pair = pair.float()
    largest = LARGEST[pair.dtype]
    return pair.clamp_(-largest, largest)


def softmax_(pair: Tensor) -> Tensor:
    """The softmax of ``pair`` (2, B, C), in place. Returns the log of the divisor of each row, (2, B, 1).

    The largest logit of each row must be 0.
    """
    normalizer = pair.exp_().sum(2, keepdim=True)
    pair.mul_(normalizer.reciprocal())
    return normalizer.log_()


class SoftmaxPair(NamedTuple):
    """The softmax of student and teacher, and their divergence."""

    q: Tensor  # (B, C), the student's
    p: Tensor  # (B, C), the teacher's
    divergence: Tensor  # (B, 1), KL(p ‖ q)
    log_normalizer: Tensor  # (2, B, 1), the log of the divisors
    buffer: Tensor  # (B, C), may be overwritten


def softmax_pair_(pair: Tensor) -> SoftmaxPair:
    """The softmax of ``pair`` (2, B, C), in place. The largest logit of each row must be 0."""
    q, p = pair.unbind()
    # The logits are subtracted, not the log-probabilities: nothing cancels where the two networks agree.
    buffer = p - q
    log_normalizer = softmax_(pair)
    divergence = buffer.mul_(p).sum(1, keepdim=True).add_(log_normalizer[0]).sub_(log_normalizer[1])
    return SoftmaxPair(q, p, divergence, log_normalizer, buffer)


class ClosedFormLoss(torch.autograd.Function):
    """A loss (B,) or () whose forward computes the gradient (B, C) of its first input, and saves both.

    Subclasses add ``forward``. autograd casts the gradient to the input's dtype. A second derivative raises
    RuntimeError.
    """

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        logits, gradient = ctx.saved_tensors
        grad_output = grad_outputs[0].unsqueeze(1) if grad_outputs[0].ndim else grad_outputs[0]
        # Under create_graph the saved gradient would be a constant, and a second derivative would be silently wrong.
        if torch.is_grad_enabled():
            grad_logits = _OnlyOnce.apply(logits, gradient, grad_output)
        else:
            grad_logits = gradient * grad_output
        return (grad_logits, *(None,) * (len(ctx.needs_input_grad) - 1))


class _OnlyOnce(torch.autograd.Function):
    """The gradient as a function of the logits that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, gradient: Tensor, grad_output: Tensor) -> Tensor:
        return gradient * grad_output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> None:
        raise RuntimeError("kd_det.losses has first derivatives only; leave out create_graph=True")
