"""SIGTERM and SIGINT at random moments of detection runs: after each there is a whole checkpoint.

PYTHONPATH=. python tests/stress/signals_detection.py --moments 20    # 160 runs of a few seconds each

Each run is the command line itself, signalled once, to its process or to its process group, during the start-up, a
step, a save or an evaluation. It must end with 128 + the signal's number, without a traceback, and leave a checkpoint
that is not older than the last finished step; before the first step, none.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from tests.mini_coco import annotation_file, make_mini_coco
from tests.tiny import TINY, teacher_files

ROOT = Path(__file__).parent.parent.parent
MANY = 100000  # steps: no run comes to its end
PATIENCE = 600.0  # seconds, on a busy machine
# Steps of some 50 ms, with a checkpoint after every seventh and an evaluation after every fifth.
SETTINGS = [
    *TINY, "SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64,
    "DATALOADER.NUM_WORKERS", 2, "MODEL.META_ARCHITECTURE", "DistillRCNN", "MODEL.ROI_HEADS.NAME", "DistillROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES", 80, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05, "SOLVER.BASE_LR", 1e-5,
    "KD.TERMS", "('dkd','fitnet')", "KD.FITNET.WEIGHT", 1e-9, "KD.TEACHER.DTYPE", "float32",
    "DATASETS.TRAIN", "('stage_train',)", "DATASETS.TEST", "('stage_val',)",
    "SOLVER.CHECKPOINT_PERIOD", 7, "TEST.EVAL_PERIOD", 5,
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run and its signal.

    Args:
        delay: seconds; from the end of the first step, or from the start where ``early``.
    """

    processes: int
    sent: signal.Signals
    to_group: bool
    early: bool
    delay: float

    def __str__(self) -> str:
        target = "group" if self.to_group else "process"
        since = "the start" if self.early else "the first step"
        return f"{self.processes} processes, {self.sent.name} to the {target}, {self.delay:.2f} s after {since}"


@dataclass
class Outcome:
    case: Case
    finished: int | None = None
    saved: int | None = None
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


class Stage:
    """Files that all runs share: a data set and a teacher."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_mini_coco(folder / "data", images=8)
        (folder / "teacher").mkdir()
        self.teacher = teacher_files(folder / "teacher", "MODEL.ROI_HEADS.NUM_CLASSES", 80)
        sets = [
            [f"stage_{name}", str(annotation_file(folder / "data", split)), str(folder / "data" / "coco" / split)]
            for name, split in (("train", "train2017"), ("val", "val2017"))
        ]
        config, weights = self.teacher
        files = ["DATASETS.COCO_JSON", sets, "KD.TEACHER.CONFIG_FILE", config, "KD.TEACHER.WEIGHTS", weights]
        self.settings = [*SETTINGS, *files]

    def start(self, output: Path, *options: object) -> subprocess.Popen[str]:
        """Starts a run in a process group of its own; what it prints goes to ``output``.log."""
        path = os.pathsep.join([str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "FINISHED": f"{output}.finished", "PYTHONPATH": path}
        command = [sys.executable, "tests/stress/observed_training.py", *map(str, options)]
        with open(f"{output}.log", "w") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def run(self, case: Case, name: str) -> Outcome:
        output = self.folder / name
        flags = ("--num-gpus", case.processes, "--dist-url", "auto") if case.processes > 1 else ()
        process = self.start(output, *flags, *self.settings, "SOLVER.MAX_ITER", MANY, "OUTPUT_DIR", output)
        outcome = Outcome(case)
        try:
            if not case.early:
                self._wait_for_a_step(process, output)
            time.sleep(case.delay)
            began = time.monotonic()
            (os.killpg if case.to_group else os.kill)(process.pid, case.sent)
            process.wait(PATIENCE)
            outcome.seconds = time.monotonic() - began
        except (subprocess.TimeoutExpired, TimeoutError, ProcessLookupError) as error:
            outcome.faults.append(f"{type(error).__name__}: {error}")
        finally:
            self._end_group(process)
        self._check(outcome, output, process.returncode)
        return outcome

    def _wait_for_a_step(self, process: subprocess.Popen[str], output: Path) -> None:
        deadline = time.monotonic() + PATIENCE
        while not Path(f"{output}.finished").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError("no step was finished")
            time.sleep(0.01)

    def _end_group(self, process: subprocess.Popen[str]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _check(self, outcome: Outcome, output: Path, code: int) -> None:
        sent = outcome.case.sent
        # Before Python has set up anything, the system ends the process: 128 + the number is what the shell says then.
        if code != 128 + sent and not (outcome.case.early and code == -sent):
            outcome.faults.append(f"exit code {code}")
        log = Path(f"{output}.log").read_text(errors="replace")
        if "Traceback" in log:
            outcome.faults.append("a traceback")
        witness = Path(f"{output}.finished")
        outcome.finished = int(witness.read_text()) if witness.exists() else None
        outcome.faults += checkpoint_faults(outcome, output)


def checkpoint_faults(outcome: Outcome, output: Path) -> list[str]:
    """What is wrong with the checkpoint that the run has left in ``output``."""
    from kd_det.checkpoint import read_checkpoint
    from kd_det.common.errors import SetupError
    from kd_det.engine.resuming import last_checkpoint

    faults = [f"left {path.name}" for path in output.glob("*.tmp")] if output.exists() else []
    try:
        path = last_checkpoint(str(output))
        if path is None:
            return faults if outcome.finished is None else [*faults, f"step {outcome.finished} is lost"]
        checkpoint = read_checkpoint(path)
    except SetupError as error:
        return [*faults, str(error)]
    state = checkpoint["trainer"]
    outcome.saved = saved = state["iteration"]
    if saved < (-1 if outcome.finished is None else outcome.finished):
        faults.append(f"saved iteration {saved}, finished {outcome.finished}")
    if state["hooks"]["LRScheduler"]["last_epoch"] != saved + 1:
        faults.append("the schedule is of another step")
    if not state["_trainer"]["optimizer"]["state"] or not checkpoint["kd_terms"] or not checkpoint["model"]:
        faults.append("a part is missing")
    return faults


def cases(moments: int, processes: list[int], seed: int) -> Iterator[Case]:
    """``moments`` cases of each kind, of which one in five is during the start-up."""
    rng = random.Random(seed)
    for count, sent, to_group in product(processes, (signal.SIGTERM, signal.SIGINT), (False, True)):
        for number in range(moments):
            early = number % 5 == 4
            yield Case(count, sent, to_group, early, rng.uniform(0, 12 * count if early else 6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="random moments for each kind of signal; default 20")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of a run; default 1 2")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; default 2")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        stage = Stage(Path(folder))
        counts: Counter[str] = Counter()
        every = list(cases(args.moments, args.processes, args.seed))
        for number, outcome in enumerate(pool.map(stage.run, every, map(str, range(len(every))))):
            kind = "failed" if outcome.faults else "nothing to save" if outcome.saved is None else "saved"
            counts[kind] += 1
            print(f"{number + 1}/{len(every)} {outcome.case}: finished {outcome.finished}, saved {outcome.saved}, "
                  f"ended after {outcome.seconds:.1f} s {outcome.faults or ''}", flush=True)  # fmt: skip
            if outcome.faults:
                print(Path(folder, f"{number}.log").read_text(errors="replace")[-3000:], flush=True)
    print(dict(counts))
    sys.exit(counts["failed"] > 0)


if __name__ == "__main__":
    main()
