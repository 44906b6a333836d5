"""Contrastive representation distillation: the plain formula over several steps, negatives, state, two processes."""

from __future__ import annotations

import copy
import math
import re
import threading

import pytest
import torch

from kd_det.losses import CRDLoss, contrast
from kd_det.losses._gather import GlobalBatch

SAMPLES, STUDENT, TEACHER, FEATURES = 12, 4, 7, 5


def crd(negatives=6, seed=0, **settings):
    torch.manual_seed(1)
    module = CRDLoss(STUDENT, TEACHER, SAMPLES, feature_dim=FEATURES, negatives=negatives, seed=seed, **settings)
    return module.double()


def batch(step=0, size=4, negatives=6):
    """Features of both, the samples' indices, and their negatives."""
    generator = torch.Generator().manual_seed(step)
    s, t = (torch.randn(size, width, generator=generator, dtype=torch.float64) for width in (STUDENT, TEACHER))
    indices = torch.randperm(SAMPLES, generator=generator)[:size]
    return s.requires_grad_(), t, indices, torch.randint(SAMPLES, (size, negatives), generator=generator)


class Plain:
    """The formula by loops over the samples and their negatives, with memories and Z of its own."""

    def __init__(self, module):
        self.embeddings = module.student_embedding, module.teacher_embedding
        self.memories = [module.student_memory.clone(), module.teacher_memory.clone()]
        self.z = None
        self.temperature, self.momentum = module.temperature, module.momentum

    def __call__(self, s, t, indices, negatives):
        embedded = []
        for layer, features in zip(self.embeddings, (s, t), strict=True):
            rows = features @ layer.weight.T + layer.bias
            embedded.append([row / (row * row).sum().sqrt() for row in rows])
        scores = [
            [
                [((row * memory[j]).sum() / self.temperature).exp() for j in (int(own), *others.tolist())]
                for row, own, others in zip(rows, indices, negatives, strict=True)
            ]
            for rows, memory in zip(embedded, reversed(self.memories), strict=True)
        ]
        if self.z is None:
            self.z = [SAMPLES * sum(sum(row).item() for row in side) / sum(map(len, side)) for side in scores]
        noise = negatives.shape[1] / SAMPLES
        total = 0.0
        for side, z in zip(scores, self.z, strict=True):
            for own, *others in side:
                p = own / z
                total = total - (p / (p + noise + 1e-7)).log()
                for other in others:
                    total = total - (noise / (other / z + noise + 1e-7)).log()
        self.memories = [memory.clone() for memory in self.memories]
        for rows, memory in zip(embedded, self.memories, strict=True):
            for row, index in zip(rows, indices, strict=True):
                mixed = self.momentum * memory[index] + (1 - self.momentum) * row.detach()
                memory[index] = mixed / mixed.norm()
        return total / len(s)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5, "momentum": 0.0}])
