"""SIGTERM and SIGINT at random moments of classification runs: what is saved, and whether the resumed run ends with the
same bits.

python tests/stress/signals_classification.py --moments 20

Signals go to the process or to its group, as batch systems and terminals send them; half of those to the group come
again 0.2 seconds later, as launchers pass them on. Runs have one process or two, and read image files with two workers
or some of the embedded digits. Each run is a fork of this process, which has everything imported: it starts at once.

After the signal: every finished step is in the last state, the exit code is 128 + the signal's number, nothing of the
run lives on, and with --resume it ends with the same bits as the run that nothing stopped.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch.utils import tensorboard as _curves  # noqa: F401

from classification import evaluate as _evaluate  # noqa: F401
from classification import train
from classification.data.build import IN_MEMORY
from classification.data.small_images import ImagesInMemory, MemoryData, read_digits
from classification.results import RESULT
from classification.states import check_state, last_state, read_progress
from classification.trainer import Trainer

LIMIT = 120.0  # seconds that a run may take
COMMON = ["SOLVER.EPOCHS", "2", "SOLVER.STEPS", "(1,)", "STUDENT.NAME", "resnet8"]
COMMON += ["DATA.BATCH_SIZE", "8", "DATA.EVAL_BATCH_SIZE", "8"]
SETTINGS = {"digits": COMMON, "folder": [*COMMON, "DATA.NAME", "folder", "DATA.ROOT", "images"]}
SAMPLES = {"train": 96, "val": 32}
STEPS = 2 * 96 // 8


@dataclass(frozen=True)
class Case:
    """One run to be stopped."""

    data: str
    processes: int
    signal: signal.Signals
    target: str  # "process" or "group"
    steps: int  # that are finished when the moment begins
    delay: float  # seconds into the moment
    repeated: bool = False

    def __str__(self) -> str:
        again = " twice" if self.repeated else ""
        run = f"{self.data}, {self.processes} process(es)"
        return f"{run}, {self.signal.name}{again} to the {self.target}, {self.delay:.2f} s after step {self.steps}"


class Child(Exception):
    """Raised in a fork: its exit code. What it ends is the interpreter, as that of a command."""


def write_images(folder: Path) -> None:
    for split, number in SAMPLES.items():
        for i in range(number):
            path = folder / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (i * 2, 255 * (i % 2), 90)).save(path)


def few_digits(root: str) -> MemoryData:
    """The first of the embedded digits."""
    digits = read_digits()
    train, val = (
        ImagesInMemory(*(part[: SAMPLES[name]] for part in split))
        for name, split in (("train", digits.train), ("val", digits.val))
    )
    return digits._replace(train=train, val=val)


def start(data: str, processes: int, output: str, *flags: str, port: int) -> list[int]:
    """Forks a run's processes, in one group; returns their ids."""
    ids: list[int] = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            os.setpgid(0, ids[0] if ids else 0)
            if processes > 1:
                os.environ.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes),
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                )  # fmt: skip
            raise Child(_run(data, output, rank, *flags))
        ids.append(child)
    return ids


def _run(data: str, output: str, rank: int, *flags: str) -> object:
    log = os.open(f"{output}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    steps = os.open(f"{output}.{rank}.steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    take_step = Trainer._take_step

    def counting(self: Trainer, batches: list) -> None:
        take_step(self, batches)
        os.write(steps, b".")

    Trainer._take_step = counting
    try:
        train.main([*flags, *SETTINGS[data], "OUTPUT_DIR", output])
    except SystemExit as ended:
        return ended.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def wait(ids: list[int]) -> list[int]:
    """The exit codes, negative for the signal that ended a process; of one that had to be killed -9."""
    deadline = time.monotonic() + LIMIT
    codes: dict[int, int] = {}
    while len(codes) < len(ids):
        for child in set(ids) - codes.keys():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[child] for child in ids]


def lives_on(group: int) -> bool:
    """Whether any process of the group is there 8 seconds later: data workers look for their parent every 5."""
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    return True


def steps_of(output: str) -> int:
    """How many steps the first process has finished."""
    path = Path(f"{output}.0.steps")
    return path.stat().st_size if path.exists() else 0


