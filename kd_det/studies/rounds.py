"""Training a network of the digits scenes alone for long, in rounds.

Each round is a whole schedule, with its own warm-up and decay of the learning rate. It starts from the weights of the
round before and doubles the iterations so far. So every round ends in a network that could be used, and the gain of a
round says what twice the training is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_det.studies.digits_runs import WEIGHTS, Runs, Training, config_of
from kd_det.studies.methods import TEACHER
from kd_det.studies.metrics import AP, cost, read_metrics
from kd_det.studies.scenes import Part, SharedScenes

WARM_UP = 800  # iterations of the backbone


@dataclass(frozen=True)
class Settled:
    """How long a network was trained alone.

    Attributes:
        tried: iterations in all and AP on the tuning scenes after each round.
    """

    tried: tuple[tuple[int, float], ...]

    @property
    def best(self) -> tuple[int, float]:
        """The better of the last two."""
        return max(self.tried[-2:], key=lambda each: each[1])

    @property
    def before_last(self) -> tuple[int, float]:
        """Before the last round."""
        return self.tried[-2]

    @property
    def last_gain(self) -> float:
        """AP that the last round gained."""
        return self.tried[-1][1] - self.tried[-2][1]


@dataclass(frozen=True)
class Rounds:
    """The rounds of one network.

    Attributes:
        runs: runs the commands.
        scenes: the data sets; the tuning scenes and the reported ones are evaluated after each round.
        network: ``TEACHER`` or ``STUDENT``.
        opts: its overrides KEY, VALUE, ...
        first: iterations of the first round.
    """

    runs: Runs
    scenes: SharedScenes
    network: str
    opts: tuple[str, ...]
    first: int

    def settle(self, gain: float, most: int) -> Settled:
        """Trains until a round gains less than ``gain`` AP, or the next one would exceed ``most`` iterations in all."""
        return until_settled(lambda iterations: float(self.result(iterations)["AP_tune"]), self.first, gain, most)

    def result(self, iterations: int) -> dict[str, Any]:
        """AP and cost of the round that ends after so many iterations in all. It is run unless it is finished."""
        number = (iterations // self.first).bit_length()  # from 1
        length = iterations if number == 1 else iterations // 2
        start = self._warm_up() if number == 1 else self.weights(length)
        data = self.scenes.overrides(self._train, [self.scenes.reported, self.scenes.tuning])
        overrides, inputs = (*data, *schedule(length, 1), *self.opts), {"MODEL.WEIGHTS": start}
        run = Training(self._folder(iterations), number, config_of(self.network), overrides, inputs)
        return self.runs.train(run, result_alone, self.runs.threads)

    def weights(self, iterations: int) -> Path:
        """The file of weights after a round."""
        return self.runs.output_dir / self._folder(iterations) / WEIGHTS

    @property
    def _train(self) -> Part:
        return self.scenes.taught if self.network == TEACHER else self.scenes.learnt

    def _warm_up(self) -> Path:
        return self.runs.warm_up(self.network, WARM_UP, self.opts)

    def _folder(self, iterations: int) -> str:
        return f"alone/{self.network}_{iterations}"


def until_settled(ap_of: Callable[[int], float], first: int, gain: float, most: int) -> Settled:
    """Doubles a network's training until that gains less than ``gain`` AP, or would exceed ``most`` iterations.

    Args:
        ap_of: gives the AP after a number of iterations in all. It is called for ``first``, then for twice as many, and
            so on.
        first: see above.
        gain: see above.
        most: at least twice ``first``.
    """
    settled = Settled(tuple((iterations, ap_of(iterations)) for iterations in (first, 2 * first)))
    while settled.last_gain >= gain and 2 * settled.tried[-1][0] <= most:
        iterations = 2 * settled.tried[-1][0]
        settled = Settled((*settled.tried, (iterations, ap_of(iterations))))
    return settled


def result_alone(folder: Path) -> dict[str, Any]:
    """AP of a finished round on the reported and the tuning scenes, and its cost."""
    metrics = read_metrics(folder / "metrics.json")
    last = [entry for entry in metrics if f"scenes_tune/{AP}" in entry][-1]
    return {"AP": last[f"scenes_val/{AP}"], "AP_tune": last[f"scenes_tune/{AP}"], **cost(metrics)}


def schedule(iterations: int, evaluations: int) -> tuple[str, ...]:
    """Overrides of a run that is evaluated, and writes a checkpoint, so many times."""
    part = str(iterations // evaluations)
    return ("SOLVER.MAX_ITER", str(iterations), "TEST.EVAL_PERIOD", part, "SOLVER.CHECKPOINT_PERIOD", part)


def narrow_resnet(part: int) -> tuple[str, ...]:
    """Overrides for a ResNet-50 FPN whose channels are divided by ``part``, and its box head's likewise.

    The shipped student of the digits scenes is ``narrow_resnet(4)``.
    """
    channels = {
        "RESNETS.DEPTH": 50, "RESNETS.STEM_OUT_CHANNELS": 64 // part, "RESNETS.WIDTH_PER_GROUP": 64 // part,
        "RESNETS.RES2_OUT_CHANNELS": 256 // part, "FPN.OUT_CHANNELS": 128 // part, "ROI_BOX_HEAD.FC_DIM": 512 // part,
    }  # fmt: skip
    return tuple(text for key, value in channels.items() for text in (f"MODEL.{key}", str(value)))