def test_values_gradients_and_memories_are_those_of_the_plain_formula(settings):
    module = crd(**settings)
    plain = Plain(module)
    for step in range(4):
        s, t, indices, negatives = batch(step, negatives=(6, 3)[step == 2])
        actual, expected = module(s, t, indices, negatives), plain(s, t, indices, negatives)
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=0)
        inputs = [s, *module.parameters()]
        pairs = zip(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        for ours, theirs in zip((module.student_memory, module.teacher_memory), plain.memories, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_by_hand():
    """One negative, memories (1, 0) and (0, 1), both embeddings (1, 0), τ = 1: scores e and 1, Z = (e + 1) / 2 · 2."""
    module = CRDLoss(2, 2, 2, feature_dim=2, negatives=1, temperature=1).double()
    for layer in (module.student_embedding, module.teacher_embedding):
        layer.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    module.student_memory.copy_(torch.eye(2))
    module.teacher_memory.copy_(torch.eye(2))
    x = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    p, q, noise = math.e / (math.e + 1), 1 / (math.e + 1), 1 / 2
    side = -math.log(p / (p + noise)) - math.log(noise / (q + noise))
    assert module(x, x, torch.tensor([0]), torch.tensor([[1]])).item() == pytest.approx(2 * side, rel=1e-6)
    assert module.log_normalizers.exp().tolist() == pytest.approx([math.e + 1] * 2)


def test_learning_finds_the_samples():
    """The two embeddings of a linear map of one another: the loss falls far below that of guessing."""
    module = crd().float()
    teacher = torch.randn(SAMPLES, TEACHER, generator=torch.Generator().manual_seed(0))
    student = teacher[:, :STUDENT]
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = module(student, teacher, torch.arange(SAMPLES))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_negatives_are_all_other_samples_evenly():
    module = crd(negatives=6000)
    drawn = module._draw(torch.tensor([0, 5, 11]))
    for row, own in zip(drawn, (0, 5, 11), strict=True):
        counts = row.bincount(minlength=SAMPLES)
        assert counts[own] == 0
        others = counts[torch.arange(SAMPLES) != own]
        assert others.min() > 450 and others.max() < 650


def test_with_labels_negatives_are_the_samples_of_other_classes():
    labels = torch.tensor([2, 0, 0, 1, 2, 1, 0, 0, 2, 2, 0, 0])
    module = crd(negatives=6000, labels=labels)
    drawn = module._draw(torch.arange(SAMPLES))
    for row, own in zip(drawn, labels, strict=True):
        counts = row.bincount(minlength=SAMPLES)
        assert not counts[labels == own].any()
        others = counts[labels != own]
        assert others.min() > 0.8 * 6000 / len(others) and others.max() < 1.2 * 6000 / len(others)


def test_a_seed_gives_the_same_run_whatever_torchs_own_generator_does():
    def run(seed):
        module = crd(seed=seed)
        values = []
        for step in range(3):
            torch.randn(step * 7)
            values.append(module(*batch(step)[:3]).item())
        return values, module.student_memory

    (values, memory), (again, memory_again), (others, other_memory) = run(3), run(3), run(4)
    assert values == again and memory.equal(memory_again)
    assert values[0] != others[0] and not memory.equal(other_memory)
    module = crd()
    indices = torch.arange(4)
    assert not module._draw(indices).equal(module._draw(indices))


def test_a_run_resumes_from_the_state():
    whole = crd()
    values = [whole(*batch(step)[:3]).item() for step in range(4)]
    first = crd()
    for step in range(2):
        first(*batch(step)[:3])
    state = copy.deepcopy(first.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    resumed = CRDLoss(STUDENT, TEACHER, SAMPLES, feature_dim=FEATURES, negatives=6).double()
    resumed.load_state_dict(state)
    assert [resumed(*batch(step)[:3]).item() for step in (2, 3)] == values[2:]
    assert [copy.deepcopy(first)(*batch(2)[:3]).item()] == values[2:3]


def test_evaluation_changes_nothing():
    module = crd()
    module(*batch())
    before = copy.deepcopy(module.state_dict())
    module.eval()
    value = module(*batch(1)[:3])
    assert value == module(*batch(1)[:3])
    assert all(module.state_dict()[name].equal(kept) for name, kept in before.items())
    assert crd().eval()(*batch()).isfinite()


def test_the_gradient_is_that_of_the_memories_before_the_step():
    """The memories change before the backward pass."""
    module = crd()
    module(*batch())
    s, t, indices, negatives = batch(1)
    frozen = copy.deepcopy(module).eval()
    (expected,) = torch.autograd.grad(frozen(s, t, indices, negatives), s)
    (actual,) = torch.autograd.grad(module(s, t, indices, negatives), s)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_any_temperature_and_features():
    for temperature in (1e-6, 1e-3, 1e6):
        for size in (0.0, 1e-12, 1e15, 1e38):
            module = crd(temperature=temperature).float()
            for step in range(2):
                s, t, indices, negatives = batch(step)
                s = (size * s.detach()).float().requires_grad_()
                value = module(s, (size * t).float(), indices, negatives)
                value.backward()
                assert value.isfinite() and s.grad.isfinite().all()
            assert module.student_memory.isfinite().all()


def test_bad_settings_are_named():
    one_class = torch.zeros(SAMPLES, dtype=torch.int64)
    cases = [
        ({"student_dim": 0}, "must be 1 or more and num_samples 2 or more; got 0, 7, 5, 6 and 12"),
        ({"num_samples": 1}, "num_samples 2 or more"),
        ({"negatives": 0}, "got 4, 7, 5, 0 and 12"),
        ({"temperature": 0}, "temperature must be"),
        ({"momentum": 1.0}, "momentum must be 0 or more and below 1; got 1.0"),
        ({"labels": one_class[1:]}, "labels must be int64 (12,), one for each sample; got torch.int64 (11,)"),
        ({"labels": one_class.int()}, "got torch.int32 (12,)"),
        ({"labels": one_class}, "with at least two classes"),
        ({"labels": torch.arange(SAMPLES) - 1}, "labels must be 0 or more"),
    ]
    usual = {"student_dim": 4, "teacher_dim": 7, "num_samples": SAMPLES, "feature_dim": 5, "negatives": 6}
    for settings, words in cases:
        with pytest.raises(ValueError, match=re.escape(words)):
            CRDLoss(**usual | settings)


def test_bad_arguments_are_named():
    module, (s, t, indices, negatives) = crd(), batch()
    cases = [
        ((s, t[:3], indices), "must both be (B, D)"),
        ((s[:, :3], t, indices), "built for 4 and 7 (teacher) features; got (4, 3) and (4, 7)"),
        ((s, t, indices[:3]), "indices must be int64 (4,) on cpu"),
        ((s, t, indices.int()), "got torch.int32 (4,) on cpu"),
        ((s, t, indices + SAMPLES), f"indices must be from 0 to 11; got {12 + int(indices.min())} to"),
        ((s, t, indices, negatives[:3]), "negatives must be int64 (4, 1 or more) on cpu"),
        ((s, t, indices, negatives[:, :0]), "negatives must be int64"),
        ((s, t, indices, negatives - SAMPLES), "negatives must be from 0 to 11; got -"),
    ]
    for arguments, words in cases:
        with pytest.raises(ValueError, match=re.escape(words)):
            module(*arguments)


SHARES = [((0, 3), (3, 4)), ((0, 2), (2, 4)), ((0, 0), (0, 4)), ((0, 1), (1, 4))]


def test_two_processes_are_as_one_on_the_joined_batch(monkeypatch):
    """Two threads stand in for processes and meet at the gathering; test_mcld.py uses real processes."""
    modules, results, parts, barrier = (crd(), crd()), ([], []), {}, threading.Barrier(2, timeout=60)

    def gather(logits, labels, indices):
        rank = int(threading.current_thread().name)
        parts[rank] = logits, indices
        barrier.wait()
        rows, numbers = (torch.cat(both) for both in zip(parts[0], parts[1], strict=True))
        barrier.wait()
        return GlobalBatch(rows, numbers, numbers, rank * len(parts[0][1]), 2)

    def one_process(rank):
        for step, shares in enumerate(SHARES):
            s, t, indices, negatives = (z.detach()[slice(*shares[rank])] for z in batch(step))
            value = modules[rank](s.requires_grad_(), t, indices, negatives)
            results[rank].append((value.detach(), torch.autograd.grad(value, s)[0]))

    with monkeypatch.context() as patched:
        patched.setattr(contrast, "gather_batch", gather)
        threads = [threading.Thread(target=one_process, args=(rank,), name=str(rank)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    whole = crd()
    for step in range(len(SHARES)):
        s, *others = batch(step)
        value = whole(s, *others)
        values, gradients = zip(*(result[step] for result in results), strict=True)
        torch.testing.assert_close(sum(values) / 2, value.detach(), rtol=1e-12, atol=0)
        # A process's gradients count half in the mean over the two.
        torch.testing.assert_close(torch.cat(gradients) / 2, torch.autograd.grad(value, s)[0], rtol=1e-10, atol=1e-14)
    for module in modules:
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-12, atol=1e-14)
