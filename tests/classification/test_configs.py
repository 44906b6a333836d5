"""Every classification configuration in the repository: what it says, and that its networks and distiller build."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
import torchvision

from classification.config import load_config
from classification.distillers import Pair, build_distiller
from classification.models import create_model, short_name
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
CLASSES = {"cifar100": 100, "cub200": 200, "digits": 10, "imagenet": 1000}
FILES = sorted(path for data in CLASSES for path in (CONFIGS / data).glob("*.yaml"))
LEAVES = [f"{path.parent.name}/{path.stem}" for path in FILES]
METHODS = ("kd", "dkd", "nkd", "sdd_kd", "sdd_dkd", "sdd_nkd", "reviewkd")
# Zhao et al. 2022, tables 6, 7, 11 and 12, then Wei et al. 2024, tables 1 and 2.
SIMILAR = [
    *("res56_res20", "res110_res32", "res32x4_res8x4", "wrn_40_2_wrn_16_2", "wrn_40_2_wrn_40_1", "vgg13_vgg8"),
    *("wrn_28_2_wrn_16_2", "wrn_16_4_wrn_16_2", "wrn_28_4_wrn_16_2"),
]
DIFFERENT = [
    *("res32x4_ShuffleV1", "wrn_40_2_ShuffleV1", "vgg13_MobileNetV2", "ResNet50_MobileNetV2", "res32x4_ShuffleV2"),
    *("vgg13_wrn_16_2", "ResNet50_wrn_16_2"),
    *("res32x4_MobileNetV2", "wrn_40_2_vgg8", "wrn_40_2_MobileNetV2", "ResNet50_ShuffleV1", "ResNet50_vgg8"),
]
CUB = ["res32x4_MobileNetV2", "res32x4_ShuffleV1", "vgg13_MobileNetV2", "vgg13_vgg8", "ResNet50_ShuffleV1"]
# Different numbers of stages: reviewkd does not fit them.
UNREVIEWED = (
    "res32x4_MobileNetV2",
    "wrn_40_2_vgg8",
    "wrn_40_2_MobileNetV2",
    "ResNet50_ShuffleV1",
    "vgg13_wrn_16_2",
    "ResNet50_wrn_16_2",
)
# What the names of configurations call the libraries' networks, the tag of pretrained weights left out.
NICKNAMES = {
    **{f"torchvision/resnet{depth}": f"r{depth}" for depth in (18, 34, 50)},
    **{"timm/mobilenetv1_100": "mv1", "timm/mobilenetv2_100": "mv2", "timm/resnet50": "r50_a1"},
    **{"timm/swin_tiny_patch4_window7_224": "swin_t", "timm/vit_small_patch16_224": "vit_s"},
    **{"timm/mixer_b16_224": "mixer_b16", "timm/convnext_tiny": "convnext_t"},
    **{"timm/deit_tiny_patch16_224": "deit_t", "timm/resmlp_12_224": "resmlp_s12", "timm/test_vit": "vit"},
}
# Families as Hao et al. 2023 pair them, and the students of CIFAR-100's own size.
BIG = ("swin_t", "vit_s", "mixer_b16", "convnext_t")
TO_CNN = [f"{teacher}_{student}" for teacher in BIG for student in ("r18", "mv2")]
TO_TOKENS = ["convnext_t_deit_t", "mixer_b16_deit_t", "convnext_t_resmlp_s12", "swin_t_resmlp_s12"]
HETEROGENEOUS = {
    "cifar100": TO_CNN
    + TO_TOKENS
    + [f"{teacher}_{student}" for teacher in BIG for student in ("ResNet18", "MobileNetV2")],
    "cub200": TO_CNN + TO_TOKENS,
    "imagenet": [
        *TO_CNN,
        *("deit_t_r18", "deit_t_mv2"),
        *("r50_a1_deit_t", "convnext_t_deit_t", "mixer_b16_deit_t"),
        *("r50_a1_resmlp_s12", "convnext_t_resmlp_s12", "swin_t_resmlp_s12"),
    ],
}
FROM_SCRATCH_CNN = ("r18", "mv2")
TOKENS = ("deit_t", "resmlp_s12")
BETA = {"resnet56": 2.0, "resnet110": 2.0, "wrn_40_2": 6.0, "vgg13": 6.0, "ResNet50": 8.0, "resnet32x4": 8.0}


def nickname(model: str) -> str:
    return NICKNAMES.get(without_tag(model)) or short_name(model)


def without_tag(model: str) -> str:
    """The name without which of timm's weights are meant, which a network needs only where it starts from them."""
    return model.split(".")[0]


