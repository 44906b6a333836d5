"""Two gloo processes give the gradients of one on the joined batch; ``accelerate launch`` runs the whole command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from classification import networks
from classification.config import load_config
from classification.data import build_data
from classification.states import last_state, place_of
from tests.classification.conftest import ROOT, command, outcome

METHODS = ["none", "kd", "dkd", "nkd", "sdd", "fitnet", "at", "reviewkd", "mcld", "hcd"]
# SP, PKT, NST, DIST and MLKD relate the samples of one process; CRD draws negatives in each.
METHODS += ["ofd", "vid", "simkd", "ctkd", "catkd", "kd+fitnet"]


def gradients(cfg, process: int, processes: int) -> dict[str, torch.Tensor]:
    """Of the first batch, in float64 and with BatchNorm in evaluation mode."""
    torch.manual_seed(0)
    data = build_data(cfg, torch.device("cpu"), process, processes)
    teacher, step = networks.build_networks(cfg, data, torch.device("cpu"))
    step.double().train()
    for module in step.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    batch = next(iter(data.train.epoch(0)))
    batch = batch._replace(images=batch.images.double())
    teacher_out = None if teacher is None else teacher.double()(batch.images)
    model = step if processes == 1 else DistributedDataParallel(step, broadcast_buffers=False)
    losses, _ = model(batch, teacher_out, None, 1.0)
    sum(losses.values()).backward()
    return {name: parameter.grad for name, parameter in step.named_parameters() if parameter.grad is not None}


def one_of_two(rank: int, settings: list, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    for method in METHODS:
        cfg = load_config("", [*map(str, settings), "DISTILLER", method])
        torch.save(gradients(cfg, rank, 2), f"{folder}/{method}-{rank}.pth")
    distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def both(teacher_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    settings = ["TEACHER.NAME", "resnet14", "TEACHER.WEIGHTS", str(teacher_file), "DATA.BATCH_SIZE", 8]
    multiprocessing.spawn(one_of_two, (settings, free_port(), str(folder)), nprocs=2)
    return settings, folder


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_give_the_gradients_of_one(both, method):
    settings, folder = both
    expected = gradients(load_config("", [*map(str, settings), "DISTILLER", method]), 0, 1)
    first, second = (torch.load(folder / f"{method}-{rank}.pth", weights_only=True) for rank in range(2))
    assert expected.keys() == first.keys() == second.keys() and expected
    for name, gradient in expected.items():
        torch.testing.assert_close(first[name], gradient, rtol=1e-7, atol=1e-10, msg=name)
        assert torch.equal(first[name], second[name])


def test_accelerate_launch_stopped_and_resumed(distil, tmp_path):
    """SIGTERM to the launcher's group, as batch systems send it: the launcher passes it on and waits."""
    settings = [*map(str, distil), "DISTILLER", "dkd", "OUTPUT_DIR", "run", "SOLVER.EPOCHS", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    launcher = subprocess.Popen(
        [*launch(), "-m", "classification.train", *settings],
        cwd=tmp_path, env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while launcher.poll() is None and last_state(tmp_path / "run") is None:  # CHECKPOINT_PERIOD is 5
        time.sleep(0.01)
    os.killpg(launcher.pid, signal.SIGTERM)
    stdout, _ = launcher.communicate(timeout=300)
    assert launcher.returncode and "stopped by SIGTERM in epoch 1 after" in stdout
    _, step = place_of(last_state(tmp_path / "run"))
    assert f"after {step} steps" in stdout and step >= 5

    resumed = command([*launch(), "-m", "classification.train", "--resume", *settings], tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    _, history, figures = outcome(tmp_path / "run")
    assert figures["processes"] == 2 and len(history) == 1 and history[0]["top1"] == figures["last_top1"]
    evaluated = command([sys.executable, "-m", "classification.evaluate", *settings], tmp_path)
    assert json.loads(evaluated.stdout.splitlines()[-1])["top1"] == pytest.approx(figures["last_top1"], abs=1e-9)


def launch() -> list[str]:
    line = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    line += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*line, "--main_process_port", str(free_port())]