def students(output: str) -> dict[str, torch.Tensor]:
    return torch.load(f"{output}/model.pth", weights_only=True)["model"]


def stop(case: Case, output: str, port: int) -> tuple[str, list[str]]:
    """Starts the run, sends the signal, goes on with --resume.

    Returns:
        How the run ended, and what is wrong with that.
    """
    ids = start(case.data, case.processes, output, port=port)
    while steps_of(output) < case.steps and os.waitid(os.P_PID, ids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)
    time.sleep(case.delay)
    for again in range(1 + case.repeated):
        time.sleep(0.2 * again)
        try:
            os.killpg(ids[0], case.signal) if case.target == "group" else os.kill(ids[-1], case.signal)
        except ProcessLookupError:
            break
    codes = wait(ids)
    taken = steps_of(output)
    wrong = ["a process lives on"] if lives_on(ids[0]) else []
    finished = (Path(output) / RESULT).exists()
    # Ended by the signal itself: before training, or after all of it.
    wanted = {128 + case.signal, -case.signal, *([0] if finished else [])}
    bystander = case.target == "process" and not taken  # it waited for the other one, which was ended before training
    if not set(codes if not bystander else codes[-1:]) <= wanted:
        wrong.append(f"exit codes {codes}")
    state = last_state(Path(output))
    saved = 0
    if state is not None:
        check_state(state)
        saved = read_progress(state)["progress"]["steps"]
    if saved < taken:
        wrong.append(f"{taken} steps were finished and {saved} are saved")
    how = "finished" if finished else "saved" if saved else "before the first step"
    codes = wait(start(case.data, case.processes, output, "--resume", port=port + 1))
    if any(codes):
        wrong.append(f"--resume ended with {codes}")
    elif any(not value.equal(students(output)[name]) for name, value in students(whole(case)).items()):
        wrong.append("--resume ended with other bits")
    return how, wrong


def whole(case: Case) -> str:
    return f"whole_{case.data}_{case.processes}"


def cases(moments: int, processes: list[int], numbers: random.Random) -> list[Case]:
    """``moments`` of each number of processes, signal and target; the data sets take turns."""
    return [
        Case(
            ("digits", "folder")[(i + (target == "group")) % 2],
            count,
            sent,
            target,
            numbers.randrange(STEPS + 1),
            0.5 * numbers.random() ** 2,
            target == "group" and i // 2 % 2 == 0,
        )
        for count in processes
        for sent in (signal.SIGTERM, signal.SIGINT)
        for target in ("process", "group")
        for i in range(moments)
    ]


def stress(chosen: list[Case]) -> int:
    """Runs the cases in the working folder; returns how many went wrong."""
    write_images(Path("images"))
    port = 20000 + os.getpid() % 20000
    whole_runs: set[str] = set()
    outcomes: dict[str, Counter[str]] = {}
    failures = 0
    for number, case in enumerate(chosen):
        if whole(case) not in whole_runs:
            whole_runs.add(whole(case))
            codes = wait(start(case.data, case.processes, whole(case), port=port))
            if any(codes) or steps_of(whole(case)) != STEPS:
                raise SystemExit(f"the run that nothing stops ended with {codes}: see {Path.cwd()}")
        port += 2
        how, wrong = stop(case, f"run{number}", port)
        group = f"{case.processes} process(es), {case.signal.name} to the {case.target}"
        outcomes.setdefault(group, Counter())[how] += 1
        if wrong:
            failures += 1
            outcomes[group]["WRONG"] += 1
            logs = "".join(path.read_text() for path in sorted(Path().glob(f"run{number}.*.log")))
            print(f"{case}: {'; '.join(wrong)}\n{logs}", flush=True)
        shutil.rmtree(f"run{number}", ignore_errors=True)
    for group, counts in outcomes.items():
        print(f"{group}: {', '.join(f'{count} {how}' for how, count in sorted(counts.items()))}")
    print(f"{len(chosen) - failures} of {len(chosen)} lost nothing")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="of each kind (default 20)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    args = parser.parse_args()
    IN_MEMORY["digits"] = few_digits
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    try:
        failures = stress(cases(args.moments, args.processes, random.Random(args.seed)))
    except Child as child:
        return child.args[0]
    shutil.rmtree(folder)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
