"""What must hold for two runs to be compared."""

from __future__ import annotations

from classification.studies.runs import Run
from kd_det.common.errors import SetupError


def check_same_samples(first: Run, second: Run) -> None:
    """Raises ``SetupError`` unless both runs validate on the same samples of the same classes."""
    names = [run.cfg.DATA.NAME for run in (first, second)]
    sizes = [(run.data.class_names, run.data.val.samples) for run in (first, second)]
    if names[0] != names[1] or sizes[0] != sizes[1]:
        counts = [
            f"{name!r}, {len(classes)} classes, {n} images" for name, (classes, n) in zip(names, sizes, strict=True)
        ]
        raise SetupError(
            f"{first.name} validates on {counts[0]}, {second.name} on {counts[1]}; give two runs on the same data."
        )


def check_same_teacher(first: Run, second: Run) -> None:
    """Raises ``SetupError`` unless the configurations of both runs name the same teacher, or none does."""
    for key in ("NAME", "WEIGHTS", "PRETRAINED", "STEM", "IMAGE_SIZE"):
        values = [run.cfg.TEACHER[key] for run in (first, second)]
        if values[0] != values[1]:
            raise SetupError(
                f"TEACHER.{key} of {first.name} is {values[0]!r}, of {second.name} {values[1]!r}; compare runs under "
                "one teacher, or name it for both, such as --opts TEACHER.NAME resnet20 TEACHER.WEIGHTS a/model.pth."
            )
