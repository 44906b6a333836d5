"""A resumed training keeps its momentum, on every version of Detectron2."""

from __future__ import annotations

import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from kd_det.config import load_config
from kd_det.engine import DistillTrainer


def trainer(steps: int) -> DistillTrainer:
    """One whose inner trainer has taken steps of momentum SGD; its data and hooks do not matter here."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    made = DistillTrainer.__new__(DistillTrainer)
    made._hooks, made.iter, made.cfg = [], steps, load_config("")
    made._trainer = SimpleTrainer(model, [], optimizer)
    made._trainer.iter = steps
    for _ in range(steps):
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return made


def test_momentum_is_saved_and_restored(tmp_path):
    trained, resumed = trainer(steps=3), trainer(steps=0)
    torch.save(trained.state_dict(), tmp_path / "state.pth")
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert resumed.iter == 3
    for before, after in zip(trained._trainer.model.parameters(), resumed._trainer.model.parameters(), strict=True):
        momentum = trained._trainer.optimizer.state[before]["momentum_buffer"]
        assert momentum.abs().sum() > 0
        assert torch.equal(resumed._trainer.optimizer.state[after]["momentum_buffer"], momentum)
