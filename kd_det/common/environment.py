"""Describes the environment of a measurement: versions, hardware, peak memory. torch is imported on first use."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Mapping
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kd_det

if TYPE_CHECKING:
    import torch

STATUS = Path("/proc/self/status")


def versions() -> dict[str, str]:
    """Versions of the packages that the results depend on; detectron2's only if it is installed."""
    detectron2 = ("detectron2",) if find_spec("detectron2") else ()
    return {
        "kd_det": kd_det.__version__,
        **{name: str(import_module(name).__version__) for name in (*detectron2, "torch", "torchvision", "numpy")},
        "scikit-learn": metadata.version("scikit-learn"),
        "python": platform.python_version(),
    }


def hardware(device: str) -> dict[str, Any]:
    """The processor or GPU by name, and the number of CPU cores and threads.

    Args:
        device: such as "cpu" or "cuda".
    """
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return {
        "device": device,
        "name": name,
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def described(hardware: Mapping[str, Any], versions: Mapping[str, str] | None = None) -> str:
    """One line of text: the results of ``hardware``, with ``runs_at_a_time`` if it is there, and of ``versions``."""
    runs = hardware.get("runs_at_a_time", 1)
    of_each = f" a run, {runs} runs at a time" if runs > 1 else ""
    machine = f"{hardware['name']}, {hardware['cpu_cores']} cores, threads: {hardware['torch_threads']}{of_each}"
    software = ", ".join(f"{name} {number}" for name, number in (versions or {}).items())
    return f"{machine}; {software}" if software else machine


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of this process in MiB: of the tensors on a GPU, otherwise the resident set."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    if not STATUS.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    # getrusage's peak survives exec, so it would be the parent's where that is larger.
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")) / 2**10