@cache
def read(leaf: str):
    return load_config(str(CONFIGS / f"{leaf}.yaml"))


# Few, and the same for every data set: a large network is then built once for all of them.
FEW = 5


@cache
def answer(model: str, stem: str, size: int):
    """The network with random weights, without its parameters' storage, and its answer to an image of noise."""
    network = create_model(model, FEW, stem=stem, image_size=size).eval()
    with torch.no_grad():
        output = network(torch.randn(1, 3, size, size), return_features=True)
    return network.to("meta"), output


def network(node, size: int):
    stem = "cifar" if "/" in node.NAME else node.STEM  # the libraries' networks have their own
    return answer(without_tag(node.NAME), stem, node.IMAGE_SIZE or size)


def pair(cfg) -> Pair:
    student, student_out = network(cfg.STUDENT, cfg.DATA.IMAGE_SIZE)
    teacher, teacher_out = network(cfg.TEACHER, cfg.DATA.IMAGE_SIZE) if cfg.TEACHER.NAME else (None, None)
    return Pair(student, teacher, student_out, teacher_out, 2000)


@pytest.mark.parametrize("leaf", LEAVES)
def test_networks_and_distiller_build(leaf):
    cfg = read(leaf)
    assert leaf.split("/")[0] == cfg.DATA.NAME
    networks = pair(cfg)
    assert networks.student_out.logits.shape == (1, FEW)
    distiller = build_distiller(cfg, networks)
    assert distiller.needs_teacher == bool(cfg.TEACHER.NAME)


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_name_says_what_is_trained_and_where_it_goes(leaf):
    cfg = read(leaf)
    method = {"none": "vanilla", "sdd": f"sdd_{cfg.SDD.BASE}"}.get(cfg.DISTILLER, cfg.DISTILLER)
    networks = [nickname(model) for model in (cfg.TEACHER.NAME, cfg.STUDENT.NAME) if model]
    if cfg.DATA.NAME == "digits":
        networks = [network.replace("res", "resnet") for network in networks]
    assert leaf == f"{cfg.DATA.NAME}/{'_'.join([method, *networks])}"
    assert f"output/{leaf}" == cfg.OUTPUT_DIR


def test_teachers_are_trained_by_a_configuration_here_or_come_with_their_library():
    for leaf in LEAVES:
        teacher = read(leaf).TEACHER
        if not teacher.NAME:
            continue
        assert bool(teacher.WEIGHTS) != teacher.PRETRAINED, leaf
        assert leaf.startswith("imagenet/") == teacher.PRETRAINED, leaf
        if teacher.WEIGHTS:
            theirs = read(teacher.WEIGHTS)
            assert theirs.DISTILLER == "none", leaf
            for key in ("NAME", "STEM", "IMAGE_SIZE"):
                assert theirs.STUDENT[key] == teacher[key], (leaf, key)
            # The same images, normalised the same way: batches and augmentation are each training's own.
            for key in ("NAME", "IMAGE_SIZE"):
                assert theirs.DATA[key] == read(leaf).DATA[key], (leaf, key)


def test_pretrained_weights_exist():
    nodes = [node for leaf in LEAVES for node in (read(leaf).STUDENT, read(leaf).TEACHER)]
    names = {node.NAME for node in nodes if node.PRETRAINED}
    assert {name for name in names if name.startswith("timm/")} >= {"timm/convnext_tiny.fb_in1k"}
    for library, name in (name.split("/") for name in names):
        if library == "timm":
            assert timm.models.get_pretrained_cfg(name).has_weights, name
            assert "." in name, f"{name}: timm's choice of weights changes"
        else:
            network, _, tag = name.partition(".")
            assert (tag or "DEFAULT") in torchvision.models.get_model_weights(network).__members__, name
    # The papers' teacher: the same network has better weights by now.
    assert "torchvision/resnet50.IMAGENET1K_V1" in names and "torchvision/resnet50" not in names


