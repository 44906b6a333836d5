"""Multi-perspective contrastive logit distillation (Wang et al. 2024).

Shape legend: B samples of this process, A samples of all processes together, C classes, Q entries of the queue.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_det.losses._checks import check_labels, check_logits, check_temperature
from kd_det.losses._closed_form import ClosedFormLoss
from kd_det.losses._gather import GlobalBatch, gather_batch
from kd_det.losses.normalize import products, unit_rows

CategoryNorm = Literal["counts", "supcon"]
CATEGORY_NORMS = ("counts", "supcon")
# The sample index of a queue entry that is not filled yet.
EMPTY = -1


class MCLDLoss(nn.Module):
    """Three InfoNCE terms between L2-normalised logits, the student's u and the teacher's v, at temperature τ.

    cos(a, b) is the product of two such rows. Averaged over the samples i:

    - **instance**: −log of exp(cos(u_i, v_i)/τ) over itself plus the sum of exp(cos(u_i, q)/τ) over the queue of the
      teacher's logits q of earlier steps. Entries of sample i itself are left out. The term is 0 if there are no
      others.
    - **sample**: the cross-entropy of row i of the matrix cos(u_i, v_j)/τ over the batch, with j = i as the target.
    - **category**: with the positives of i, the N_p other samples of the batch that have its label, and its negatives,
      the N_n samples of other labels. P is the mean of exp(cos(u_i, v_j)/τ) over the positives, N the mean over the
      negatives. Per sample it is −log of P over P + N ("counts"), or, as in the supervised contrastive loss ("supcon"),
      the mean over the positives p of −log of exp(cos(u_i, v_p)/τ) over the sum of exp(cos(u_i, v_j)/τ) over all
      j ≠ i. It is averaged over the samples that have a positive, and 0 if none has.

    **Queue.** It keeps normalised logits and the indices of their samples. Once it is full, new entries replace the
    oldest. A batch enters after its loss is computed, in training mode only. The queue is in the state_dict
    (``logits``, ``indices`` and ``position``, the place of the next entry), so that training resumes with it.

    **Several processes.** If torch.distributed is initialised, all processes must call this together. Teacher logits,
    labels and indices are gathered; negatives and positives come from the joined batch. The queues of all processes are
    the same, in the order of the joined batch. The mean over the processes of each term, and of its gradients, is what
    one process gives for the joined batch. The queue itself need not be sent: switch off the broadcasting of buffers in
    DistributedDataParallel.

    **Cost.** The queue takes Q (4 C + 8) bytes (20.4 MB for 50,000 × 100). The call takes 5 B Q bytes (16 MB for
    B = 64) and frees them before it returns. It computes two products of (B, C) by (C, Q), one of them for the
    gradient. For the backward pass it keeps (B, C) for the instance term, and (B, A) for the other two.

    Source: Wang, Zhou, "Multi-perspective Contrastive Logit Distillation", 2024, arXiv 2411.10693, section 4: eq. 2-4
    the instance term, 5-6 the sample term, 7-8 the category term, 9 the sum without weights; τ from section 5. Of the
    equations we know the text around them. For the category term it says that positives have the label of i and are
    other samples, that negatives have other labels, and that the numbers of both, N_p and N_n, enter: "counts" is our
    reading of that. "supcon" is L_out of Khosla et al. 2020, which the section cites; N_n does not enter there.

    Args:
        num_classes: C, 2 or more.
        queue_size: Q, 1 or more and at least A; usually the size of the training set. Unused without ``instance``.
        temperature: τ, from 1e-6 to 1e6.
        instance: whether the instance term is computed. At least one of the three terms must be.
        sample: whether the sample term is computed.
        category: whether the category term is computed.
        category_norm: "counts" or "supcon", see above.

    Raises:
        ValueError: a setting other than these.
    """

    logits: Tensor  # (Q, C), float32, of unit length; 0 where empty
    indices: Tensor  # (Q,) int64, EMPTY where empty
    position: Tensor  # () int64, from 0 to Q − 1

    def __init__(
        self,
        num_classes: int,
        queue_size: int,
        *,
        temperature: float = 0.2,
        instance: bool = True,
        sample: bool = True,
        category: bool = True,
        category_norm: CategoryNorm = "counts",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more; got {num_classes}.")
        if not (instance or sample or category):
            raise ValueError("MCLD has no term left: at least one of instance, sample and category must be on.")
        if category_norm not in CATEGORY_NORMS:
            raise ValueError(f"category_norm must be one of {', '.join(CATEGORY_NORMS)}; got {category_norm!r}.")
        if instance and queue_size < 1:
            raise ValueError(f"queue_size must be 1 or more; got {queue_size}.")
        self.num_classes, self.temperature = num_classes, temperature
        self.instance, self.sample, self.category = instance, sample, category
        self.category_norm = category_norm
        entries = queue_size if instance else 0
        self.register_buffer("logits", torch.zeros(entries, num_classes))
        self.register_buffer("indices", torch.full((entries,), EMPTY))
        self.register_buffer("position", torch.tensor(0))

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, indices: Tensor
    ) -> dict[str, Tensor]:
        """
        Args:
            student_logits: (B, C).
            teacher_logits: (B, C).
            labels: the classes (B,), int64.
            indices: each sample's index in the training set (B,), int64, 0 or more.

        Returns:
            Scalars by name, "instance", "sample" and "category", of the terms that are on; their sum is the loss. A
            row of student logits of norm 1e-4 or less passes no gradient, as its gradient would be 1 / norm times
            that of the loss. Precision, range and derivatives: see ``kd_det.losses``.

        Raises:
            ValueError: a shape, dtype or device other than these, or a batch (of all processes together) larger than
                the queue.
        """
        self._check(student_logits, teacher_logits, labels, indices)
        dtype = torch.promote_types(student_logits.dtype, teacher_logits.dtype)
        with torch.autocast(student_logits.device.type, enabled=False):
            student, teacher = unit_rows(student_logits.to(dtype)), unit_rows(teacher_logits.detach().to(dtype))
            batch = gather_batch(teacher, labels, indices)
            terms = self._terms(student, teacher, labels, indices, batch)
            if self.instance and self.training:
                self._enqueue(batch)
        return terms

    def _terms(
        self, student: Tensor, teacher: Tensor, labels: Tensor, indices: Tensor, batch: GlobalBatch
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        # With this scale the mean over the processes is the mean over the joined batch, however it is divided.
        scale = batch.processes / max(batch.labels.shape[0], 1)
        if self.instance:
            self._check_room(batch)
            queue = self.logits.to(student.dtype)
            terms["instance"] = _Instance.apply(student, teacher, indices, queue, self.indices, self.temperature, scale)
        if self.sample or self.category:
            similarity = products(student / self.temperature, batch.logits)
            own = batch.first + torch.arange(student.shape[0], device=student.device)
            if self.sample:
                terms["sample"] = (-similarity.log_softmax(1).gather(1, own.unsqueeze(1))).sum() * scale
            if self.category:
                terms["category"] = _category(similarity, own, labels, batch, self.category_norm)
        return terms

    @torch.no_grad()
    def _enqueue(self, batch: GlobalBatch) -> None:
        entered = torch.arange(batch.indices.shape[0], device=self.position.device)
        # Computed on the device, so that the host does not wait.
        slots = (self.position + entered) % self.logits.shape[0]
        self.logits.index_copy_(0, slots, batch.logits.to(self.logits.dtype))
        self.indices.index_copy_(0, slots, batch.indices)
        self.position.add_(entered.shape[0]).remainder_(self.logits.shape[0])

    def _check(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        check_logits(student_logits, teacher_logits)
        check_labels(labels, student_logits)
        shape, device = tuple(student_logits.shape), student_logits.device
        if shape[1] != self.num_classes:
            raise ValueError(f"MCLDLoss was built for {self.num_classes} classes; got student_logits {shape}.")
        if indices.shape != labels.shape or indices.dtype != torch.int64 or indices.device != device:
            raise ValueError(
                f"indices must be int64 ({shape[0]},) on {device}, each sample's index in the training set; "
                f"got {indices.dtype} {tuple(indices.shape)} on {indices.device}."
            )

    def _check_room(self, batch: GlobalBatch) -> None:
        samples, entries = batch.labels.shape[0], self.logits.shape[0]
        if samples > entries:
            raise ValueError(
                f"the queue has {entries} entries, fewer than the {samples} samples of a batch (of all processes "
                f"together); make it at least {samples}."
            )


def _category(similarity: Tensor, own: Tensor, labels: Tensor, batch: GlobalBatch, norm: CategoryNorm) -> Tensor:
    """The category term of ``similarity`` (B, A), already over τ; ``own`` (B,) has the column of each row's sample."""
    itself = own.unsqueeze(1) == torch.arange(batch.labels.shape[0], device=own.device)
    same = labels.unsqueeze(1) == batch.labels
    rows = (_by_counts if norm == "counts" else _supcon)(similarity, same & ~itself, ~same, itself)
    # How many samples of the joined batch share their label with another.
    counted = ((batch.labels.unsqueeze(1) == batch.labels).sum(1) > 1).sum()
    return rows.sum() * batch.processes / counted.clamp(min=1)


