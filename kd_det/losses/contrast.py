"""Contrastive representation distillation (Tian et al. 2020).

Shape legend: B samples of this process, A samples of all processes together, M samples of the training set, F features
of an embedding, K negatives of a sample.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor, nn

from kd_det.losses._checks import check_features, check_temperature
from kd_det.losses._closed_form import ClosedFormLoss
from kd_det.losses._gather import gather_batch
from kd_det.losses.normalize import unit_rows

# Added to c = K/M, as the authors do.
EPS = 1e-7


class CRDLoss(nn.Module):
    """Noise-contrastive estimation: which of K + 1 samples does a feature belong to? For student and teacher.

    A linear layer and L2 normalisation embed the features of each network: u_i (student) and v_i (teacher) of sample i.
    Two memories keep an embedding of every sample of the training set, m^s of the student and m^t of the teacher. With
    the score P(x, m) = exp(⟨x, m⟩ / τ) / Z and c = K/M, the loss of one side, averaged over the samples i, is

        −log[P(x, m_i) / (P(x, m_i) + c + 1e-7)] − Σ_j log[c / (P(x, m_j) + c + 1e-7)],

    where j runs over K negatives of i. The student's side compares x = u_i with m = m^t, the teacher's x = v_i with
    m = m^s. The loss is the sum of the two sides. The student and both embeddings learn from it, the teacher does not.

    **Negatives** are drawn in each step, uniformly and with replacement, from the samples other than i, or with
    ``labels`` from the samples of other classes. The draws and the initial memories depend on ``seed`` and the number
    of steps, but not on torch's global generator. ``forward`` also accepts given negatives.

    **Memories.** After the loss, in training mode, m_i becomes momentum · m_i + (1 − momentum) · x_i, L2-normalised,
    with the x of the same network. Z of a side is M times the mean score of the first step; it does not change after
    that.

    **State.** The state_dict holds the embeddings, both memories, log Z, and the number of steps (``_extra_state``), so
    that a resumed training draws the same negatives.

    **Several processes.** If torch.distributed is initialised, all processes must call this together: each updates its
    memories with the samples of all. Switch off the broadcasting of buffers in DistributedDataParallel.

    **Cost.** The memories take 8 M F bytes (51 MB for 50,000 × 128). A side computes two products with a whole memory,
    one of them for the gradient. It takes 4 B M bytes twice (13 MB for B = 64) and frees them before the call returns.
    At the usual K this is much less memory than K rows per sample. For the backward pass it keeps (B, F).

    Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, with the constants of its
    code. There the negatives come from other classes, and repeat only if K exceeds their number. The weight on
    CIFAR-100 is 0.8.

    Args:
        student_dim: D, the student's features, 1 or more.
        teacher_dim: E, the teacher's features, 1 or more.
        num_samples: M, 2 or more.
        feature_dim: F, 1 or more.
        negatives: K, 1 or more.
        temperature: τ, from 1e-6 to 1e6.
        momentum: the share of the old value in a memory, 0 or more and below 1.
        labels: the class of every sample of the training set (M,), int64, 0 or more, with at least two classes; None to
            draw from all other samples.
        seed: any whole number, the same in all processes.

    Raises:
        ValueError: a setting other than these.
    """

    student_memory: Tensor  # (M, F), float32
    teacher_memory: Tensor  # (M, F), float32
    log_normalizers: Tensor  # (2,) float32: log Z of student and teacher; inf before the first step
    order: Tensor | None  # (M,) int64: the samples, sorted by class
    first: Tensor | None  # (M,) int64: where the class of a sample starts in ``order``
    count: Tensor | None  # (M,) int64: how many samples the class of a sample has

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        num_samples: int,
        *,
        feature_dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        labels: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if min(student_dim, teacher_dim, feature_dim, negatives) < 1 or num_samples < 2:
            raise ValueError(
                "student_dim, teacher_dim, feature_dim and negatives must be 1 or more and num_samples 2 or more; got "
                f"{student_dim}, {teacher_dim}, {feature_dim}, {negatives} and {num_samples}."
            )
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be 0 or more and below 1; got {momentum!r}.")
        self.negatives, self.temperature, self.momentum, self.seed = negatives, temperature, momentum, seed
        self.steps = 0
        self.student_embedding = nn.Linear(student_dim, feature_dim)
        self.teacher_embedding = nn.Linear(teacher_dim, feature_dim)
        generator = torch.Generator().manual_seed(self._step_seed("memories"))
        for name in ("student_memory", "teacher_memory"):
            values = 2 * torch.rand(num_samples, feature_dim, generator=generator) - 1
            self.register_buffer(name, values / math.sqrt(feature_dim / 3))
        self.register_buffer("log_normalizers", torch.full((2,), math.inf))
        tables = (None, None, None) if labels is None else _class_tables(labels, num_samples)
        for name, table in zip(("order", "first", "count"), tables, strict=True):
            self.register_buffer(name, table, persistent=False)

    def forward(
        self, student_features: Tensor, teacher_features: Tensor, indices: Tensor, negatives: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            student_features: (B, D), such as the student's pooled features.
            teacher_features: (B, E).
            indices: each sample's index in the training set (B,), int64, from 0 to M − 1.
            negatives: the samples to use as negatives (B, any K), int64, from 0 to M − 1; None to draw them.

        Returns:
            A scalar in the dtype of the embeddings' weights, float32 at least; 0 with a graph for an empty batch. A
            sample whose embedding has a norm of 1e-4 or less before normalisation passes no gradient.

        Raises:
            ValueError: a shape, dtype, device or index other than these.
        """
        self._check(student_features, teacher_features, indices, negatives)
        dtype = self.student_embedding.weight.dtype
        with torch.autocast(student_features.device.type, enabled=False):
            student = unit_rows(self.student_embedding(student_features.to(dtype)))
            teacher = unit_rows(self.teacher_embedding(teacher_features.detach().to(dtype)))
            drawn = self._draw(indices) if negatives is None else negatives
            chosen = torch.cat((indices.unsqueeze(1), drawn), 1)
            pairs = (student, self.teacher_memory.to(dtype)), (teacher, self.student_memory.to(dtype))
            with torch.no_grad():
                scores = [(x / self.temperature @ memory.T).gather(1, chosen) for x, memory in pairs]
                sums = torch.stack([score.logsumexp(1) for score in scores], 1)
                batch = gather_batch(torch.cat((student, teacher, sums), 1), indices, indices)
                embeddings, sums = batch.logits[:, :-2], batch.logits[:, -2:]
                log_z = self._log_normalizers(sums, chosen.shape[1])
            # With this factor the mean over the processes is the mean over the joined batch, however it is divided.
            scale = batch.processes / max(len(embeddings), 1)
            sides = [
                _NCE.apply(x, memory, chosen, score - z, self.temperature, scale)
                for (x, memory), score, z in zip(pairs, scores, log_z, strict=True)
            ]
            if self.training and len(embeddings):
                self.log_normalizers.copy_(log_z)
                self._remember(embeddings, batch.indices)
        loss: Tensor = sides[0] + sides[1]
        return loss

    def _log_normalizers(self, sums: Tensor, scores: int) -> Tensor:
        """log Z (2,). The first step computes it from ``sums`` (A, 2), each the logsumexp of ``scores`` scores."""
        first_step = sums.logsumexp(0) + math.log(len(self.student_memory) / (max(len(sums), 1) * scores))
        # Chosen on the device, so that the host does not wait.
        return torch.where(self.log_normalizers.isinf(), first_step, self.log_normalizers)

    @torch.no_grad()
    def _remember(self, embeddings: Tensor, indices: Tensor) -> None:
        """Mixes ``embeddings`` (A, 2 F), the student's and the teacher's, into the memories."""
        memories = self.student_memory, self.teacher_memory
        for memory, new in zip(memories, embeddings.chunk(2, 1), strict=True):
            mixed = torch.lerp(new, memory[indices].to(new.dtype), self.momentum)
            memory.index_copy_(0, indices, unit_rows(mixed).to(memory.dtype))

    def _draw(self, indices: Tensor) -> Tensor:
        """Negatives (B, K) of the samples ``indices`` (B,)."""
        device = indices.device
        generator = torch.Generator(device).manual_seed(self._step_seed(self.steps))
        self.steps += self.training
        # A sample and the samples that are not its negatives are one range of ``order``, which is left out.
        if self.order is None or self.first is None or self.count is None:
            first, count = indices, torch.ones_like(indices)
        else:
            first, count = self.first[indices], self.count[indices]
        first, count = first.unsqueeze(1), count.unsqueeze(1)
        numbers = torch.randint(1 << 62, (len(indices), self.negatives), generator=generator, device=device)
        drawn = numbers % (len(self.student_memory) - count)
        drawn = drawn + count * (drawn >= first)
        return drawn if self.order is None else self.order[drawn]

    def _step_seed(self, step: int | str) -> int:
        return random.Random(f"{self.seed} {step}").getrandbits(63)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)

    def _check(
        self, student_features: Tensor, teacher_features: Tensor, indices: Tensor, negatives: Tensor | None
    ) -> None:
        check_features(student_features, teacher_features)
        expected = self.student_embedding.in_features, self.teacher_embedding.in_features
        if (student_features.shape[1], teacher_features.shape[1]) != expected:
            raise ValueError(
                f"CRDLoss was built for {expected[0]} and {expected[1]} (teacher) features; "
                f"got {tuple(student_features.shape)} and {tuple(teacher_features.shape)}."
            )
        batch, device = len(student_features), student_features.device
        self._check_indices("indices", indices, indices.shape == (batch,), f"({batch},)", device)
        if negatives is not None:
            fits = negatives.ndim == 2 and len(negatives) == batch and negatives.shape[1] > 0
            self._check_indices("negatives", negatives, fits, f"({batch}, 1 or more)", device)

    def _check_indices(self, name: str, indices: Tensor, fits: bool, shape: str, device: torch.device) -> None:
        if not fits or indices.dtype != torch.int64 or indices.device != device:
            raise ValueError(
                f"{name} must be int64 {shape} on {device}, indices into the training set; "
                f"got {indices.dtype} {tuple(indices.shape)} on {indices.device}."
            )
        # On other devices their own assertion stops the run: a check would make the host wait.
        samples = len(self.student_memory)
        if device.type == "cpu" and indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < samples:
            raise ValueError(
                f"{name} must be from 0 to {samples - 1}; got {int(indices.min())} to {int(indices.max())}."
            )


