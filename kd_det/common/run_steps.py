"""One step of the benchmark in its own folder: finished, interrupted or new, and how it is run."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kd_det.common.files import write_json
from kd_det.common.processes import stream

RESULT = "result.json"
STATE = "run.json"


def fingerprint(recipe: dict[str, Any]) -> str:
    """A digest of everything that a run's outcome depends on (JSON-able)."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """The sha256 of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; an empty dict where it is missing or half-written."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def decide(folder: Path, digest: str, output: str) -> str:
    """What to do about a run.

    Args:
        folder: the run's own.
        digest: fingerprint of the recipe that is wanted.
        output: the file in ``folder`` that a finished run leaves.

    Returns:
        "reuse" where the folder has output and result of the very same recipe, "resume" where that recipe was
        interrupted after a checkpoint, "fresh" otherwise.
    """
    if read_json(folder / RESULT).get("fingerprint") == digest and (folder / output).is_file():
        return "reuse"
    if read_json(folder / STATE).get("fingerprint") == digest and (folder / "last_checkpoint").is_file():
        return "resume"
    return "fresh"


def run_step(
    folder: Path,
    recipe: dict[str, Any],
    output: str,
    command: Callable[[bool], Sequence[str]],
    collect: Callable[[], dict[str, Any]],
    threads: int | None = None,
) -> dict[str, Any]:
    """Run a step unless its result is there.

    Args:
        folder: the step's own; emptied where it belongs to another recipe.
        recipe: what the outcome depends on.
        output: the file in ``folder`` that the command leaves.
        command: gives the command line; its argument says whether to resume.
        collect: reads the outcome after the command succeeded.
        threads: for the command's computations; None: its own choice.

    Returns:
        The outcome, with "seconds" (wall clock of the command, over interruptions) and "fingerprint".

    Raises:
        RuntimeError: the command failed.
    """
    digest = fingerprint(recipe)
    decision = decide(folder, digest, output)
    print(f"== {folder}: {decision}", flush=True)
    if decision == "reuse":
        return read_json(folder / RESULT)
    if decision == "fresh":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    seconds = read_json(folder / STATE).get("seconds", 0.0)
    state = {"fingerprint": digest, "seconds": seconds, "recipe": recipe}
    write_json(folder / STATE, state)
    start = time.perf_counter()
    try:
        stream(command(decision == "resume"), threads)
    finally:
        state["seconds"] += time.perf_counter() - start
        write_json(folder / STATE, state)
    result = {**collect(), "seconds": state["seconds"], "fingerprint": digest}
    write_json(folder / RESULT, result)
    return result
