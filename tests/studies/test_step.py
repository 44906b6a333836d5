"""The step benchmarks on a tiny pair: they time what they report."""

from __future__ import annotations

import pytest
import torch

from kd_det.studies.all_methods import PLAIN, measure_methods
from kd_det.studies.step import ARMS, Steps, benchmark_config, measure_arms, steps_of
from kd_det.studies.stored_batch import BOXES
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
    times = measure_arms(config_file, ARMS, "cpu", "float32", 64, 2, rounds=3)
    students = {"backward", "student forward", "optimiser"}
    teachers = {"teacher backbone", "teacher box head"}
    assert times["plain"].ratio == 1 and all(each.ratio > 0 for each in times.values())
    for name, arm in ARMS.items():
        terms = {"dkd loss"} if name.startswith(("distilled", "stored")) else set()
        assert set(times[name].parts) == students | terms | (teachers if arm.teacher else set())
        assert all(value > 0 for value in times[name].parts.values())
        assert sum(times[name].parts.values()) == pytest.approx(times[name].step, rel=0.5)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_does_what_its_name_says(config_file, name):
    steps = steps_of(ARMS[name], config_file, "cpu", "float32", 64, 2)
    types, losses = set(), []
    steps.model.backbone.register_forward_hook(lambda module, args, maps: types.update(v.dtype for v in maps.values()))
    steps.model.register_forward_hook(lambda module, args, values: losses.extend(values))
    steps.distilled()
    assert types == {torch.bfloat16 if name.endswith("_amp") else torch.float32}
    assert (steps.model.teacher is not None) == name.startswith("distilled")
    assert ("loss_dkd" in losses) == name.startswith(("distilled", "stored"))


@pytest.mark.parametrize("name", ["stored_dkd", "teacher_boxes"])
def test_an_image_of_the_stored_arms_has_as_many_boxes_as_a_folder_gives(config_file, name):
    """The objects' own first, then 128 of the teacher's; the sampled rows include some of them."""
    steps = steps_of(ARMS[name], config_file, "cpu", "float32", 64, 2)
    seen = []
    sample = steps.model.roi_heads.label_and_sample_proposals
    steps.model.roi_heads.label_and_sample_proposals = lambda *args: seen.extend(sample(*args)) or seen
    steps.distilled()
    assert all((each.stored_row >= 0).any() for each in seen) and len(seen) == 2
    for item in steps.batch:
        stored, objects = item["stored"], item["instances"]
        assert len(stored) == BOXES + len(objects)
        assert torch.equal(stored.proposal_boxes.tensor[: len(objects)], objects.gt_boxes.tensor)
        assert stored.proposal_boxes.nonempty().all()
        assert torch.allclose(stored.stored_logits.logsumexp(1), torch.zeros(len(stored)), atol=1e-5)


def test_every_method_has_its_own_floor(config_file):
    methods = {"DKD": ("dkd",), "FitNet": ("fitnet",), "SDD-DKD": ("sdd",), "both": ("dkd", "reviewkd")}
    times = measure_methods(config_file, methods, "cpu", "float32", size=64, images=2, rounds=2)
    assert list(times) == [PLAIN, *methods]
    assert times["DKD"].floor == times["both"].floor
    assert len({times[name].floor for name in (PLAIN, "DKD", "FitNet", "SDD-DKD")}) == 4
    assert all(measured.step > 0 for measured in times.values())
