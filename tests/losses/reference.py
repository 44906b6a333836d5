"""The losses on logits again, as plain loops over Python floats."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kd_det.losses import textbook


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    log_sum = math.log(math.fsum(math.exp(z - top) for z in row))
    return [z - top - log_sum for z in row]


def divergence(log_p: list[float], log_q: list[float]) -> float:
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))


def kd_by_loops(s: Tensor, t: Tensor, temperature: float) -> list[float]:
    rows = zip(s.tolist(), t.tolist(), strict=True)
    scaled = [[[z / temperature for z in row] for row in pair] for pair in rows]
    return [temperature**2 * divergence(log_softmax(t_row), log_softmax(s_row)) for s_row, t_row in scaled]


def log_two_way(row: list[float], target: int) -> list[float]:
    """log p_y, and log(1 - p_y) from the others themselves."""
    log_p = log_softmax(row)
    others = [z for c, z in enumerate(log_p) if c != target]
    top = max(others)
    return [log_p[target], top + math.log(math.fsum(math.exp(z - top) for z in others))]


def tckd_and_nckd(s_row: list[float], t_row: list[float], target: int) -> tuple[float, float]:
    def others(row: list[float]) -> list[float]:
        return log_softmax(row[:target] + row[target + 1 :])

    tckd = divergence(log_two_way(t_row, target), log_two_way(s_row, target))
    return tckd, divergence(others(t_row), others(s_row))


def dkd_by_loops(s: Tensor, t: Tensor, y: Tensor, *, alpha: float, beta: float, temperature: float) -> list[float]:
    losses = []
    for s_row, t_row, target in zip(s.tolist(), t.tolist(), y.tolist(), strict=True):
        s_row, t_row = ([z / temperature for z in row] for row in (s_row, t_row))
        tckd, nckd = tckd_and_nckd(s_row, t_row, target)
        losses.append(temperature**2 * (alpha * tckd + beta * nckd))
    return losses


def nkd_by_loops(s: Tensor, t: Tensor, y: Tensor, *, gamma: float, temperature: float) -> list[float]:
    losses = []
    for s_row, t_row, target in zip(s.tolist(), t.tolist(), y.tolist(), strict=True):
        of_target = -math.exp(log_softmax(t_row)[target]) * log_softmax(s_row)[target]
        log_q, log_p = (
            log_softmax([z / temperature for c, z in enumerate(row) if c != target]) for row in (s_row, t_row)
        )
        of_others = -math.fsum(math.exp(a) * b for a, b in zip(log_p, log_q, strict=True))
        losses.append(of_target + gamma * temperature**2 * of_others)
    return losses


def dkd_in_log_space(s: Tensor, t: Tensor, y: Tensor, *, alpha: float, beta: float, temperature: float) -> Tensor:
    """``textbook.dkd`` in float64 and without probabilities that underflow: right for large logits too."""

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        target = logits.double().gather(1, y.unsqueeze(1)) / temperature
        rest = textbook.others(logits.double(), y) / temperature
        two_way = torch.cat((target, rest.logsumexp(1, keepdim=True)), 1)
        return two_way.log_softmax(1), rest.log_softmax(1)

    (two_way_q, log_q), (two_way_p, log_p) = parts(s), parts(t)
    tckd = (two_way_p.exp() * (two_way_p - two_way_q)).sum(1)
    nckd = (log_p.exp() * (log_p - log_q)).sum(1)
    return temperature**2 * (alpha * tckd + beta * nckd)