class _NCE(ClosedFormLoss):
    """The cost of one side, times ``scale`` and summed over the samples.

    ``x`` (B, F) are the embeddings, ``memory`` (M, F) those of the other network, ``chosen`` (B, 1 + K) the sample and
    its negatives, and ``log_p`` their scores log P. The gradient with respect to log P is −c / (P + c) for the sample
    and P / (P + c) for a negative, where c includes its eps. The forward pass computes it, because the memory changes
    before the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, memory: Tensor, chosen: Tensor, log_p: Tensor, temperature: float, scale: float
    ) -> Tensor:
        noise = (chosen.shape[1] - 1) / len(memory)
        # So no exponential overflows, and no probability is 0.
        log_odds = log_p - math.log(noise + EPS)
        weights = log_odds.sigmoid()
        weights[:, 0] = -(-log_odds[:, 0]).sigmoid()
        gradient = log_odds.new_zeros(len(x), len(memory)).scatter_add_(1, chosen, weights) @ memory
        ctx.save_for_backward(x, gradient.mul_(scale / temperature))

        log_odds[:, 0].neg_()
        costs = torch.logaddexp(log_odds, log_odds.new_zeros(()))
        return (costs.sum() + costs[:, 1:].numel() * math.log1p(EPS / noise)) * scale


def _class_tables(labels: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """``order``, ``first`` and ``count`` of CRDLoss."""
    if labels.shape != (samples,) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 ({samples},), one for each sample; got {labels.dtype} {tuple(labels.shape)}."
        )
    if int(labels.min()) < 0 or int(labels.min()) == int(labels.max()):
        raise ValueError(
            "labels must be 0 or more, with at least two classes, as negatives come from another class; "
            f"got {int(labels.min())} to {int(labels.max())}."
        )
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    return labels.argsort(stable=True), starts[labels], counts[labels]
