"""tools/train_net.py on the miniature COCO: the command a user gives, to the AP and back."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

SMALL = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", 128]
SMALL += ["DATALOADER.NUM_WORKERS", 0, "KD.TEACHER.DTYPE", "float32"]
TEACHER = "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml"


@pytest.fixture(scope="module")
def r101(tmp_path_factory):
    """A checkpoint of random weights for the zoo's Faster R-CNN R101-FPN."""
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(TEACHER))
    cfg.MODEL.DEVICE = "cpu"
    path = tmp_path_factory.mktemp("r101") / "model_final.pth"
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, path)
    return path


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_coco_config_trains_evaluates_and_resumes(train_net, r101, tmp_path):
    teacher = tmp_path / "teacher.pth"
    shutil.copy(r101, teacher)
    (tmp_path / "short.yaml").write_text("SOLVER: {MAX_ITER: 2}")
    config = ["--config-file", "coco/dkd_r101_r18.yaml", tmp_path / "short.yaml"]
    out = tmp_path / "output"

    trained = train_net(*config, *SMALL, "KD.TEACHER.WEIGHTS", teacher, fresh=True)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "short.yaml overrides coco/dkd_r101_r18.yaml: SOLVER.MAX_ITER 2 instead of 180000" in trained.stderr
    assert "bbox/AP" in (out / "metrics.json").read_text() and "copypaste: AP," in trained.stdout + trained.stderr
    logged = {name for line in metrics(out) for name in line}
    assert {"loss_dkd", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "bbox/AP50"} <= logged
    assert list(out.glob("events.out.tfevents*"))
    checkpoint = torch.load(out / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 1 and not any(("teacher" in k or "terms" in k) for k in checkpoint["model"])
    assert len(checkpoint["trainer"]["_trainer"]["optimizer"]["state"]) > 40  # --resume goes on with its momentum
    assert (out / "model_final.pth").stat().st_size < teacher.stat().st_size * 1.25  # 28 M parameters and momentum

    teacher.unlink()  # evaluation never needs it
    evaluated = train_net(
        *config, "--eval-only", *SMALL, "MODEL.WEIGHTS", out / "model_final.pth", "KD.TEACHER.WEIGHTS", teacher
    )
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    assert "copypaste: AP," in evaluated.stdout + evaluated.stderr

    resumed = train_net(*config, "--resume", *SMALL, "KD.TEACHER.WEIGHTS", r101, "SOLVER.MAX_ITER", 3)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "Starting training from iteration 2" in resumed.stdout + resumed.stderr
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 2
