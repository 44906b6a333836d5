"""What figures were measured with: versions, hardware, and the peak of memory."""

from __future__ import annotations

import os
import platform
import resource
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import torch
import torchvision

import kd_det

STATUS = Path("/proc/self/status")


def versions() -> dict[str, str]:
    """Versions of what the results depend on; detectron2's where it is installed."""
    return {
        "kd_det": kd_det.__version__,
        **({"detectron2": import_module("detectron2").__version__} if find_spec("detectron2") else {}),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "scikit-learn": metadata.version("scikit-learn"),
        "python": platform.python_version(),
    }


def hardware(device: str) -> dict[str, Any]:
    """The processor or GPU by name, and how many CPU cores and threads there are."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return {
        "device": device,
        "name": name,
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def described(hardware: dict[str, Any]) -> str:
    """What ``hardware`` gave, in words; ``runs_at_a_time``, if it has that, as well."""
    runs = hardware.get("runs_at_a_time", 1)
    beside = f" a run, {runs} runs at a time" if runs > 1 else ""
    return f"{hardware['name']}, {hardware['cpu_cores']} cores, threads: {hardware['torch_threads']}{beside}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory_mib(device: torch.device) -> float:
    """MiB: of tensors allocated on a GPU, else of the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if not STATUS.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    # Where there is /proc, not getrusage: its peak survives exec, so it would be the parent's where that is larger.
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")) / 2**10
