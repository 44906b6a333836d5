"""tools/train_net.py on the miniature COCO: the command a user gives, to the AP and back."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from tests.conftest import ROOT, command_environment
from tests.tiny import TINY, teacher_files

SMALL = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", 128]
SMALL += ["DATALOADER.NUM_WORKERS", 0]
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

    trained = train_net(*config, *SMALL, "KD.TEACHER.WEIGHTS", teacher)
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


@pytest.fixture
def tiny_run(tmp_path):
    """Arguments that train the tiny student under the tiny teacher on the miniature COCO, for a given time."""
    teacher = teacher_files(tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", 80)
    settings = [
        *TINY, *SMALL, "MODEL.META_ARCHITECTURE", "DistillRCNN", "MODEL.ROI_HEADS.NAME", "DistillROIHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES", 80, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05, "SOLVER.BASE_LR", 1e-5,
        "KD.TERMS", "('dkd','kd')", "KD.TEACHER.CONFIG_FILE", teacher[0], "KD.TEACHER.WEIGHTS", teacher[1],
        "DATASETS.TRAIN", "('coco_2017_train',)", "DATASETS.TEST", "('coco_2017_val',)",
    ]  # fmt: skip
    return settings


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_that_resumes(train_net, tiny_run, coco, torch_home, tmp_path, sent):
    out = tmp_path / "output"
    arguments = [*tiny_run, "SOLVER.MAX_ITER", 100000, "SOLVER.CHECKPOINT_PERIOD", 100000, "OUTPUT_DIR", out]
    environment = command_environment(coco, torch_home, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "tools/train_net.py", *map(str, arguments)], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not ((out / "metrics.json").exists() and metrics(out)):  # written after 20 iterations
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.2)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + sent, output[-3000:]
    name = (out / "last_checkpoint").read_text()
    checkpoint = torch.load(out / name, weights_only=True)
    assert f"Stopped by {sent.name} after iteration {checkpoint['iteration']}" in output
    assert checkpoint["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == checkpoint["iteration"] + 1
    assert not list(out.glob("*.tmp"))

    resumed = train_net("--resume", *tiny_run, "SOLVER.MAX_ITER", checkpoint["iteration"] + 3)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert f"Starting training from iteration {checkpoint['iteration'] + 1}" in resumed.stdout + resumed.stderr


def test_a_non_finite_loss_stops_after_saving_the_last_good_state(train_net, tiny_run, tmp_path):
    failed = train_net(
        *tiny_run, "SOLVER.MAX_ITER", 50, "KD.DKD.WEIGHT", 1e38, "KD.DKD.BETA", 1e20, "SOLVER.BASE_LR", 0.0
    )
    assert failed.returncode == 1
    error = failed.stderr.splitlines()[-1]
    assert error.startswith("error: {'loss_dkd': ") and "at iteration 0" in error and "000000000" in error
    saved = torch.load(tmp_path / "output" / (tmp_path / "output" / "last_checkpoint").read_text(), weights_only=True)
    assert saved["iteration"] == -1 and all(torch.isfinite(v).all() for v in saved["model"].values())


def test_divergence_names_the_last_good_checkpoint(train_net, tiny_run, tmp_path):
    failed = train_net(
        *tiny_run,
        "SOLVER.MAX_ITER",
        50,
        "SOLVER.BASE_LR",
        1e30,
        "SOLVER.WARMUP_ITERS",
        2,
        "SOLVER.CHECKPOINT_PERIOD",
        1,
    )
    assert failed.returncode == 1
    error = failed.stderr.splitlines()[-1]
    assert error.startswith("error: ") and "at iteration" in error and ".jpg" in error
    saved = torch.load(tmp_path / "output" / (tmp_path / "output" / "last_checkpoint").read_text(), weights_only=True)
    assert all(torch.isfinite(v).all() for v in saved["model"].values())


def test_two_processes_train_and_evaluate_without_a_gpu(train_net, tiny_run, tmp_path):
    trained = train_net("--num-gpus", 2, *tiny_run, "SOLVER.MAX_ITER", 2)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert (tmp_path / "output" / "model_final.pth").exists()
    assert "bbox/AP" in (tmp_path / "output" / "metrics.json").read_text()