def expected_names():
    for data, pairs in (("cifar100", SIMILAR + DIFFERENT), ("cub200", CUB), ("imagenet", ["r34_r18", "r50_mv1"])):
        for method in METHODS:
            fitting = [pair for pair in pairs if method != "reviewkd" or pair not in UNREVIEWED]
            yield from (f"{data}/{method}_{pair}" for pair in fitting)
    yield from (f"cifar100/mcld_{pair}" for pair in SIMILAR + DIFFERENT)
    yield from (f"cub200/mcld_{pair}" for pair in CUB)
    for data, pairs in HETEROGENEOUS.items():
        yield from (f"{data}/{method}_{pair}" for method in ("kd", "dkd", "hcd") for pair in pairs)
    yield from (f"digits/{method}_vit_resnet8" for method in ("kd", "dkd", "mcld", "hcd"))
    yield from (f"imagenet/mcld_{pair}" for pair in ("r34_r18", "r50_mv1"))
    digits = ("mcld", "hcd", "dkd_tckd", "dkd_nckd", "dkd_coupled", "fitnet", "at", "rkd")
    yield from (f"digits/{method}_resnet20_resnet8" for method in (*METHODS, *digits))


def test_every_pair_of_the_papers_has_every_method():
    distilled = {leaf for leaf in LEAVES if "/vanilla_" not in leaf}
    assert set(expected_names()) == distilled


def test_students_are_trained_alone_as_they_are_distilled():
    def described(cfg):
        return cfg.STUDENT.dump() + cfg.DATA.dump() + cfg.SOLVER.dump()

    alone = {described(read(leaf)) for leaf in LEAVES if "/vanilla_" in leaf}
    assert {described(read(leaf)) for leaf in LEAVES if "/vanilla_" not in leaf} <= alone


def student_of(leaf: str) -> str:
    return nickname(read(leaf).STUDENT.NAME)


def schedule(cfg):
    solver = cfg.SOLVER
    return solver.EPOCHS, solver.OPTIMIZER, solver.LR, solver.SCHEDULE, solver.WEIGHT_DECAY, solver.CLIP_GRAD_NORM


def is_fine_tuned(leaf: str) -> bool:
    return read(leaf).STUDENT.PRETRAINED


def has_own_schedule(leaf: str) -> bool:
    """Not that of the CIFAR literature, or of ImageNet's CNNs."""
    cnn = student_of(leaf) in FROM_SCRATCH_CNN and leaf.startswith("cifar100/")
    return is_fine_tuned(leaf) or student_of(leaf) in TOKENS or cnn


def test_settings_of_cifar100_and_cub200():
    for leaf in (leaf for leaf in LEAVES if leaf.startswith(("cifar100/", "cub200/")) and not has_own_schedule(leaf)):
        cfg = read(leaf)
        solver, light = cfg.SOLVER, student_of(leaf).startswith(("MobileNet", "Shuffle", "mv2"))
        assert (solver.EPOCHS, solver.SCHEDULE, tuple(solver.STEPS)) == (240, "step", (150, 180, 210)), leaf
        assert (0.01 if light else 0.05, 5e-4, 0.9) == (solver.LR, solver.WEIGHT_DECAY, solver.MOMENTUM), leaf
        assert cfg.DATA.BATCH_SIZE == 64, leaf
    for leaf in (leaf for leaf in LEAVES if leaf.startswith(("cifar100/", "cub200/")) and not is_heterogeneous(leaf)):
        cfg = read(leaf)
        assert (cfg.KD.TEMPERATURE, cfg.DKD.ALPHA, cfg.DKD.TEMPERATURE) == (4.0, 1.0, 4.0), leaf
        if cfg.TEACHER.NAME and not leaf.endswith("ResNet50_wrn_16_2"):
            assert BETA.get(cfg.TEACHER.NAME, 6.0) == cfg.DKD.BETA, leaf
        if cfg.DISTILLER in ("dkd", "nkd", "reviewkd", "sdd"):
            assert (30 if cfg.DISTILLER == "sdd" else 20) == cfg.WARMUP_EPOCHS, leaf
        assert (0.1 if leaf.split("/")[1].startswith(("kd_", "sdd_kd_")) else 1.0) == cfg.CE_WEIGHT, leaf
    assert read("cifar100/dkd_ResNet50_wrn_16_2").DKD.BETA == 6.0


def is_heterogeneous(leaf: str) -> bool:
    data, name = leaf.split("/")
    return name.partition("_")[2] in HETEROGENEOUS.get(data, ())


