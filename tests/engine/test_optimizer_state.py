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


class Scaled(SimpleTrainer):
    """With the state of a gradient scale, as mixed precision on a GPU has and on a CPU has not."""

    scale = 1.0

    def state_dict(self):
        return {**super().state_dict(), "grad_scaler": self.scale}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.scale = state_dict["grad_scaler"]


def test_a_run_may_move_between_devices_with_and_without_a_gradient_scale():
    def scaled(scale):
        made = trainer(steps=0)
        made._trainer = Scaled(made._trainer.model, [], made._trainer.optimizer)
        made._trainer.iter, made._trainer.scale = 0, scale
        return made

    without, first, second = trainer(steps=3), scaled(64.0), scaled(8.0)
    first.load_state_dict(without.state_dict())
    assert first._trainer.scale == 64.0  # its own start
    assert all(len(state) > 0 for state in first._trainer.optimizer.state.values())
    second.load_state_dict(first.state_dict())
    assert second._trainer.scale == 64.0
    without.load_state_dict(second.state_dict())