def _by_counts(similarity: Tensor, positive: Tensor, negative: Tensor, itself: Tensor) -> Tensor:
    """−log P / (P + N) for each row (B,); 0 for a row without positives."""
    gap = _log_mean_exp(similarity, negative) - _log_mean_exp(similarity, positive)
    return torch.where(positive.any(1), F.softplus(gap), 0)


def _log_mean_exp(values: Tensor, chosen: Tensor) -> Tensor:
    """log of the mean of exp over the chosen columns of (B, A); a very negative number for a row without any."""
    # A finite value in place of −inf, whose gradient is nan. A quarter of the range, so that differences are finite.
    left_out = torch.finfo(values.dtype).min / 4
    total = values.masked_fill(~chosen, left_out).logsumexp(1) if values.shape[1] else values.sum(1)
    return total - chosen.sum(1).clamp(min=1).to(values.dtype).log()


def _supcon(similarity: Tensor, positive: Tensor, negative: Tensor, itself: Tensor) -> Tensor:
    """The mean over the positives of −log p for each row (B,); 0 for a row without positives."""
    # A finite value in place of −inf: a batch of one sample has no other column.
    log_p = similarity.masked_fill(itself, torch.finfo(similarity.dtype).min).log_softmax(1)
    return torch.where(positive, -log_p, 0).sum(1) / positive.sum(1).clamp(min=1)


