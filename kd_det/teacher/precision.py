"""The precision of the frozen teacher, and whether a device computes bfloat16 faster than float32."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor

from kd_det.common.errors import SetupError

logger = logging.getLogger(__name__)

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# bfloat16 is faster if it takes at most this part of float32's time. With units it takes about half of it, and
# without them more than twice as long, so the limit only has to keep off the noise of a busy machine.
FASTER = 0.9
ROUNDS = 9


def teacher_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type that a value of ``KD.TEACHER.DTYPE`` means on ``device``.

    "auto" is bfloat16 where every process of the group computes it faster, and float32 otherwise. All processes get the
    same, so all of them must call this. Logs the choice and the reason. The state of the random number generators does
    not change.

    Raises:
        SetupError: there is no such value.
    """
    if name != AUTO and name not in DTYPES:
        raise SetupError(f"KD.TEACHER.DTYPE is {name!r}; it must be one of {', '.join((AUTO, *DTYPES))}.")
    if name != AUTO:
        return DTYPES[name]
    # Several processes on one machine measure at the same time, which is how they will train.
    answers = comm.all_gather(bfloat16_is_faster(device))
    faster, reason = next((answer for answer in answers if not answer[0]), answers[0])
    chosen = "bfloat16" if faster else "float32"
    if comm.is_main_process():
        logger.info("KD.TEACHER.DTYPE auto: the teacher runs in %s, because %s", chosen, reason)
    return DTYPES[chosen]


def bfloat16_is_faster(device: torch.device) -> tuple[bool, str]:
    """Whether ``device`` computes in bfloat16 faster than in float32.

    A GPU is asked for its abilities. A CPU is asked, as far as PyTorch can tell, and then timed: PyTorch computes
    bfloat16 on every CPU, however slowly.

    Returns:
        the answer, and the reason as part of a sentence.
    """
    if device.type == "cuda":
        return _gpu_is_faster(device)
    if device.type != "cpu":
        return False, f"bfloat16 is not known to be faster on the device {device.type!r}"
    if _cpu_has_units() is False:
        return False, "the CPU has no units for bfloat16"
    of_float32, of_bfloat16 = time_types()
    ratio = of_bfloat16 / of_float32
    return ratio <= FASTER, f"bfloat16 takes {ratio:.2f} times as long as float32 on this CPU (measured)"


def time_types() -> tuple[float, float]:
    """Times a convolution and a matrix product on the CPU, in float32 and in bfloat16 in turn.

    Takes 30 to 200 ms. The sizes are those of a ResNet-FPN's inner layers.

    Returns:
        the seconds of both, in float32 and in bfloat16: the sum of each one's shortest time, as other programs on the
        machine can only lengthen a time.
    """
    kinds = [_work(dtype) for dtype in (torch.float32, torch.bfloat16)]
    shortest = [[float("inf")] * len(kind) for kind in kinds]
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _one_thread():
        for _ in range(ROUNDS):
            for kind, times in zip(kinds, shortest, strict=True):
                for number, work in enumerate(kind):
                    start = time.perf_counter()
                    work()
                    times[number] = min(times[number], time.perf_counter() - start)
    return sum(shortest[0]), sum(shortest[1])


@contextmanager
def _one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other take longer than the work itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _work(dtype: torch.dtype) -> list[Callable[[], Tensor]]:
    def values(*shape: int) -> Tensor:
        return torch.ones(shape, dtype=dtype)

    maps = values(1, 128, 20, 20).contiguous(memory_format=torch.channels_last)
    kernel = values(128, 128, 3, 3).contiguous(memory_format=torch.channels_last)
    rows, matrix = values(64, 1024), values(1024, 1024)
    return [lambda: F.conv2d(maps, kernel, padding=1), lambda: F.linear(rows, matrix)]


def _gpu_is_faster(device: torch.device) -> tuple[bool, str]:
    major, minor = torch.cuda.get_device_capability(device)
    fits = major >= 8 and torch.cuda.is_bf16_supported()
    return fits, f"the GPU has compute capability {major}.{minor}{'' if fits else ', and bfloat16 needs 8.0'}"


def _cpu_has_units() -> bool | None:
    """None: this PyTorch cannot tell, as on processors other than x86."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if known.get("architecture") == "x86_64":
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return True if any(ask() for ask in asked if ask is not None) else None