def test_settings_of_pairs_of_two_families():
    leaves = [leaf for leaf in LEAVES if is_heterogeneous(leaf)]
    assert {leaf.split("/")[0] for leaf in leaves} == set(HETEROGENEOUS)
    for leaf in leaves:
        cfg = read(leaf)
        assert cfg.CE_WEIGHT == 1.0, leaf
        assert (cfg.KD.WEIGHT, cfg.KD.TEMPERATURE) == (1.0, 1.0), leaf
        if cfg.DISTILLER == "hcd":
            assert cfg.HCD.TEMPERATURE == 1.0, leaf
        assert (cfg.DKD.ALPHA, cfg.DKD.BETA, cfg.DKD.TEMPERATURE) == (1.0, 2.0, 1.0), leaf
        # Data at 32 are enlarged for the networks of ImageNet, and for them alone.
        for node in (cfg.TEACHER, cfg.STUDENT):
            seen = node.IMAGE_SIZE or cfg.DATA.IMAGE_SIZE
            assert seen == (224 if "/" in node.NAME else 32), leaf
        assert not cfg.STUDENT.PRETRAINED, leaf


def test_schedules_of_large_networks():
    sgd = (300, "sgd", 0.05, "cosine", 0.002, 0.0)
    adamw = (300, "adamw", 0.0005, "cosine", 0.05, 5.0)
    for leaf in filter(has_own_schedule, LEAVES):
        cfg = read(leaf)
        if is_fine_tuned(leaf):
            assert nickname(cfg.STUDENT.NAME) in BIG and cfg.DISTILLER == "none", leaf
            assert schedule(cfg) == (50, "adamw", 0.00005, "cosine", 0.05, 5.0), leaf
        else:
            tokens = student_of(leaf) in TOKENS
            assert schedule(cfg) == (adamw if tokens else sgd), leaf
            assert tokens == cfg.DATA.AUTO_AUGMENT, leaf


def test_settings_of_imagenet():
    for leaf in (leaf for leaf in LEAVES if leaf.startswith("imagenet/") and not has_own_schedule(leaf)):
        cfg = read(leaf)
        solver = cfg.SOLVER
        assert (solver.EPOCHS, solver.SCHEDULE, tuple(solver.STEPS)) == (100, "step", (30, 60, 90)), leaf
        assert (solver.LR, solver.WEIGHT_DECAY, cfg.DATA.BATCH_SIZE) == (0.2, 1e-4, 512), leaf
        if "dkd" in leaf and not is_heterogeneous(leaf):
            beta = {"r34_r18": 0.5, "r50_mv1": 2.0}[leaf[-7:]]
            assert (0.5, beta, 1.0) == (cfg.DKD.ALPHA, cfg.DKD.BETA, cfg.DKD.TEMPERATURE), leaf


def test_mcld_has_a_cross_entropy_where_the_teacher_is_weak():
    for leaf in (leaf for leaf in LEAVES if read(leaf).DISTILLER == "mcld" and not leaf.startswith("digits/")):
        weak = read(leaf).TEACHER.NAME in ("resnet56", "resnet110", "torchvision/resnet34")
        assert weak == read(leaf).MCLD.CE, leaf


def test_scales_of_sdd():
    for leaf in (leaf for leaf in LEAVES if read(leaf).DISTILLER == "sdd"):
        pair = leaf.split("/")[1].removeprefix(f"sdd_{read(leaf).SDD.BASE}_")
        coarse = pair in (*SIMILAR, "r34_r18", "resnet20_resnet8") or (
            pair.endswith("MobileNetV2") and leaf.startswith("cifar")
        )
        assert tuple(read(leaf).SDD.SCALES) == ((1, 2) if coarse else (1, 2, 4)), leaf
        assert read(leaf).SDD.COMPLEMENTARY_WEIGHT == 2.0, leaf


SCHEDULES = {f"{name}.yaml" for name in ("base", "light", "adamw", "fine_tuned")}
SCHEDULES |= {f"from_scratch_{kind}.yaml" for kind in ("cnn", "tokens")}


def test_a_schedule_is_written_in_one_place():
    for data in CLASSES:
        files = [path for path in (CONFIGS / data).rglob("*.yaml") if "SOLVER" in path.read_text()]
        assert {path.name for path in files} <= SCHEDULES, files
    assert max(len(path.read_text().splitlines()) for path in FILES) <= 6


def test_every_part_is_used():
    for data in CLASSES:
        named = "".join(path.read_text() for path in CONFIGS.rglob("*.yaml"))
        assert not [part.name for part in (CONFIGS / data / "_base").glob("*.yaml") if part.name not in named]
