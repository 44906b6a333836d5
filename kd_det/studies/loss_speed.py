"""Times kd_loss, dkd_loss and nkd_loss, forward and backward, against ``kd_det.losses.textbook``, their plain formulas.

dkd_masks compares dkd_loss with the published code's formulation by masks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from kd_det.common.command_line import command_parser
from kd_det.losses import dkd_loss, kd_loss, nkd_loss, textbook

ALPHA, BETA, TEMPERATURE = 1.0, 8.0, 4.0
GAMMA, NKD_TEMPERATURE = 1.5, 1.0

HOW = """
Time: in every round, each contender makes --repeats forward and backward passes in a row. The figure is the median over
--rounds rounds of their mean. The contenders alternate, so that both see the same load from other processes. "ratio"
divides our median by the textbook's: below 1 is faster. "cold" is the same ratio when the two alternate pass by pass,
so that each finds the processor's caches filled by the other. --threads is 1 by default: on a busy machine, more
threads mostly measure how long they wait for one another.

Memory: the highest sum of what is allocated and not yet freed during one forward and backward pass, over the size of
the student's logits. student.grad counts, the arguments do not. On the CPU it comes from the allocator's events in a
torch.profiler trace, which include the temporaries inside operators; on CUDA from torch.cuda.max_memory_allocated.
"""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def textbook_kd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return textbook.kd(s, t, temperature=TEMPERATURE).mean()


def textbook_dkd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return textbook.dkd(s, t, y, alpha=ALPHA, beta=BETA, temperature=TEMPERATURE).mean()


def textbook_nkd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return textbook.nkd(s, t, y, gamma=GAMMA, temperature=NKD_TEMPERATURE).mean()


def masked_dkd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """DKD by masks: they sum the probabilities of target and others, and add -1000 to the target's logit."""
    target = torch.zeros_like(s).scatter_(1, y.unsqueeze(1), 1).bool()
    others = torch.ones_like(s).scatter_(1, y.unsqueeze(1), 0).bool()
    q, p = F.softmax(s / TEMPERATURE, 1), F.softmax(t / TEMPERATURE, 1)
    two_way_q, two_way_p = (
        torch.cat(((z * target).sum(1, keepdim=True), (z * others).sum(1, keepdim=True)), 1) for z in (q, p)
    )
    log_q_hat = F.log_softmax(s / TEMPERATURE - 1000 * target, 1)
    p_hat = F.softmax(t / TEMPERATURE - 1000 * target, 1)
    tckd = F.kl_div(two_way_q.log(), two_way_p, reduction="sum") * TEMPERATURE**2 / len(s)
    nckd = F.kl_div(log_q_hat, p_hat, reduction="sum") * TEMPERATURE**2 / len(s)
    return ALPHA * tckd + BETA * nckd


def our_kd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return kd_loss(s, t, temperature=TEMPERATURE)


def our_dkd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return dkd_loss(s, t, y, alpha=ALPHA, beta=BETA, temperature=TEMPERATURE)


def our_nkd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return nkd_loss(s, t, y, gamma=GAMMA, temperature=NKD_TEMPERATURE)


CONTENDERS: dict[str, tuple[Loss, Loss]] = {
    "dkd_loss": (textbook_dkd, our_dkd),
    "dkd_masks": (masked_dkd, our_dkd),
    "kd_loss": (textbook_kd, our_kd),
    "nkd_loss": (textbook_nkd, our_nkd),
}


