"""How long the parts of the benchmark train."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Lengths in iterations; every student arm has the same.

    Attributes:
        teacher_warm_up: AdamW steps on digit classification for the teacher's backbone.
        student_warm_up: the same for the student's.
        teacher: SGD steps of the teacher.
        student: SGD steps of each student.
        evaluations: how often an arm is evaluated on its way, the end included.
    """

    teacher_warm_up: int
    student_warm_up: int
    teacher: int
    student: int
    evaluations: int

    def overrides(self, iterations: int) -> list[str]:
        """Configuration overrides for an arm of that many iterations."""
        period = -(-iterations // self.evaluations)
        return ["SOLVER.MAX_ITER", str(iterations), "TEST.EVAL_PERIOD", str(period)]


SCHEDULES = {
    "demo": Schedule(teacher_warm_up=120, student_warm_up=300, teacher=200, student=200, evaluations=2),
    "long": Schedule(teacher_warm_up=300, student_warm_up=800, teacher=1000, student=1000, evaluations=5),
}