class _Instance(ClosedFormLoss):
    """``u`` and ``v`` are the student's and the teacher's normalised logits (B, C).

    With w_j = exp(cos(u, q_j)/τ) and w = exp(cos(u, v)/τ), the gradient with respect to u is
    (Σ_j w_j q_j − Σ_j w_j v) / (τ (w + Σ_j w_j)). The forward pass computes it in the buffer of the similarities.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        v: Tensor,
        indices: Tensor,
        queue: Tensor,
        queue_indices: Tensor,
        temperature: float,
        scale: float,
    ) -> Tensor:
        empty = torch.zeros_like(queue_indices, dtype=u.dtype).masked_fill_(queue_indices == EMPTY, -math.inf)
        weights = torch.addmm(empty, u / temperature, queue.T)
        weights.masked_fill_(queue_indices == indices.unsqueeze(1), -math.inf)
        own = (u * v).sum(1, keepdim=True) / temperature
        # The largest exponent, which is subtracted from all of them, so that the sum is finite and includes a 1.
        greatest = torch.maximum(weights.amax(1, keepdim=True), own)
        weights.sub_(greatest).exp_()
        others = weights.sum(1, keepdim=True)
        total = others + (own - greatest).exp()
        gradient = torch.addcmul(weights @ queue, others, v, value=-1).div_(total).mul_(scale / temperature)
        ctx.save_for_backward(u, gradient)
        return (greatest - own + total.log()).sum() * scale
