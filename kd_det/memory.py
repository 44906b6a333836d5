"""The peak of memory that a training process has taken."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak_memory_mib(device: torch.device) -> float:
    """MiB: of tensors allocated on a GPU, else of the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if not STATUS.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    # Where there is /proc, not getrusage: its peak survives exec, so it would be the parent's where that is larger.
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")) / 2**10
