"""The published settings of the baselines, and that each is built for the pairs of the tables that have it."""

from __future__ import annotations

import pytest

from classification.config import check_config, load_config
from classification.distillers import build_distiller
from tests.classification.test_configs import pair

FILE = "cifar100/methods.yaml"
# Zhao et al. 2022, tables 6 and 7; Wang et al. 2024, tables 1, 2 and 5.
ZHAO = [
    *("res56_res20", "res110_res32", "res32x4_res8x4", "wrn_40_2_wrn_16_2", "wrn_40_2_wrn_40_1", "vgg13_vgg8"),
    *("res32x4_ShuffleV1", "wrn_40_2_ShuffleV1", "vgg13_MobileNetV2", "ResNet50_MobileNetV2", "res32x4_ShuffleV2"),
]
WANG = ["wrn_40_2_MobileNetV2", "res32x4_wrn_16_2", "res32x4_wrn_40_2", "wrn_40_2_res8x4", "res110_res20"]
MORE = ("res32x4_wrn_16_2", "res32x4_wrn_40_2", "wrn_40_2_res8x4", "res110_res20")  # in more_pairs.yaml
FEATURES = ["methods/fitnet.yaml", "methods/rkd.yaml", "methods/at.yaml"]
BASELINES = ["crd", "ofd", "catkd", "ctkd", "dist", "sp", "pkt", "dot_dkd", "lskd_kd", "lskd_dkd", "lskd_mlkd"]
IMAGENET = ["r34_r18", "r50_mv1"]


def load(method: str, name: str, *overrides):
    file = f"cifar100/{method}" if method.startswith("methods/") else f"{FILE}:{method}"
    if name in MORE:
        return load_config([file, f"cifar100/more_pairs.yaml:{name}"], overrides)
    return load_config([file, f"{'imagenet' if name in IMAGENET else 'cifar100'}/pairs/{name}.yaml"], overrides)


@pytest.mark.parametrize("method", [*FEATURES, *BASELINES])
def test_distillers_of_the_tables_pairs_build(method):
    for name in ZHAO + WANG:
        cfg = load(method, name)
        check_config(cfg)
        build_distiller(cfg, pair(cfg))


@pytest.mark.parametrize("method", ["methods/at.yaml", "crd", "ofd", "catkd", "ctkd", "lskd_dkd"])
@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet(method, name):
    cfg = load(method, name)
    check_config(cfg)
    build_distiller(cfg, pair(cfg))
    published = {"methods/at.yaml": (256, 0.1), "crd": (256, 0.1), "ofd": (128, 0.05), "ctkd": (256, 0.1)}
    batch, lr = published.get(method, (512, 0.2))
    assert (batch, lr) == (cfg.DATA.BATCH_SIZE, cfg.SOLVER.LR)


def test_settings_of_the_published_codes():
    weights = {"crd": 0.8, "ofd": 1e-3, "sp": 3000, "nst": 50, "pkt": 30000, "vid": 1, "kdsvd": 1, "simkd": 1}
    weights |= {"dist": 2}
    for name, weight in weights.items():
        cfg = load(name, "res32x4_res8x4")
        assert (weight, 0) == (cfg[name.upper()].WEIGHT, cfg.WARMUP_EPOCHS)
        assert (0.0 if name == "simkd" else 1.0) == cfg.CE_WEIGHT
    crd = load("crd", "res32x4_res8x4").CRD
    assert (crd.FEATURE_DIM, crd.NEGATIVES, crd.TEMPERATURE, crd.MOMENTUM) == (128, 16384, 0.07, 0.5)
    ctkd = load("ctkd", "res56_res20")
    node = ctkd.CTKD
    assert (ctkd.CE_WEIGHT, node.WEIGHT, node.START, node.SPAN, node.EPOCHS) == (0.1, 0.9, 1, 20, 10)
    ctkd = load("ctkd", "r34_r18")
    assert (ctkd.CE_WEIGHT, ctkd.CTKD.WEIGHT, ctkd.CTKD.EPOCHS) == (1.0, 1.0, 5)
    assert load("dot_kd", "vgg13_vgg8").SOLVER.DOT_DELTA == 0.075 and load("dot_kd", "r34_r18").SOLVER.DOT_DELTA == 0.09
    assert (load("ofd", "r50_mv1").OFD.WEIGHT, load("ofd", "r50_mv1").OFD.STAGES) == (1e-4, 3)
    assert load("methods/reviewkd.yaml", "r34_r18").REVIEWKD.PREACTIVATION
    assert load("methods/reviewkd.yaml", "res56_res20").WARMUP_EPOCHS == 20
    mlkd = load("mlkd", "res32x4_res8x4")
    assert mlkd.DATA.STRONG_VIEW and (mlkd.CE_WEIGHT, mlkd.MLKD.WEIGHT, mlkd.SOLVER.LR) == (0.1, 0.9, 0.025)
    assert load("mlkd", "res32x4_ShuffleV2").SOLVER.LR == 0.01


