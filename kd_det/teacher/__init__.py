"""The frozen teacher: its configuration, its classes, and its forward pass on the student's proposals."""

from kd_det.teacher.frozen import FrozenTeacher

__all__ = ["FrozenTeacher"]
