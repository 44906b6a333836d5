"""``python -m classification.train`` without the seconds of its imports: forked from a process that has made them."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
from functools import cache
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest.mock import patch

from tests.conftest import ROOT

FEW = (240, 60)
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def train(
    folder: Path, *arguments: object, kill: str = "", file_limit: int | None = None, few: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs the command in ``folder``, which sees the repository's configurations as its own.

    Args:
        kill: "MODULE:FUNCTION:WHEN:NUMBER[:SIGNAL]" sends the process a signal, SIGKILL if none is named, "before" or
            "after" the work of the function's call of that number.
        file_limit: the most bytes that a file may have; beyond it, writing fails as on a full disk.
        few: "digits" has only the first ``FEW`` scans for training and validation: a sixth of the time.
    """
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(ROOT / "configs")
    line = [str(argument) for argument in arguments]
    logs = [folder / f"{name}-{os.urandom(4).hex()}.log" for name in ("stdout", "stderr")]
    with patch.dict(os.environ, ENVIRONMENT):
        process = _server().Process(target=_run, args=(folder, line, logs, kill, file_limit, few))
        process.start()
    process.join()
    stdout, stderr = (log.read_text() for log in logs)
    for log in logs:
        log.unlink()
    return subprocess.CompletedProcess(line, process.exitcode, stdout, stderr)


@cache
def _server() -> ForkServerContext:
    context = get_context("forkserver")
    ours = ["classification.trainer", "classification.evaluate", "classification.auto_train"]
    context.set_forkserver_preload([*ours, "timm", "torch.utils.tensorboard"])
    return context


def _run(folder: Path, arguments: list[str], logs: list[Path], kill: str, file_limit: int | None, few: bool) -> None:
    for number, log in enumerate(logs, start=1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if few:
        _leave_few_digits()
    if kill:
        _kill_at(*kill.split(":"))
    from classification import train

    train.main(arguments)


def _leave_few_digits() -> None:
    module = importlib.import_module("classification.data.build")
    whole = module.read_digits()
    parts = {
        name: type(part)(part.images[:count], part.labels[:count])
        for (name, part), count in zip({"train": whole.train, "val": whole.val}.items(), FEW, strict=True)
    }
    module.read_digits = lambda: whole._replace(**parts)


def _kill_at(module: str, function: str, when: str, number: str, sent: str = "SIGKILL") -> None:
    owner = importlib.import_module(module)
    *path, name = function.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def killing(*args, **kwargs):
        nonlocal calls
        calls += 1
        now = calls == int(number)
        if now and when == "before":
            os.kill(os.getpid(), signal.Signals[sent])
        result = original(*args, **kwargs)
        if now and when == "after":
            os.kill(os.getpid(), signal.Signals[sent])
        return result

    setattr(owner, name, killing)
