"""kd-det train from stored knowledge: runs, resuming, and what is refused at start-up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kd_det.data.knowledge import INDEX, shard_files
from tests.engine.command import run_here, stage_knowledge
from tests.mini_coco import THINGS

NO_TEACHER = ["KD.TEACHER.CONFIG_FILE", "", "KD.TEACHER.WEIGHTS", ""]
DKD = ["KD.TERMS", "('dkd',)"]


def test_it_trains_and_resumes_without_a_teacher(train, knowledge, tmp_path):
    stored = ["KD.TEACHER.STORED", knowledge, *DKD, *NO_TEACHER]
    ended = train("SOLVER.MAX_ITER", 2, *stored)
    assert ended.code == 0, ended.error
    assert f"Distilled classes: all 80, from KD.TEACHER.STORED {knowledge!r}" in ended.log
    saved = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert saved["trainer"]["config"]["KD.TEACHER.STORED"] == knowledge and not saved["kd_terms"]
    ended = train("--resume", "SOLVER.MAX_ITER", 3, *stored, "KD.STORED.FRACTION", 0.5)
    assert ended.code == 0 and "Starting training from iteration 2" in ended.log, ended.error
    metrics = [json.loads(line) for line in (tmp_path / "output" / "metrics.json").read_text().splitlines()]
    # The last step samples 8 stored boxes of an image at most; by chance it may be none, and then the loss is 0.
    assert metrics[0]["loss_dkd"] > 0 and metrics[-1]["loss_dkd"] >= 0 and metrics[-1]["iteration"] == 2
    ended = train("--resume", "SOLVER.MAX_ITER", 4, *DKD)
    assert ended.code == 2 and "KD.TEACHER.STORED was" in ended.error and "and is ''" in ended.error
    ended = train("--resume", "SOLVER.MAX_ITER", 4, *stored[2:], "KD.TEACHER.STORED", _copied(knowledge, tmp_path))
    assert ended.code == 0 and "--resume: KD.TEACHER.STORED was" in ended.log, ended.error


def _copied(knowledge: str, folder: Path) -> str:
    (folder / "moved").mkdir()
    for path in Path(knowledge).iterdir():
        (folder / "moved" / path.name).write_bytes(path.read_bytes())
    return str(folder / "moved")


@pytest.mark.parametrize(
    "settings",
    [
        ["KD.TERMS", "()", *NO_TEACHER],
        [],
        ["KD.TEACHER.PROPOSALS", True, *DKD],
        [*DKD, "KD.TEACHER.WEIGHTS", "away/teacher.pth"],
    ],
    ids=["boxes alone", "live maps too", "live proposals too", "named, but not needed"],
)
def test_combinations_train(train, knowledge, settings):
    ended = train("SOLVER.MAX_ITER", 1, "KD.TEACHER.STORED", knowledge, *settings)
    assert ended.code == 0, ended.error


def test_the_live_teachers_proposals_need_no_terms(train):
    assert train("SOLVER.MAX_ITER", 1, "KD.TEACHER.PROPOSALS", True, "KD.TERMS", "()").code == 0


def test_imported_predictions_go_with_any_live_teacher(train, stage, tmp_path):
    folder = stage_knowledge(stage, tmp_path / "imported", made_of={"predictions": "yolo.json"}, shared=(0, 3))
    ended = train("SOLVER.MAX_ITER", 1, "KD.TEACHER.STORED", folder)
    assert ended.code == 0, ended.error
    assert "Distilled classes: 2 of the student's 80 (person, motorcycle), from KD.TEACHER.STORED" in ended.log
    assert "Distilled classes of the live teacher: none. The terms fitnet compare feature maps" in ended.log


@pytest.mark.parametrize(
    "settings, named",
    [
        (NO_TEACHER, "KD.TERMS: 'fitnet' cannot work from KD.TEACHER.STORED alone, which has only boxes and class"),
        ([*NO_TEACHER, "KD.TERMS", "('sdd',)"], "KD.TERMS: 'sdd' cannot work from KD.TEACHER.STORED alone"),
        ([*NO_TEACHER, *DKD, "KD.TEACHER.PROPOSALS", True], "KD.TEACHER.CONFIG_FILE is empty but KD.TERMS or KD.TEACH"),
        (["KD.STORED.FRACTION", 0.0], "KD.STORED.FRACTION is 0.0; it must be a number above 0, up to 1."),
        (["KD.STORED.FRACTION", 1.5], "KD.STORED.FRACTION is 1.5; it must be a number above 0, up to 1."),
        (["KD.STORED.FRACTION", 0.01], "KD.STORED.FRACTION is 0.01 and MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16: no"),
        (["KD.TEACHER.STORED", "nowhere"], "KD.TEACHER.STORED 'nowhere' has no knowledge.json, so it is not complete"),
        ([*DKD, "KD.TEACHER.WEIGHTS", "away/other.pth"], "and KD.TEACHER.WEIGHTS is 'away/other.pth'. Set KD.TEACHER"),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "KD.TERMS", "()"],
         "but MODEL.META_ARCHITECTURE 'GeneralizedRCNN' does not distil"),
        (["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "KD.TERMS", "()"], "nor take a teacher's boxes; set it to one"),
    ],
)  # fmt: skip
def test_what_is_refused(train, knowledge, settings, named):
    ended = train("SOLVER.MAX_ITER", 1, "KD.TEACHER.STORED", knowledge, *settings)
    assert ended.code == 2 and named in ended.error, ended.error


def test_another_teachers_knowledge_is_refused(train, stage, tmp_path):
    other = {"teachers": [{"weights": stage.teacher[1], "sha256": "0" * 64}]}
    ended = train("KD.TEACHER.STORED", stage_knowledge(stage, tmp_path / "other", made_of=other))
    assert ended.code == 2 and "is the knowledge of another teacher" in ended.error
    assert f"than KD.TEACHER.WEIGHTS {stage.teacher[1]!r}" in ended.error


def test_knowledge_of_other_classes_is_refused(train, stage, tmp_path):
    names = [thing["name"] for thing in THINGS]
    names[3] = "moped"
    ended = train("KD.TEACHER.STORED", stage_knowledge(stage, tmp_path / "other", classes=names))
    assert ended.code == 2 and "class 3" in ended.error and "'moped'" in ended.error and "'motorcycle'" in ended.error


def test_missing_images_and_damaged_shards_are_refused(stage, knowledge, tmp_path):
    def refused(folder: str) -> str:
        ended = run_here(stage, tmp_path / "output", "SOLVER.MAX_ITER", 1, "KD.TEACHER.STORED", folder)
        assert ended.code == 2
        return ended.error

    folder = _copied(knowledge, tmp_path)
    (shard,) = shard_files(folder)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{shard.name} is not as it was written: its sha256 differs" in refused(folder)
    shard.write_bytes(content)
    index = json.loads(Path(folder, INDEX).read_text())
    index["data_sets"]["another_set"] = index["data_sets"].pop("stage_train")
    Path(folder, INDEX).write_text(json.dumps(index))
    assert "has no knowledge of 8 of the 8 images of 'stage_train'" in refused(folder)
