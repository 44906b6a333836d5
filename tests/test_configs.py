"""Every configuration in the repository: two training steps and an evaluation, on images of a few pixels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from kd_det.config import load_config
from kd_det.data.digits_scenes import DigitsDetSettings, annotation_file, image_root, make_digits_det
from kd_det.engine import DistillTrainer
from kd_det.engine.setup import dry_build
from kd_det.teacher.config import teacher_config
from tests.conftest import ROOT
from tests.mini_coco import THINGS

COCO, DIGITS = (
    sorted(path for path in (ROOT / "configs" / name).glob("*.yaml") if not path.name.startswith("_"))
    for name in ("coco", "digits_det")
)
# They go after a student's or method's file.
STARTS = [path for path in COCO if path.stem.endswith("_published")]
COCO = [path for path in COCO if path not in STARTS]
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0,
    "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 96, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.PRE_NMS_TOPK_TEST", 30, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 30,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 10, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "TEST.DETECTIONS_PER_IMAGE", 10,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", -1.0, "SOLVER.BASE_LR", 1e-6,  # random networks leap at larger ones
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def datasets(coco, tmp_path_factory):
    """Registers "mini_coco_*" and "mini_digits_*", a few images each."""
    digits = tmp_path_factory.mktemp("digits")
    make_digits_det(digits, DigitsDetSettings(train_images=4, val_images=2))
    for split in ("train", "val"):
        instances = coco / "coco" / "annotations" / f"instances_{split}2017.json"
        metadata = {"thing_classes": [category["name"] for category in THINGS]}
        register_coco_instances(f"mini_coco_{split}", metadata, str(instances), str(coco / "coco" / f"{split}2017"))
        register_coco_instances(
            f"mini_digits_{split}", {}, str(annotation_file(digits, split)), str(image_root(digits, split))
        )


def read(path: Path, *overrides: object):
    data = "mini_coco" if path in COCO else "mini_digits"
    names = ["DATASETS.TRAIN", (f"{data}_train",), "DATASETS.TEST", (f"{data}_val",)]
    return load_config(str(path.relative_to(ROOT)), [*SMALL, *names, *overrides])


@pytest.fixture(scope="module")
def teacher_weights(tmp_path_factory):
    """``teacher_weights(cfg)``: the path of random weights for the teacher that ``cfg`` names, made once."""

    @cache
    def make(config_file: str) -> str:
        path = tmp_path_factory.mktemp("teacher") / "model.pth"
        cfg = load_config("", ["MODEL.DEVICE", "cpu", "KD.TEACHER.CONFIG_FILE", config_file])
        cfg.KD.TEACHER.WEIGHTS = str(path)
        model = build_model(teacher_config(cfg))
        calm(model)
        torch.save({"model": model.state_dict()}, path)
        return str(path)

    return lambda cfg: make(cfg.KD.TEACHER.CONFIG_FILE)


def calm(model: torch.nn.Module) -> None:
    """Frozen normalisation lets a random network's maps grow with every block; this keeps them small."""
    for module in model.backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.2)


@pytest.mark.parametrize("path", [*COCO, *DIGITS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_two_steps_and_an_evaluation(path, teacher_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = read(path, "OUTPUT_DIR", str(tmp_path))
    if cfg.KD.TERMS:
        cfg.KD.TEACHER.WEIGHTS = teacher_weights(cfg)
        cfg.KD.TEACHER.DTYPE = "float32"  # the same on every machine
    torch.manual_seed(0)
    model = DistillTrainer.build_model(cfg)
    calm(model)
    optimizer = DistillTrainer.build_optimizer(cfg, model)
    batches = iter(DistillTrainer.build_train_loader(cfg))
    with EventStorage(0):
        for step in range(2):
            losses = model.train()(next(batches))
            assert all(torch.isfinite(value) for value in losses.values()), losses
            if step == 0:
                check_terms(cfg, model, losses)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            check_gradients(model)
            optimizer.step()
    assert 0 <= DistillTrainer.test(cfg, model)["bbox"]["AP"] <= 100


def check_terms(cfg, model, losses):
    """Each term has its loss, and each loss alone moves the student's backbone."""
    plain = ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")
    assert losses.keys() - set(plain) == {f"loss_{term}" for term in cfg.KD.TERMS}
    weights = [p for p in model.backbone.parameters() if p.requires_grad]
    for term in cfg.KD.TERMS:
        gradients = torch.autograd.grad(losses[f"loss_{term}"], weights, retain_graph=True, allow_unused=True)
        assert sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None) > 0, term


def check_gradients(model):
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    if getattr(model, "teacher", None):
        assert not model.teacher.model.training
        assert all(p.grad is None and not p.requires_grad for p in model.teacher.model.parameters())


def test_what_torchvisions_and_timms_weights_see():
    """Their documentation: RGB, mean 0.485, 0.456, 0.406 and deviation 0.229, 0.224, 0.225 of pixels from 0 to 1."""
    for path in COCO:
        cfg = read(path)
        assert cfg.INPUT.FORMAT == "RGB"
        for values, fractions in (
            (cfg.MODEL.PIXEL_MEAN, (0.485, 0.456, 0.406)),
            (cfg.MODEL.PIXEL_STD, (0.229, 0.224, 0.225)),
        ):
            assert list(values) == pytest.approx([255 * fraction for fraction in fractions])


@pytest.mark.parametrize("student", ["r50", "mv2"])
def test_the_published_starts(student):
    """Detectron2's own defaults, which the published files of these students leave as they are."""
    (start,) = (path for path in STARTS if path.stem == f"{student}_published")
    pair = {"r50": "r101_r50", "mv2": "r50_mv2"}[student]
    files = [f"coco/dkd_{pair}.yaml", f"coco/{start.name}"]
    cfg, default = load_config(files), get_cfg()
    assert cfg.INPUT.FORMAT == default.INPUT.FORMAT == "BGR"
    assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == (default.MODEL.PIXEL_MEAN, default.MODEL.PIXEL_STD)
    assert cfg.KD.TERMS == ("dkd",) and cfg.SOLVER.MAX_ITER == 180_000
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 == default.MODEL.RESNETS.STRIDE_IN_1X1
    assert ("MSRA/R-50.pkl" in cfg.MODEL.WEIGHTS) == (student == "r50")
    dry_build(cfg)


def test_the_pairs_of_the_papers_are_all_there():
    methods = ("kd", "fitnet", "fgfi", "reviewkd", "dkd", "dkd_reviewkd", "sdd_dkd")
    pairs = {"r101_r18": (101, 18), "r101_r50": (101, 50), "r50_mv2": (50, None)}
    names = {f"{method}_{pair}" for method in methods for pair in pairs}
    names |= {f"student_{pair.split('_')[1]}" for pair in pairs}
    names |= {"mask_dkd_reviewkd_r101_r18", "mask_dkd_reviewkd_r101_r50"}
    assert {path.stem for path in COCO} == names
