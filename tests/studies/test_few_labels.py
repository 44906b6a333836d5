"""Parts of the digits scenes, and what ``kd-det study labels`` would run. Nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from kd_det import cli
from kd_det.config import load_config
from kd_det.data.coco_json import register_coco_json
from kd_det.studies import digits_runs, few_labels
from kd_det.studies.scenes import label_few, make_study_scenes, settings_of
from tests.tools.commands import kept_datasets


def coco(path, count):
    images = [{"id": number, "file_name": f"{number}.png", "height": 8, "width": 8} for number in range(1, count + 1)]
    boxes = [{"id": image["id"], "image_id": image["id"], "category_id": 1, "bbox": [1, 1, 4, 4]} for image in images]
    content = {"images": images, "annotations": [{**box, "area": 16, "iscrowd": 0} for box in boxes]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "categories": [{"id": 1, "name": "owl"}]}))
    return path


def ids(part, key="images"):
    return {item["id"] for item in json.loads(part.json_file.read_text())[key]}


def test_a_tenth_keeps_its_labels_and_the_choice_is_always_the_same(tmp_path):
    whole = coco(tmp_path / "whole.json", 200)
    few, rest = label_few(tmp_path / "a", whole, tmp_path, 0.1)
    assert len(ids(few)) == 20 and ids(few) | ids(rest) == set(range(1, 201)) and not ids(few) & ids(rest)
    assert ids(few, "annotations") == ids(few) and ids(rest, "annotations") == set()
    again, _ = label_few(tmp_path / "b", whole, tmp_path, 0.1)
    assert again.json_file.read_bytes() == few.json_file.read_bytes()
    more, _ = label_few(tmp_path / "c", whole, tmp_path, 0.3)
    assert ids(few) < ids(more) and len(ids(more)) == 60
    assert ids(few) != set(range(1, 21))  # not the first ones
    with kept_datasets():
        register_coco_json([few.entry])
        assert len(DatasetCatalog.get("scenes_few")) == 20


def test_reported_and_tuning_scenes_are_different_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("kd_det.studies.scenes.VAL_IMAGES", 3)
    train, val, tune = make_study_scenes(tmp_path, settings_of("hard", 2))
    assert len(ids(train)) == 2 and ids(val) == {1, 2, 3} and ids(tune) == {4, 5, 6}
    before = val.json_file.stat().st_mtime_ns
    make_study_scenes(tmp_path, settings_of("hard", 2))
    assert val.json_file.stat().st_mtime_ns == before


@pytest.fixture
def study(tmp_path, monkeypatch):
    """``study(*arguments)`` runs the command; returns the command lines by folder."""
    monkeypatch.chdir(tmp_path)
    coco(tmp_path / "datasets/digits_det/annotations/train.json", 50)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(few_labels, "make_digits_det", lambda root: None)
    monkeypatch.setattr(few_labels, "scenes_recipe", lambda root: "scenes")
    monkeypatch.setattr(few_labels, "last_result", lambda folder: dict.fromkeys((*ROW, "seconds_per_iteration"), 40.0))

    def run(*arguments: str):
        lines = {}

        def pretend(folder, recipe, output, command, collect, threads=None):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / output).write_bytes(b"written")
            lines[folder.relative_to("output/study_labels").as_posix()] = command(False)
            return collect()

        monkeypatch.setattr(digits_runs, "run_step", pretend)
        cli.main(["study", "labels", *arguments])
        return lines

    return run


ROW = ("AP", "AP50", "AP75", "best_AP", "memory_mib")


def test_the_arms_differ_in_their_labels_and_in_the_knowledge(study):
    lines = study("--seeds", "2", "--schedule", "long", "KD.UNLABELED.THRESHOLD", "0.6")
    arms = {f"{arm}/seed{seed}" for arm in few_labels.TITLES for seed in (1, 2)}
    assert set(lines) == {"teacher_warm_up", "student_warm_up", "teacher_all/seed1", "knowledge"} | arms

    def settings(name):
        return load_config(lines[name][5], lines[name][6:])

    few, stored, unlabeled, everything = (settings(f"{arm}/seed2") for arm in few_labels.TITLES)
    assert few.DATASETS.TRAIN == stored.DATASETS.TRAIN == unlabeled.DATASETS.TRAIN == ("scenes_few",)
    assert everything.DATASETS.TRAIN == settings("teacher_all/seed1").DATASETS.TRAIN == ("digits_det_train",)
    assert tuple(unlabeled.DATASETS.UNLABELED) == ("scenes_rest",) and not stored.DATASETS.UNLABELED
    assert unlabeled.KD.UNLABELED.THRESHOLD == 0.6
    assert unlabeled.KD.TEACHER.STORED == stored.KD.TEACHER.STORED == "output/study_labels/knowledge"
    assert few.KD.TERMS == everything.KD.TERMS == () and stored.KD.TERMS == unlabeled.KD.TERMS == ("dkd",)
    knowledge = load_config(lines["knowledge"][5], lines["knowledge"][8:])
    assert knowledge.DATASETS.TRAIN == ("scenes_few",) and tuple(knowledge.DATASETS.UNLABELED) == ("scenes_rest",)
    for cfg in (few, stored, unlabeled, everything):
        assert (cfg.SOLVER.MAX_ITER, cfg.SEED, cfg.DATASETS.TEST) == (1000, 2, ("digits_det_val",))

    content = json.loads(Path("results/digits_det_few_labels.json").read_text())
    assert (content["labelled_images"], content["images"], content["teacher_AP"]) == (5, 50, 40.0)
    assert [row["arm"] for row in content["rows"]] == list(few_labels.TITLES)


def test_the_teacher_can_have_the_few_labels_too(study):
    lines = study("--seeds", "1", "--teacher-labels", "few")
    line = lines["teacher_few/seed1"]
    assert load_config(line[5], line[6:]).DATASETS.TRAIN == ("scenes_few",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fraction", "1.0"], "--fraction is 1.0; it must be a number, 0 or more and below 1"),
        (["--fraction", "0"], "--fraction is 0.0; it must be a finite number above 0"),
        (["--schedule", "longer"], "--schedule is 'longer'; it must be one of demo, long"),
        (["--teacher-labels", "none"], "--teacher-labels is 'none'; it must be one of all, few"),
        (["SEED", "3"], "SEED: the study sets it; leave it out"),
    ],
)
def test_mistakes_are_one_line(study, arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        study(*arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and message in error
