"""Knowledge distillation (Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network")."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import log_softmax

from kd_det.losses._common import check_logits, check_positive, check_reduction, reduce, working_dtype


def kd_loss(s: Tensor, t: Tensor, *, temperature: float = 4.0, reduction: str = "mean") -> Tensor:
    """``T² KL(p ‖ q)`` with ``p = softmax(t / T)`` and ``q = softmax(s / T)``, per sample.

    Args:
        s: student logits (B, C), any floating dtype.
        t: teacher logits (B, C); receives no gradient.
        temperature: T, above 0.
        reduction: "none", "mean" or "sum" over the samples, as in torch; the mean of an empty batch is 0.

    Returns:
        (B,) for "none", else a scalar; float32, or float64 if an input is. Finite for finite logits.

    Raises:
        ValueError: shapes, dtypes or settings that make no sense.
    """
    check_logits(s, t)
    check_positive("temperature", temperature)
    check_reduction(reduction)
    dtype = working_dtype(s, t)
    log_q, log_p = _log_probabilities(s.to(dtype), temperature), _log_probabilities(t.detach().to(dtype), temperature)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=1)
    return reduce(temperature**2 * divergence, reduction)


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    # The largest logit is taken off before the division rounds: logits in the thousands keep their small differences.
    return log_softmax((logits - logits.detach().amax(dim=1, keepdim=True)) / temperature, dim=1)
