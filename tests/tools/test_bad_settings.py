"""Invalid settings, through the command line's own parser and entry function. Each ends with one line that names key,
value and remedy, before data sets and weights are read (none of those named here exists)."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2 import model_zoo
from detectron2.engine import default_argument_parser

from kd_det.engine import run
from kd_det.engine.setup import check_training_run, read_setup
from tests.tiny import TINY, teacher_files


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def settings(teacher, tmp_path_factory):
    return [
        *TINY, "MODEL.META_ARCHITECTURE", "DistillRCNN", "MODEL.ROI_HEADS.NAME", "DistillROIHeads",
        "KD.TERMS", ("dkd",), "KD.TEACHER.CONFIG_FILE", teacher[0], "KD.TEACHER.WEIGHTS", "nowhere/teacher.pth",
        "MODEL.WEIGHTS", "nowhere/student.pth", "DATASETS.TRAIN", ("nowhere_train",),
        "DATASETS.TEST", ("nowhere_val",), "OUTPUT_DIR", str(tmp_path_factory.mktemp("run") / "output"),
    ]  # fmt: skip


@pytest.fixture
def refused(settings, capsys):
    """``refused(*overrides, flags=...)`` runs the command line and returns its one error line."""

    def run_command(*overrides: object, flags: tuple[object, ...] = ()) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run(default_argument_parser().parse_args([*map(str, flags), *map(str, [*settings, *overrides])]))
        line = capsys.readouterr().err.splitlines()[-1]
        assert end.value.code == 2 and line.startswith("error: "), (end.value.code, line)
        return line

    return run_command


def test_without_a_fault_it_is_the_data_set(refused):
    assert "there is no data set 'nowhere_train'" in refused()


RELATIVE = ("INPUT.CROP.ENABLED", True)
NO_FPN = ("MODEL.ROI_HEADS.NAME", "DistillRes5ROIHeads", "KD.TERMS", "()")
CASCADE = ("MODEL.ROI_HEADS.NAME", "DistillCascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)


@pytest.mark.parametrize(
    "overrides, named",
    [
        # Numbers.
        (["SOLVER.MAX_ITER", -5], "SOLVER.MAX_ITER is -5; it must be a whole number, 0 or more"),
        (["SOLVER.MAX_ITER", 0], "SOLVER.MAX_ITER is 0: there is nothing to train. Set it to 1 or more, or evaluate"),
        (["SOLVER.CHECKPOINT_PERIOD", 0], "SOLVER.CHECKPOINT_PERIOD is 0; it must be a whole number, 1 or more"),
        (["SOLVER.IMS_PER_BATCH", 0], "SOLVER.IMS_PER_BATCH is 0; it must be a whole number, 1 or more"),
        (["SOLVER.MOMENTUM", 5.0], "SOLVER.MOMENTUM is 5.0; it must be a number, 0 or more and below 1"),
        (["SOLVER.BASE_LR", "float('nan')"], "SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR", ".inf"], "SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR", 1e400], "SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR", -0.1], "SOLVER.BASE_LR is -0.1; it must be a finite number, 0 or more"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", -1.0], "SOLVER.CLIP_GRADIENTS.CLIP_VALUE is -1.0"),
        (["SOLVER.WEIGHT_DECAY_BIAS", "x"], "SOLVER.WEIGHT_DECAY_BIAS is 'x'"),
        (["SOLVER.STEPS", "(3, 2)"], "SOLVER.STEPS is (3, 2)"),
        (["SOLVER.STEPS", "(40000,)"], "all before the last"),
        (["SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.0], "SOLVER.NESTEROV is True with SOLVER.MOMENTUM 0.0"),
        (["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 0], "POOLER_RESOLUTION is 0; it must be a whole number from 1 to"),
        (["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 0], "BATCH_SIZE_PER_IMAGE is 0; it must be a whole number, 1 or"),
        (["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", -1], "BATCH_SIZE_PER_IMAGE is -1; it must be a whole number, 1 or"),
        (["MODEL.ROI_HEADS.POSITIVE_FRACTION", 2.0], "POSITIVE_FRACTION is 2.0; it must be a number from 0 to 1"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 10**400], "MODEL.ROI_HEADS.NUM_CLASSES is 1"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 2 * 10**9], "the weights need"),
        (["MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]"], "MODEL.PIXEL_STD[1] is 0.0"),
        (["MODEL.PIXEL_MEAN", "[1.0]"], "MODEL.PIXEL_MEAN has 1 values, but INPUT.FORMAT BGR has 3 channels"),
        (["MODEL.RPN.IOU_THRESHOLDS", "[0.7, 0.3]"], "MODEL.RPN.IOU_THRESHOLDS is [0.7, 0.3]"),
        (["MODEL.RPN.IOU_LABELS", "[0, 1]"], "MODEL.RPN.IOU_LABELS is [0, 1]"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16]]"], "MODEL.ANCHOR_GENERATOR.SIZES has 2 lists"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128, 256]]"], "anchors at a position"),
        (["MODEL.ROI_BOX_HEAD.NUM_FC", 0], "NUM_FC and NUM_CONV are 0"),
        (["MODEL.FPN.NORM", "GN"], "MODEL.FPN.OUT_CHANNELS is 16, but MODEL.FPN.NORM GN needs a multiple of 32"),
        (["MODEL.RESNETS.DEPTH", 18], "MODEL.RESNETS.RES2_OUT_CHANNELS is 8, but MODEL.RESNETS.DEPTH 18 needs 64"),
        (["INPUT.CROP.SIZE", "[0, 0]", *RELATIVE], "INPUT.CROP.SIZE[0] is 0"),
        (["INPUT.CROP.SIZE", "[2.0, 2.0]", *RELATIVE], "shares of the image's sides"),
        (["INPUT.CROP.SIZE", "[0.5, 0.5]", "INPUT.CROP.TYPE", "absolute", *RELATIVE], "whole numbers of pixels"),
        (["INPUT.MIN_SIZE_TRAIN", "(-1,)"], "INPUT.MIN_SIZE_TRAIN[0] is -1"),
        (["INPUT.MIN_SIZE_TRAIN", "(9,)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "smallest and the largest size"),
        (["SEED", 2**40], "SEED is 1099511627776"),
        (["TEST.EXPECTED_RESULTS", "['AP']"], "TEST.EXPECTED_RESULTS[0] is 'AP'"),
        (["VERSION", 1], "VERSION is 1; this Detectron2 has the keys of version 2"),
        # Types and sections.
        (["MODEL.ROI_HEADS.NUM_CLASSES", "None"], "NUM_CLASSES is None; it must be a whole number, as its default"),
        (["MODEL.WEIGHTS", "None"], "MODEL.WEIGHTS is None"),
        (["SOLVER", "{}"], "SOLVER"),
        # Names.
        (["MODEL.META_ARCHITECTURE", "DistilRCNN"], "Did you mean 'DistillRCNN'?"),
        (["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbon"], "Did you mean 'build_resnet_fpn_backbone'?"),
        (["MODEL.ROI_HEADS.NAME", "DistillRoiHeads"], "Did you mean 'DistillROIHeads'?"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RNP"], "Did you mean 'RPN'?"),
        (["MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFcHead"], "Did you mean 'FastRCNNConvFCHead'?"),
        (["MODEL.ROI_BOX_HEAD.NAME", "''"], "MODEL.ROI_BOX_HEAD.NAME is empty"),
        (["MODEL.RPN.HEAD_NAME", "StandardRpnHead"], "Did you mean 'StandardRPNHead'?"),
        (["MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchors"], "Did you mean 'DefaultAnchorGenerator'?"),
        (["MODEL.ROI_MASK_HEAD.NAME", "MaskHead"], "MODEL.ROI_MASK_HEAD.NAME is 'MaskHead'"),
        (["DATALOADER.SAMPLER_TRAIN", "TrainingSample"], "Did you mean 'TrainingSampler'?"),
        (["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"], "DATALOADER.RANDOM_SUBSET_RATIO"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosinLR"], "Did you mean 'WarmupCosineLR'?"),
        (["SOLVER.WARMUP_METHOD", "none"], "SOLVER.WARMUP_METHOD is 'none'; it must be one of linear, constant"),
        (["MODEL.RPN.BBOX_REG_LOSS_TYPE", "l1"], "MODEL.RPN.BBOX_REG_LOSS_TYPE is 'l1'"),
        (["INPUT.FORMAT", "RBG"], "Did you mean 'RGB'?"),
        (["INPUT.RANDOM_FLIP", "diagonal"], "INPUT.RANDOM_FLIP is 'diagonal'"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu'; it must be cuda or cpu"),
        (["MODEL.DEVICE", "meta"], "MODEL.DEVICE is 'meta', but PyTorch has no such device here"),
        # Maps.
        (["MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p9']"], "MODEL.RPN.IN_FEATURES names 'p9'"),
        (["MODEL.ROI_HEADS.IN_FEATURES", "['p9']"], "MODEL.ROI_HEADS.IN_FEATURES names 'p9', but the maps of"),
        (["MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p4']"], "each must have twice the stride"),
        (["MODEL.FPN.IN_FEATURES", "['res9']"], "MODEL.FPN.IN_FEATURES names 'res9'"),
        (["MODEL.FPN.IN_FEATURES", "[]"], "MODEL.FPN.IN_FEATURES is empty"),
        (["MODEL.RESNETS.OUT_FEATURES", "['res9']"], "MODEL.RESNETS.OUT_FEATURES[0] is 'res9'"),
        ([*NO_FPN, "MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3']"], "works on one map"),
        ([*CASCADE, "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.5, 0.6)"], "IOUS names 2 stages and BBOX_REG_WEIGHTS 3"),
        ([*CASCADE[:2]], "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG is False"),
        # Proposals.
        (["MODEL.LOAD_PROPOSALS", True], "DATASETS.PROPOSAL_FILES_TRAIN has 0 files for the 1 sets"),
        (
            ["MODEL.LOAD_PROPOSALS", True, "DATASETS.PROPOSAL_FILES_TRAIN", "('nowhere.pkl',)"],
            "DATASETS.PROPOSAL_FILES_TRAIN: there is no file 'nowhere.pkl'",
        ),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"], "but MODEL.LOAD_PROPOSALS is False"),
        (
            ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", True, "KD.TERMS",
             "('fgfi',)", "DATASETS.PROPOSAL_FILES_TRAIN", (__file__,), "DATASETS.PROPOSAL_FILES_TEST", (__file__,)],
            '"fgfi" needs the anchors of an RPN, but MODEL.PROPOSAL_GENERATOR.NAME is',
        ),
        # Distillation.
        (
            ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"],
            "KD.TERMS is ('dkd',), but MODEL.META_ARCHITECTURE 'GeneralizedRCNN' does not distil: it would train "
            "without a teacher. Set it to DistillRCNN",
        ),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "MODEL.META_ARCHITECTURE 'RetinaNet' does not distil"),
        (["MODEL.ROI_HEADS.NAME", "StandardROIHeads"], "MODEL.ROI_HEADS.NAME is 'StandardROIHeads', which does"),
        (["KD.TERMS", "[['dkd']]"], "KD.TERMS[0] is ['dkd']"),
        (["KD.TERMS", "('dkdd',)"], "Did you mean 'dkd'?"),
        (["KD.TERMS", "('kd', 'kd')"], "KD.TERMS: 'kd' is listed twice"),
        (["KD.DKD.WEIGHT", "None"], "KD.DKD.WEIGHT is None; it must be a number, as its default 1.0 is"),
        (["KD.DKD.BETA", -1.0], "KD.DKD.BETA is -1.0; it must be a finite number, 0 or more"),
        (["KD.DKD.BETA", 8], "a float as 8.0"),
        (["DATASETS.TRAIN", "('coco_2017_trian',)"], "Did you mean 'coco_2017_train'?"),
        (
            ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.TIMM.NAME",
             "vit_tiny_patch16_224"],
            "MODEL.TIMM.NAME 'vit_tiny_patch16_224' gives maps at strides 16",
        ),
        (["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True]], "the model has deformable"),
        (["KD.DKD.BETTA", 2.0], "Did you mean 'KD.DKD.BETA'?"),
        (["KD.DKD.TEMPERATURE", 1e-30], "KD.DKD.TEMPERATURE is 1e-30; it must be a number from 1e-06 to 1e+06"),
        (["KD.KD.TEMPERATURE", -4.0], "KD.KD.TEMPERATURE is -4.0"),
        (["KD.SDD.SCALES", "(1, 100)"], "KD.SDD.SCALES is (1, 100); it must be 1, the whole proposal, and then"),
        (["KD.FGFI.THRESHOLD", 1.0], "KD.FGFI.THRESHOLD is 1.0; it must be a number, 0 or more and below 1"),
        (["KD.REVIEWKD.FEATURES", "['p3=']"], "KD.REVIEWKD.FEATURES: 'p3=' lacks a name on one side; write"),
        (["KD.REVIEWKD.FEATURES", "['p9']", "KD.TERMS", "('reviewkd',)"], "the student has no map 'p9'"),
        (
            ["KD.REVIEWKD.FEATURES", "['p3=res4']", "KD.TERMS", "('reviewkd',)"],
            "KD.REVIEWKD.FEATURES: the teacher has no map 'res4'. The student's maps: p2 (16 channels, stride 4)",
        ),
        (["KD.TEACHER.CLASS_MAP", "['0=']"], "KD.TEACHER.CLASS_MAP: '0=' lacks a name on one side; write"),
        (["KD.TEACHER.CLASS_MAP", "[0]"], "KD.TEACHER.CLASS_MAP: 0 lacks a name on one side; write"),
        (["KD.TEACHER.OPTS", "[1, 2]"], "KD.TEACHER.OPTS is [1, 2]; it must be keys and values in turn"),
        (["KD.TEACHER.OPTS", "['SEED']"], "KD.TEACHER.OPTS is ['SEED']; it must be keys and values in turn"),
        (["KD.TEACHER.OPTS", "['MODEL.RPN.NMS_THRESH', 2.0]"], "with KD.TEACHER.OPTS: MODEL.RPN.NMS_THRESH is 2.0"),
        (["KD.TEACHER.OPTS", "['MODEL.ROI_HEADS.IN_FEATURES', ['p9']]"], "MODEL.ROI_HEADS.IN_FEATURES names 'p9'"),
        (["KD.TEACHER.DTYPE", "half"], "KD.TEACHER.DTYPE is 'half'; it must be one of auto, float32"),
        (["KD.TEACHER.CONFIG_FILE", "COCO-Detection/faster_rcnn_R_101_FPN_3y.yaml"], "faster_rcnn_R_101_FPN_3x.yaml'?"),
        (["KD.TEACHER.CONFIG_FILE", "''"], "KD.TEACHER.CONFIG_FILE is empty"),
        (["KD.TEACHER.WEIGHTS", "''"], "KD.TEACHER.WEIGHTS is empty"),
    ],
)
def test_an_invalid_setting(refused, overrides, named):
    assert named in refused(*overrides)


@pytest.mark.parametrize("number", [-1, -8])
def test_a_negative_number_of_gpus(refused, number):
    assert f"--num-gpus is {number}" in refused(flags=("--num-gpus", number))


def test_images_that_two_processes_cannot_share(settings):
    cfg = read_setup("", [*settings, "SOLVER.IMS_PER_BATCH", 3])
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH is 3 for 2 processes .*Set it to a multiple of 2"):
        check_training_run(cfg, 2)


def test_a_file_in_the_place_of_the_output(refused, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "is not a folder. Give another" in refused("OUTPUT_DIR", path)
    assert "OUTPUT_DIR is ''" in refused("OUTPUT_DIR", "''")


def test_evaluation_needs_neither_a_teacher_nor_iterations(refused):
    line = refused("SOLVER.MAX_ITER", 0, "KD.TEACHER.CONFIG_FILE", "nowhere.yaml", flags=("--eval-only",))
    assert "there is no data set 'nowhere_train'" in line


@pytest.mark.parametrize(
    "key, value",
    [
        ("SEED", -1), ("SOLVER.WEIGHT_DECAY_BIAS", "0.1"), ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", float("inf")),
        ("TEST.DETECTIONS_PER_IMAGE", -1), ("MODEL.RPN.BOUNDARY_THRESH", -1), ("MODEL.RPN.CONV_DIMS", [-1, -1]),
        ("INPUT.MIN_SIZE_TEST", 0), ("INPUT.MIN_SIZE_TRAIN", (0,)), ("SOLVER.WARMUP_ITERS", 0), ("SOLVER.STEPS", ()),
        ("DATALOADER.NUM_WORKERS", 0), ("TEST.EVAL_PERIOD", 0), ("MODEL.ANCHOR_GENERATOR.SIZES", [[8, 16]]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [8, 16]), ("INPUT.RANDOM_FLIP", "none"), ("SOLVER.BASE_LR", 0.0),
        ("MODEL.BACKBONE.FREEZE_AT", 0), ("KD.SDD.SCALES", (1,)), ("MODEL.RPN.POSITIVE_FRACTION", 1.0),
    ],
)  # fmt: skip
def test_values_with_a_meaning_of_their_own_stay_legal(settings, key, value):
    check_training_run(read_setup("", [*settings, key, value]))


@pytest.mark.parametrize(
    "name",
    ["COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
     "COCO-Detection/rpn_R_50_C4_1x.yaml", "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
     "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
     "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv.yaml", "Misc/semantic_R_50_FPN_1x.yaml",
     "Cityscapes/mask_rcnn_R_50_FPN.yaml", "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml"],
)  # fmt: skip
def test_the_model_zoo_passes(name):
    read_setup(model_zoo.get_config_file(name), ["MODEL.DEVICE", "cpu"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(refused, settings, caplog):
    without_device = settings[2:]
    assert settings[:2] == ["MODEL.DEVICE", "cpu"]
    with caplog.at_level(logging.WARNING):
        assert read_setup("", without_device).MODEL.DEVICE == "cpu"
    assert caplog.text.count("PyTorch finds no GPU: using the CPU") == 1
    assert "MODEL.DEVICE is 'cuda' but PyTorch finds no GPU here. Add" in refused("MODEL.DEVICE", "cuda")
    with pytest.raises(ValueError, match="--num-gpus is 2 but there are 0 GPUs"):
        read_setup("", without_device, processes=2)
    assert read_setup("", settings, processes=2).MODEL.DEVICE == "cpu"


def test_a_device_in_a_file_is_given(tmp_path, settings):
    (tmp_path / "cpu.yaml").write_text("VERSION: 2\nMODEL:\n  DEVICE: cpu\n")
    assert read_setup(str(tmp_path / "cpu.yaml"), settings[2:]).MODEL.DEVICE == "cpu"
