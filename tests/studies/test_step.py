"""The step benchmarks on a tiny pair: they time what they report."""

from __future__ import annotations

import pytest
import torch

from kd_det.studies.all_methods import PLAIN, measure_methods
from kd_det.studies.step import Steps, benchmark_config, measure_times
from tests.tiny import student_config, teacher_files


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    path = folder / "student.yaml"
    path.write_text(student_config(teacher_files(folder)).dump())
    return str(path)


def test_plain_and_distilled_steps_differ_in_the_teacher_alone(config_file):
    steps = Steps(benchmark_config(config_file, "cpu", "float32"), 64, 2)
    asked = []
    features = steps.model.teacher.features
    steps.model.teacher.features = lambda *args: asked.append(len(args[0])) or features(*args)
    before = {name: value.clone() for name, value in steps.model.state_dict().items()}
    steps.plain()
    assert asked == []
    steps.distilled()
    assert asked == [2]
    assert all(torch.equal(value, before[name]) for name, value in steps.model.state_dict().items())


def test_parts_add_up_to_the_step(config_file):
    times = measure_times(benchmark_config(config_file, "cpu", "float32"), 64, 2, rounds=3)
    assert {"backward", "student forward", "teacher backbone", "teacher box head", "dkd loss"} < set(times.parts)
    assert all(value > 0 for value in times.parts.values())
    assert sum(times.parts.values()) == pytest.approx(times.distilled, rel=0.5)


def test_every_method_has_its_own_floor(config_file):
    methods = {"DKD": ("dkd",), "FitNet": ("fitnet",), "SDD-DKD": ("sdd",), "both": ("dkd", "reviewkd")}
    times = measure_methods(config_file, methods, "cpu", "float32", size=64, images=2, rounds=2)
    assert list(times) == [PLAIN, *methods]
    assert times["DKD"].floor == times["both"].floor
    assert len({times[name].floor for name in (PLAIN, "DKD", "FitNet", "SDD-DKD")}) == 4
    assert all(measured.step > 0 for measured in times.values())
