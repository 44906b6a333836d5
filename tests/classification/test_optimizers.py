"""DOT's two momenta, against the formula by hand and against SGD."""

from __future__ import annotations

import torch
from torch import nn

from classification.optimizers import DOT


def parameters():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(3)]


def losses(a, b, c, step):
    """Both losses reach ``a``, the task's alone ``b``, the distillation's alone ``c``."""
    return (a * b).square().sum() * (step + 1), (a * c).sin().sum() + c.square().sum()


def trained(delta, steps=4, lr=0.1, momentum=0.8, weight_decay=0.05):
    ours = parameters()
    optimizer = DOT(ours, lr=lr, momentum=momentum, delta=delta, weight_decay=weight_decay)
    for step in range(steps):
        optimizer.add_gradients(*losses(*ours, step))
        optimizer.step()
    return ours, optimizer


def test_without_delta_it_is_sgd():
    ours, _ = trained(0.0)
    theirs = parameters()
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.8, weight_decay=0.05)
    for step in range(4):
        sgd.zero_grad()
        sum(losses(*theirs, step)).backward()
        sgd.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_a_distillation_that_reaches_no_parameter_leaves_sgd():
    """Such as MCLD's without its terms."""
    ours, theirs = parameters(), parameters()
    settings = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05}
    dot, sgd = DOT(ours, delta=0.1, **settings), torch.optim.SGD(theirs, **settings)
    for step in range(3):
        dot.add_gradients(losses(*ours, step)[0], torch.zeros(()))
        dot.step()
        sgd.zero_grad()
        losses(*theirs, step)[0].backward()
        sgd.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_the_two_momenta_by_hand():
    ours, _ = trained(0.1)
    a, b, c = (p.detach().clone().requires_grad_() for p in parameters())
    buffers = {}
    momenta = {("a", 0): 0.7, ("a", 1): 0.9, ("b", 0): 0.8, ("c", 1): 0.8}
    for step in range(4):
        values = dict(zip("abc", (a, b, c), strict=True))
        parts = [torch.autograd.grad(loss, (a, b, c), allow_unused=True) for loss in losses(a, b, c, step)]
        moved = {name: value.detach().clone() for name, value in values.items()}
        for (name, part), momentum in momenta.items():
            gradient = parts[part]["abc".index(name)]
            decayed = part == 0 or name == "c"
            gradient = gradient + 0.05 * values[name].detach() * decayed
            buffers[name, part] = gradient + momentum * buffers.get((name, part), 0)
            moved[name] -= 0.1 * buffers[name, part]
        a, b, c = (moved[name].requires_grad_() for name in "abc")
    for p, q in zip(ours, (a, b, c), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-14)


def test_gradients_of_micro_batches_are_added_and_the_state_is_taken_up():
    ours = parameters()
    optimizer = DOT(ours, lr=0.1, momentum=0.8, delta=0.1, weight_decay=0.05)
    whole, _ = trained(0.1)
    for step in range(4):
        for _ in range(2):
            optimizer.add_gradients(*(loss / 2 for loss in losses(*ours, step)))
        optimizer.step()
        state = optimizer.state_dict()
        optimizer = DOT(ours, lr=1.0, momentum=0.0, delta=0.0, weight_decay=0.0)
        optimizer.load_state_dict(state)
    for p, q in zip(ours, whole, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
