"""Student and teacher as one (2, B, C) tensor: their softmax, its KL divergence, and losses built on it.

Index 0 of the leading 2 is the student, 1 the teacher. Those losses know their gradient in closed form and
work it out in the forward pass, within the buffers of the value: 3 times the size of the logits at the most,
and 1 until the backward pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

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


def softmax_(pair: Tensor) -> Tensor:
    """The softmax of ``pair`` (2, B, C), in place; returns the logarithm of what each row was divided by, (2, B, 1).

    The greatest logit of each row must be 0.
    """
    normalizer = pair.exp_().sum(2, keepdim=True)
    pair.mul_(normalizer.reciprocal())
    return normalizer.log_()


class SoftmaxPair(NamedTuple):
    """``q`` and ``p`` (B, C): student's and teacher's softmax. ``divergence`` (B, 1): KL(p ‖ q). ``log_normalizer``
    (2, B, 1): the logarithm of what each was divided by. ``buffer`` (B, C): free to be overwritten.
    """

    q: Tensor
    p: Tensor
    divergence: Tensor
    log_normalizer: Tensor
    buffer: Tensor


def softmax_pair_(pair: Tensor) -> SoftmaxPair:
    """The softmax of ``pair`` (2, B, C), in place. The greatest logit of each row must be 0."""
    q, p = pair.unbind()
    # Of logits and not of logarithms of probabilities: nothing to cancel where the two networks agree.
    buffer = p - q
    log_normalizer = softmax_(pair)
    divergence = buffer.mul_(p).sum(1, keepdim=True).add_(log_normalizer[0]).sub_(log_normalizer[1])
    return SoftmaxPair(q, p, divergence, log_normalizer, buffer)


class ClosedFormLoss(torch.autograd.Function):
    """A loss (B,) or () whose forward works out its gradient (B, C) by its first input, and saves the two.

    Subclasses add ``forward``. autograd casts the gradient to the input's dtype. A second derivative raises
    RuntimeError.
    """

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        s, gradient = ctx.saved_tensors
        grad_output = grad_outputs[0].unsqueeze(1) if grad_outputs[0].ndim else grad_outputs[0]
        # With create_graph, the product alone would make the gradient a constant to any further derivative.
        differentiable = torch.is_grad_enabled()
        grad_s = _OnlyOnce.apply(s, gradient, grad_output) if differentiable else gradient * grad_output
        return (grad_s, *(None,) * (len(ctx.needs_input_grad) - 1))


class _OnlyOnce(torch.autograd.Function):
    """The gradient as a function of the logits ``s`` that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, gradient: Tensor, grad_output: Tensor) -> Tensor:
        return gradient * grad_output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> None:
        raise RuntimeError("kd_det.losses has first derivatives only; leave out create_graph=True")