@pytest.mark.parametrize(
    ("name", "weight", "resolution", "normalize"),
    [
        ("res32x4_res8x4", 15, 2, False),
        ("vgg13_vgg8", 4.5, 2, False),
        ("res56_res20", 0.7, 2, False),
        ("res110_res32", 1.8, 2, False),
        ("wrn_40_2_wrn_16_2", 12, 2, False),
        ("wrn_40_2_wrn_40_1", 1.5, 2, False),
        ("res32x4_ShuffleV1", 600, 4, True),
        ("wrn_40_2_ShuffleV1", 80, 4, True),
        ("res32x4_ShuffleV2", 600, 4, True),
        ("vgg13_MobileNetV2", 15, 2, True),
        ("ResNet50_MobileNetV2", 40, 2, True),
        ("r34_r18", 0.5, 4, False),
        ("r50_mv1", 10, 2, True),
    ],
)
def test_catkd_pair_by_pair(name, weight, resolution, normalize):
    node = load("catkd", name).CATKD
    assert (weight, resolution, normalize) == (node.WEIGHT, node.RESOLUTION, node.NORMALIZE)


@pytest.mark.parametrize(
    ("name", "kd", "dkd", "mlkd"),
    [
        ("res32x4_res8x4", (2, 9), (2, 9, 72), 9),
        ("vgg13_vgg8", (3, 9), (2, 15, 30), 6),
        ("wrn_40_2_wrn_40_1", (2, 9), (2, 12, 24), 9),
        ("res56_res20", (2, 9), (3, 18, 36), 9),
        ("res110_res20", (4, 12), (2, 15, 30), 9),
        ("res32x4_ShuffleV2", (2, 9), (2, 9, 72), 6),
        ("res32x4_wrn_40_2", (3, 9), (2, 9, 72), 9),
        ("wrn_40_2_res8x4", (2, 9), (2, 18, 36), 9),
        ("ResNet50_MobileNetV2", (3, 1), (2, 15, 30), 9),
    ],
)
def test_lskd_pair_by_pair(name, kd, dkd, mlkd):
    """T and weight of the published runs' names; alpha and beta are multiplied by the weight."""
    cfg = load("lskd_kd", name)
    assert cfg.STANDARDIZE and (*kd, 0.1) == (cfg.KD.TEMPERATURE, cfg.KD.WEIGHT, cfg.CE_WEIGHT)
    cfg = load("lskd_dkd", name)
    assert cfg.STANDARDIZE and dkd == (cfg.DKD.TEMPERATURE, cfg.DKD.ALPHA, cfg.DKD.BETA)
    assert (cfg.CE_WEIGHT, cfg.WARMUP_EPOCHS) == (1.0, 20)
    cfg = load("lskd_mlkd", name)
    assert cfg.STANDARDIZE and mlkd == cfg.MLKD.WEIGHT and sorted(cfg.MLKD.TEMPERATURES) == [2, 2, 3, 5, 6]
    assert load("lskd_ctkd", name).CTKD.WEIGHT == 9
