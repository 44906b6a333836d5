"""KD.TEACHER.DTYPE auto chooses by the device's ability, on a CPU confirmed by timing."""

from __future__ import annotations

import logging

import pytest
import torch

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.teacher import precision
from kd_det.teacher.frozen import load_teacher
from kd_det.teacher.precision import bfloat16_is_faster, teacher_dtype, time_types
from tests.tiny import student_config, teacher_files

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cpu(monkeypatch):
    """``cpu(units, ratio)``: a CPU with or without units, on which bfloat16 takes ``ratio`` of the time."""

    def pretend(units, ratio):
        monkeypatch.setattr(precision, "_cpu_has_units", lambda: units)
        monkeypatch.setattr(precision, "time_types", lambda: (0.010, 0.010 * ratio))

    return pretend


@pytest.mark.parametrize(
    ("units", "ratio", "chosen"),
    [
        (True, 0.5, torch.bfloat16),
        (True, 0.97, torch.float32),  # not worth the lost precision
        (True, 2.9, torch.float32),  # the processor has units, but the libraries do not use them
        (False, 0.5, torch.float32),
        (None, 0.5, torch.bfloat16),  # this PyTorch cannot tell
        (None, 2.9, torch.float32),
    ],
)
def test_auto_follows_units_and_timing_on_a_cpu(cpu, caplog, units, ratio, chosen):
    cpu(units, ratio)
    with caplog.at_level(logging.INFO, "kd_det"):
        assert teacher_dtype("auto", CPU) == chosen
    (line,) = caplog.messages
    assert f"the teacher runs in {str(chosen).removeprefix('torch.')}, because" in line
    assert ("has no units" in line) if units is False else (f"{ratio:.2f} times as long" in line)


@pytest.mark.parametrize("name", precision.DTYPES)
def test_a_named_type_is_taken_without_timing(monkeypatch, caplog, name):
    monkeypatch.delattr(precision, "time_types")
    with caplog.at_level(logging.INFO, "kd_det"):
        assert teacher_dtype(name, CPU) == getattr(torch, name)
    assert not caplog.messages


def test_an_unknown_type_is_refused():
    with pytest.raises(SetupError, match=r"KD\.TEACHER\.DTYPE is 'half'; it must be one of auto, float32"):
        teacher_dtype("half", CPU)


@pytest.mark.parametrize(
    ("capability", "supported", "faster"),
    [((9, 0), True, True), ((8, 0), True, True), ((7, 5), True, False), ((8, 0), False, False)],
)
def test_a_gpu_is_asked_and_not_timed(monkeypatch, capability, supported, faster):
    monkeypatch.delattr(precision, "time_types")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    answer, reason = bfloat16_is_faster(GPU)
    assert answer == faster and f"compute capability {capability[0]}.{capability[1]}" in reason


@pytest.mark.parametrize(
    ("capabilities", "asked", "expected"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, {}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, {}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, {}, False),
        ({"architecture": "aarch64"}, {}, None),
        (None, {"_is_avx512_bf16_supported": True}, True),  # an older PyTorch
        (None, {"_is_avx512_bf16_supported": False}, None),
        (None, {}, None),
    ],
)
def test_units_are_those_that_pytorch_reports(monkeypatch, capabilities, asked, expected):
    for name in ("get_capabilities", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    if capabilities is not None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    for name, answer in asked.items():
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert precision._cpu_has_units() is expected


def test_timing_leaves_threads_and_random_numbers_alone():
    torch.manual_seed(0)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        of_float32, of_bfloat16 = time_types()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert of_float32 > 0 and of_bfloat16 > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_teacher_has_the_chosen_type(cpu, tmp_path):
    files = teacher_files(tmp_path)
    cfg = student_config(files, "KD.TEACHER.DTYPE", "auto")
    assert load_config("").KD.TEACHER.DTYPE == "auto"
    for ratio, dtype in ((0.5, torch.bfloat16), (2.9, torch.float32)):
        cpu(True, ratio)
        teacher = load_teacher(cfg)
        assert teacher.dtype == teacher.model.backbone.fpn_output2.weight.dtype == dtype


def test_all_processes_choose_the_same(cpu, monkeypatch, caplog):
    cpu(True, 0.5)
    slow = (False, "the other one is slow")
    monkeypatch.setattr(precision.comm, "all_gather", lambda ours: [ours, slow])  # as in the first of two processes
    with caplog.at_level(logging.INFO, "kd_det"):
        assert teacher_dtype("auto", CPU) == torch.float32
    assert caplog.messages == ["KD.TEACHER.DTYPE auto: the teacher runs in float32, because the other one is slow"]
    monkeypatch.setattr(precision.comm, "all_gather", lambda ours: [ours, ours])
    monkeypatch.setattr(precision.comm, "is_main_process", lambda: False)
    assert teacher_dtype("auto", CPU) == torch.bfloat16
    assert len(caplog.messages) == 1
