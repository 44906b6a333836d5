"""A run in its own folder: reused if it is finished, resumed if it was interrupted, started otherwise."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kd_det.common.files import read_json, write_json
from kd_det.common.processes import PROGRESS, stream

RESULT = "result.json"
STATE = "run.json"


def finish_run(
    folder: Path,
    find_result: Callable[[], dict[str, Any] | None],
    command: Callable[[], Sequence[str]],
    collect: Callable[[], dict[str, Any]],
    threads: int | None = None,
    *,
    progress: Sequence[str] = PROGRESS,
) -> dict[str, Any]:
    """The result of a run. An unfinished run is started or resumed now, as a separate command.

    Args:
        folder: the run's folder, for the log.
        find_result: reads the result of a finished run; None if the run is not finished.
        command: prepares the folder and returns the command line that starts or resumes the run.
        collect: reads the result after the command has succeeded.
        threads: CPU threads of the command; None: its own choice.
        progress: see ``stream``.

    Raises:
        CommandError: the command failed.
    """
    result = find_result()
    if result is not None:
        return result
    line = command()
    print(f"== {folder}", flush=True)
    stream(line, threads, progress=progress)
    return collect()


def run_step(
    folder: Path,
    recipe: dict[str, Any],
    output: str,
    command: Callable[[bool], Sequence[str]],
    collect: Callable[[], dict[str, Any]],
    threads: int | None = None,
) -> dict[str, Any]:
    """``finish_run`` for a command that does not record its recipe; it is kept in ``run.json`` and ``result.json``.

    Args:
        folder: the step's folder; it is emptied if it belongs to another recipe.
        recipe: what the outcome depends on (JSON-able).
        output: the file in ``folder`` that the command writes.
        command: returns the command line; its argument says whether to resume.
        collect: reads the outcome after the command has succeeded.
        threads: CPU threads of the command; None: its own choice.

    Returns:
        The outcome, with "seconds" (wall clock of the command, summed over interruptions) and "fingerprint".

    Raises:
        CommandError: the command failed.
    """
    record = _Record(folder, recipe, output)
    try:
        return finish_run(
            folder,
            record.result,
            lambda: command(record.begin()),
            lambda: record.end(collect()),
            threads,
        )
    finally:
        record.add_seconds()


def fingerprint(recipe: dict[str, Any]) -> str:
    """A digest of everything that a run's outcome depends on (JSON-able)."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """The sha256 of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class _Record:
    """The record in a step's folder: the recipe, the seconds so far, and the result."""

    def __init__(self, folder: Path, recipe: dict[str, Any], output: str) -> None:
        self.folder, self.recipe, self.output = folder, recipe, output
        self.digest = fingerprint(recipe)
        self.seconds = 0.0
        self.start: float | None = None

    def result(self) -> dict[str, Any] | None:
        """The outcome, if the folder has the output and the result of the same recipe."""
        result = read_json(self.folder / RESULT)
        same = result.get("fingerprint") == self.digest
        return result if same and (self.folder / self.output).is_file() else None

    def begin(self) -> bool:
        """Prepares the folder; returns whether a run of the same recipe left a checkpoint to resume from."""
        state = read_json(self.folder / STATE)
        resume = state.get("fingerprint") == self.digest and (self.folder / "last_checkpoint").is_file()
        if resume:
            self.seconds = state.get("seconds", 0.0)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        self._write_state()
        self.start = time.perf_counter()
        return resume

    def end(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Writes the result."""
        self.add_seconds()
        result = {**outcome, "seconds": self.seconds, "fingerprint": self.digest}
        write_json(self.folder / RESULT, result)
        return result

    def add_seconds(self) -> None:
        """Adds the time since ``begin`` to the record, once."""
        if self.start is not None:
            self.seconds += time.perf_counter() - self.start
            self.start = None
            self._write_state()

    def _write_state(self) -> None:
        state = {"fingerprint": self.digest, "seconds": self.seconds, "recipe": self.recipe}
        write_json(self.folder / STATE, state)