def shape(text: str) -> tuple[int, int]:
    """ "64x100" to (64, 100), samples and classes."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match or int(match[2]) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape: give samples x classes, such as 64x100")
    return int(match[1]), int(match[2])


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def make_batch(samples: int, classes: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits (B, C), normal with a standard deviation of 3, and labels (B,)."""
    generator = torch.Generator().manual_seed(0)
    s, t = 3 * torch.randn(2, samples, classes, generator=generator)
    y = torch.randint(classes, (samples,), generator=generator)
    return s.to(device), t.to(device), y.to(device)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_pass(loss: Loss, batch: tuple[Tensor, Tensor, Tensor], repeats: int) -> float:
    """Mean microseconds of one forward and backward pass, of ``repeats`` in a row."""
    s, t, y = batch
    student = s.clone().requires_grad_()
    synchronize(s.device.type)
    start = time.perf_counter()
    for _ in range(repeats):
        student.grad = None
        loss(student, t, y).backward()
    synchronize(s.device.type)
    return 1e6 * (time.perf_counter() - start) / repeats


def median_times(
    losses: tuple[Loss, ...], batch: tuple[Tensor, Tensor, Tensor], rounds: int, repeats: int
) -> list[float]:
    """Median microseconds of each loss, interleaved."""
    for loss in losses:
        time_pass(loss, batch, repeats)
    times = [[time_pass(loss, batch, repeats) for loss in losses] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def peak_memory(loss: Loss, batch: tuple[Tensor, Tensor, Tensor]) -> float:
    """The most memory that a forward and backward pass holds at once, in sizes of the student's logits."""
    s, t, y = batch
    student = s.clone().requires_grad_()
    measure = peak_on_cuda if s.device.type == "cuda" else peak_on_cpu
    return measure(lambda: loss(student, t, y).backward()) / (s.numel() * s.element_size())


def peak_on_cuda(work: Callable[[], None]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(work: Callable[[], None]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    allocations = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(itertools.accumulate(event["args"]["Bytes"] for event in allocations))


def measure(name: str, samples: int, classes: int, options: argparse.Namespace) -> dict[str, object]:
    losses = CONTENDERS[name]
    batch = make_batch(samples, classes, options.device)
    textbook, ours = median_times(losses, batch, options.rounds, options.repeats)
    textbook_cold, ours_cold = median_times(losses, batch, options.rounds * options.repeats, 1)
    textbook_peak, ours_peak = (peak_memory(loss, batch) for loss in losses)
    return {
        "loss": name,
        "samples": samples,
        "classes": classes,
        "textbook_us": textbook,
        "ours_us": ours,
        "ratio": ours / textbook,
        "cold_ratio": ours_cold / textbook_cold,
        "textbook_peak_memory": textbook_peak,
        "ours_peak_memory": ours_peak,
    }


def environment(options: argparse.Namespace) -> dict[str, object]:
    return {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rounds": options.rounds,
        "repeats": options.repeats,
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of ``kd-det bench losses``; a wrong one ends the process with argparse's message."""
    parser = command_parser(
        "kd-det bench losses", f"{__doc__}{HOW}", "kd-det bench losses --shapes 64x100 --rounds 5 --json losses.json"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", type=shape, nargs="+", default=[(64, 100), (1024, 81), (512, 1000)])
    parser.add_argument("--rounds", type=positive, default=20, help="rounds to take the median of (default: 20)")
    parser.add_argument("--repeats", type=positive, default=50, help="passes in a row (default: 50)")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads of torch (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; use --device cpu")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """``kd-det bench losses``: prints the table, and writes the figures to --json."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    # The profiler's own reports would appear between the lines of the table.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    setting = environment(options)
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print("loss      samples classes   textbook       ours  ratio   cold      memory: textbook  ours")
    rows = []
    for name in CONTENDERS:
        for samples, classes in options.shapes:
            row = measure(name, samples, classes, options)
            rows.append(row)
            print(
                f"{name:9} {samples:7} {classes:7} {row['textbook_us']:7.0f} µs {row['ours_us']:7.0f} µs"
                f"  {row['ratio']:5.2f}  {row['cold_ratio']:5.2f}"
                f"      {row['textbook_peak_memory']:15.1f}x {row['ours_peak_memory']:4.1f}x"
            )
    if options.json:
        options.json.write_text(json.dumps({"environment": setting, "results": rows}, indent=2) + "\n")
