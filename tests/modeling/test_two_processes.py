"""Two gloo processes give the gradients of one process on the joined batch."""

from __future__ import annotations

import os

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from kd_det.common.errors import NonFiniteLossError
from kd_det.common.nonfinite import check_finite, naming_the_batch
from tests.tiny import batch, build, loss_gradients, student_config, teacher_files

# Sampling cannot differ: every anchor and every proposal is taken, and each image has the same number of them.
TAKE_ALL = [
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100000, "MODEL.RPN.POSITIVE_FRACTION", 1.0, "MODEL.RPN.NMS_THRESH", 1.0,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 1000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0,
    "KD.KD.TEMPERATURE", 2.0,
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("teacher"))


def start(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)


def half_batch(rank: int, teacher: tuple[str, str], port: int, folder: str) -> None:
    start(rank, port)
    model = build(student_config(teacher, *TAKE_ALL, terms=("kd", "dkd")))
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    with EventStorage(0):
        _, gradients = loss_gradients(parallel, batch()[rank : rank + 1])
    torch.save({name.removeprefix("module."): value for name, value in gradients.items()}, f"{folder}/{rank}.pth")
    distributed.destroy_process_group()


def one_process_fails(rank: int, teacher: tuple[str, str], port: int, folder: str) -> None:
    start(rank, port)
    model = build(student_config(teacher, *TAKE_ALL))
    model.load_teacher()
    if rank == 1:
        model.teacher.model.roi_heads.box_predictor.cls_score.bias.fill_(float("nan"))
    with EventStorage(4), pytest.raises(NonFiniteLossError) as raised:
        model(batch()[rank : rank + 1])
    with EventStorage(5), pytest.raises(NonFiniteLossError) as raised_early:
        if rank == 0:
            check_finite({"loss_cls": torch.tensor(1.0)}, lambda: "here")
        with naming_the_batch(lambda: "on image 12", model.device):
            raise FloatingPointError("Predicted boxes contain NaN.")  # as Detectron2's RPN, before the others' losses
    with open(f"{folder}/{rank}.txt", "w") as file:
        print(raised.value, raised_early.value, sep="\n", file=file)
    distributed.destroy_process_group()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_gradients_are_those_of_the_joined_batch(teacher, tmp_path):
    model = build(student_config(teacher, *TAKE_ALL, terms=("kd", "dkd")))
    _, expected = loss_gradients(model, batch())
    multiprocessing.spawn(half_batch, (teacher, free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    assert expected.keys() == first.keys() and len(expected) > 20
    for name, value in expected.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4 * value.abs().max().item(), msg=name)


def test_a_non_finite_loss_in_one_process_stops_both(teacher, tmp_path):
    multiprocessing.spawn(one_process_fails, (teacher, free_port(), str(tmp_path)), nprocs=2)
    told = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    loss, boxes = told[0].splitlines()
    assert loss.startswith("process 1: {'loss_dkd': nan") and "at iteration 4 on the images image_1.png" in loss
    assert boxes == "process 1: Predicted boxes contain NaN. on image 12"
