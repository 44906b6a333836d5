"""Every classification run of the shipped configurations: its settings, and that its networks and distiller build."""

from __future__ import annotations

import logging
import re
from copy import deepcopy
from functools import cache
from itertools import product

import pytest
import timm
import torch
import torchvision

from classification.config import load_config
from classification.distillers import NetworkPair, build_distiller, distiller_class
from classification.models import ReusedClassifier, create_model, short_name
from classification.models.factory import NICKNAMES
from kd_det.common.config_files import CONFIGS
from kd_det.common.errors import SetupError

DATA = ("cifar100", "cub200", "digits", "imagenet")
METHODS = ("kd", "dkd", "nkd", "sdd_kd", "sdd_dkd", "sdd_nkd", "reviewkd")
# Zhao et al. 2022, tables 6, 7, 11 and 12, then Wei et al. 2024, tables 1 and 2.
SIMILAR = [
    *("res56_res20", "res110_res32", "res32x4_res8x4", "wrn_40_2_wrn_16_2", "wrn_40_2_wrn_40_1", "vgg13_vgg8"),
]
DIFFERENT = [
    *("res32x4_ShuffleV1", "wrn_40_2_ShuffleV1", "vgg13_MobileNetV2", "ResNet50_MobileNetV2", "res32x4_ShuffleV2"),
    *("vgg13_wrn_16_2", "ResNet50_wrn_16_2"),
    *("res32x4_MobileNetV2", "wrn_40_2_vgg8", "wrn_40_2_MobileNetV2", "ResNet50_ShuffleV1", "ResNet50_vgg8"),
]
CUB = ["res32x4_MobileNetV2", "res32x4_ShuffleV1", "vgg13_MobileNetV2", "vgg13_vgg8", "ResNet50_ShuffleV1"]
# Those of Wang et al. 2024 that the two papers lack, and WRN teachers of Zhao et al. 2022, all in one file.
WRN = ["wrn_28_2_wrn_16_2", "wrn_16_4_wrn_16_2", "wrn_28_4_wrn_16_2"]
MORE = [
    *WRN,
    *("res32x4_wrn_16_2", "res32x4_wrn_40_2", "res32x4_res20", "wrn_40_2_res8x4", "wrn_40_2_res20", "vgg13_res20"),
    *("ResNet50_res20", "res110_res20", "res110_MobileNetV2", "res56_MobileNetV2"),
]
# Different numbers of stages: reviewkd does not fit them.
UNREVIEWED = (
    "res32x4_MobileNetV2",
    "wrn_40_2_vgg8",
    "wrn_40_2_MobileNetV2",
    "ResNet50_ShuffleV1",
    "vgg13_wrn_16_2",
    "ResNet50_wrn_16_2",
)
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
# Models that are trained alone, by the file between the data set's and their name: every student, and the teachers that
# do not come with their library.
SMALL = "res20 res32 res8x4 wrn_16_2 wrn_40_1 vgg8 ResNet18 res56 res110 res32x4 wrn_40_2 wrn_28_2 wrn_16_4 wrn_28_4"
ALONE = {
    ("cifar100", ""): (*SMALL.split(), "vgg13", "ResNet50"),
    ("cifar100", "cifar100/schedules/light.yaml"): ("MobileNetV2", "ShuffleV1", "ShuffleV2"),
    ("cifar100", "cifar100/schedules/fine_tuned.yaml"): BIG,
    ("cifar100", "cifar100/schedules/from_scratch_cnn.yaml"): FROM_SCRATCH_CNN,
    ("cifar100", "cifar100/schedules/from_scratch_tokens.yaml"): TOKENS,
    ("cub200", ""): ("r18", "vgg8", "res32x4", "vgg13", "ResNet50"),
    ("cub200", "cifar100/schedules/light.yaml"): ("MobileNetV2", "ShuffleV1", "mv2"),
    ("cub200", "cifar100/schedules/fine_tuned.yaml"): BIG,
    ("cub200", "cifar100/schedules/from_scratch_tokens.yaml"): TOKENS,
    ("digits", ""): ("resnet8", "resnet20"),
    ("digits", "digits/schedules/adamw.yaml"): ("vit",),
    ("imagenet", ""): ("r18", "mv1", "mv2"),
    ("imagenet", "imagenet/schedules/from_scratch_tokens.yaml"): TOKENS,
}


def model_of(name: str, *, starts_from_weights: bool) -> str:
    """The model that names of runs call ``name``, with the tag of its weights where it starts from them."""
    called = [model for model, short in NICKNAMES.items() if short == name]
    tagged = [model for model in called if ("." in model) == starts_from_weights]
    return (tagged or [re.sub("^res(?=[0-9])", "resnet", name)])[0]


def alone_runs():
    for (data, schedule), names in ALONE.items():
        for name in names:
            model = model_of(name, starts_from_weights="fine_tuned" in schedule)
            files = [f"{data}/base.yaml", *([schedule] if schedule else [])]
            yield f"{data}/vanilla_{name}", files, ["STUDENT.NAME", model]


def distilled_runs():
    """Every pair of the papers with every method that fits."""
    pairs = {"cifar100": SIMILAR + DIFFERENT, "cub200": CUB, "imagenet": ["r34_r18", "r50_mv1"]}
    chosen = [(data, method, pair) for data in pairs for method in METHODS for pair in pairs[data]]
    chosen = [run for run in chosen if run[1] != "reviewkd" or run[2] not in UNREVIEWED]
    chosen += [(data, "mcld", pair) for data in pairs for pair in pairs[data]]
    chosen += [("cifar100", "hcd", pair) for pair in SIMILAR]
    chosen += [(data, name, pair) for data in HETEROGENEOUS for name in TRANSFER for pair in HETEROGENEOUS[data]]
    chosen += [("digits", method, "vit_resnet8") for method in ("kd", "dkd", "mcld", "hcd")]
    chosen += [("digits", method, "resnet20_resnet8") for method in (*METHODS, *DIGITS)]
    for data, method, pair in chosen:
        yield f"{data}/{method}_{pair}", [f"cifar100/methods/{method}.yaml", f"{data}/pairs/{pair}.yaml"], []
    for method, pair in product(("kd", "dkd", "sdd_dkd", "mcld", "hcd"), MORE):
        yield f"cifar100/{method}_{pair}", [f"cifar100/methods/{method}.yaml", f"cifar100/more_pairs.yaml:{pair}"], []


TRANSFER = ("kd", "dkd", "hcd")
DIGITS = ("mcld", "hcd", "dkd_tckd", "dkd_nckd", "dkd_coupled", "fitnet", "at", "rkd")
RUNS = {name: (files, overrides) for name, files, overrides in (*alone_runs(), *distilled_runs())}
LEAVES = sorted(RUNS)


def without_tag(model: str) -> str:
    """The name without which of timm's weights are meant, which a network needs only where it starts from them."""
    return model.split(".")[0]


@cache
def read(leaf: str):
    return load_config(*RUNS[leaf])


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


def pair(cfg) -> NetworkPair:
    student, student_out = network(cfg.STUDENT, cfg.DATA.IMAGE_SIZE)
    teacher, teacher_out = network(cfg.TEACHER, cfg.DATA.IMAGE_SIZE) if cfg.TEACHER.NAME else (None, None)
    if distiller_class(cfg.DISTILLER).reuses_classifier:
        student, student_out = reusing(student, student_out, teacher_out)
    return NetworkPair(student, teacher, student_out, teacher_out, 2000)


def reusing(student, student_out, teacher_out):
    """A copy of the student with the teacher's classifier, and its answer."""
    given, wanted = (out.map.shape for out in (student_out, teacher_out))
    size = {"student_channels": given[1], "teacher_channels": wanted[1], "size": tuple(wanted[2:])}
    reused = ReusedClassifier(deepcopy(student), FEW, **size, reduction=2).eval().to("meta")
    return reused, student_out._replace(map=torch.zeros(1, *wanted[1:]), pooled=torch.zeros(1, wanted[1]))


@pytest.mark.parametrize("leaf", LEAVES)
def test_networks_and_distiller_build(leaf):
    cfg = read(leaf)
    assert leaf.split("/")[0] == cfg.DATA.NAME and cfg.STUDENT.NAME
    networks = pair(cfg)
    assert networks.student_out.logits.shape == (1, FEW)
    distiller = build_distiller(cfg, networks)
    assert distiller.needs_teacher == bool(cfg.TEACHER.NAME)


def test_a_run_is_called_by_its_method_and_pair_and_its_folder_follows():
    for leaf in LEAVES:
        assert f"output/{leaf}" == read(leaf).OUTPUT_DIR
    mine = load_config(RUNS["digits/vanilla_resnet8"][0], ["STUDENT.NAME", "timm/resnet10t.c3_in1k"])
    assert mine.OUTPUT_DIR == "output/digits/vanilla_timm_resnet10t_c3_in1k"
    assert load_config(overrides=["OUTPUT_DIR", "mine"]).OUTPUT_DIR == "mine"


def test_teachers_are_trained_by_configurations_here_or_come_with_their_library():
    for leaf in LEAVES:
        teacher = read(leaf).TEACHER
        if not teacher.NAME:
            continue
        assert bool(teacher.WEIGHTS) != teacher.PRETRAINED, leaf
        assert leaf.startswith("imagenet/") == teacher.PRETRAINED, leaf
        if teacher.WEIGHTS:
            # By these AUTO_TRAIN trains it.
            theirs = RUNS[teacher.WEIGHTS]
            assert theirs == (list(teacher.CONFIG_FILES), ["STUDENT.NAME", teacher.NAME]), leaf
            assert read(teacher.WEIGHTS).STUDENT.STEM == teacher.STEM, leaf
            assert read(teacher.WEIGHTS).STUDENT.IMAGE_SIZE == teacher.IMAGE_SIZE, leaf
            # The same images, normalised the same way: batches and augmentation are each training's own.
            for key in ("NAME", "IMAGE_SIZE"):
                assert read(teacher.WEIGHTS).DATA[key] == read(leaf).DATA[key], (leaf, key)


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


def test_no_file_is_left_over():
    used = {file for files, _ in RUNS.values() for file in files}
    text = "".join(path.read_text() for data in DATA for path in (CONFIGS / data).rglob("*.yaml"))
    for path in (path for data in DATA for path in (CONFIGS / data).rglob("*.yaml")):
        assert path.relative_to(CONFIGS).as_posix() in used or path.name in text, path
    assert len(list(CONFIGS.rglob("*.yaml"))) <= 150


def test_students_are_trained_alone_as_they_are_distilled():
    def described(cfg):
        return cfg.STUDENT.dump() + cfg.DATA.dump() + cfg.SOLVER.dump()

    alone = {described(read(leaf)) for leaf in LEAVES if "/vanilla_" in leaf}
    assert {described(read(leaf)) for leaf in LEAVES if "/vanilla_" not in leaf} <= alone


def student_of(leaf: str) -> str:
    return short_name(read(leaf).STUDENT.NAME)


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
        assert (cfg.DKD.ALPHA, cfg.DKD.BETA, cfg.DKD.TEMPERATURE) == (1.0, 2.0, 1.0), leaf
        # Data at 32 are enlarged for the networks of ImageNet, and for them alone.
        for node in (cfg.TEACHER, cfg.STUDENT):
            seen = node.IMAGE_SIZE or cfg.DATA.IMAGE_SIZE
            assert seen == (224 if "/" in node.NAME else 32), leaf
        assert not cfg.STUDENT.PRETRAINED, leaf


def test_the_temperature_of_hcd_is_that_of_kd():
    for leaf in (leaf for leaf in LEAVES if read(leaf).DISTILLER == "hcd"):
        assert read(leaf).HCD.TEMPERATURE == read(leaf).KD.TEMPERATURE, leaf


def test_schedules_of_large_networks():
    sgd = (300, "sgd", 0.05, "cosine", 0.002, 0.0)
    adamw = (300, "adamw", 0.0005, "cosine", 0.05, 5.0)
    for leaf in filter(has_own_schedule, LEAVES):
        cfg = read(leaf)
        if is_fine_tuned(leaf):
            assert short_name(cfg.STUDENT.NAME) in BIG and cfg.DISTILLER == "none", leaf
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
        coarse = pair in (*SIMILAR, *WRN, "r34_r18", "resnet20_resnet8") and not leaf.startswith("cub200/")
        assert (pair.endswith("MobileNetV2") and leaf.startswith("cifar")) == read(leaf).SDD.REPEAT, leaf
        assert tuple(read(leaf).SDD.SCALES) == ((1, 2) if coarse else (1, 2, 4)), leaf
        assert read(leaf).SDD.COMPLEMENTARY_WEIGHT == 2.0, leaf


def test_a_schedule_is_written_in_one_place():
    """But for what a method has of its own, in METHODS or its section."""
    for data in DATA:
        files = [path for path in (CONFIGS / data).rglob("*.yaml") if re.search("^SOLVER", path.read_text(), re.M)]
        assert {path.parent.name for path in files} <= {data, "schedules"}, files


def different_kinds() -> list[str]:
    """A run of each method with each way in which pairs are put together."""
    pairs = ("res56_res20", "res32x4_ShuffleV2", "swin_t_mv2", "swin_t_deit_t", "vgg13_vgg8", "r34_r18")
    return [leaf for leaf in LEAVES if leaf.endswith(pairs) or (leaf.startswith("digits/") and "vanilla" not in leaf)]


@pytest.mark.parametrize("leaf", different_kinds())
def test_a_method_and_a_pair_make_the_same_run_in_either_order(leaf, caplog):
    with caplog.at_level(logging.WARNING):
        assert load_config(RUNS[leaf][0]) == read(leaf)
        assert not caplog.text  # nothing contradicts anything else, as shipped
        assert load_config(RUNS[leaf][0][::-1]) == read(leaf)


@pytest.fixture
def written(tmp_path):
    """``written(name=text)`` writes a configuration; returns its path."""

    def write(**files: str) -> list[str]:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return [str(tmp_path / f"{name}.yaml") for name in files]

    return write


def test_the_section_of_the_method_alone_is_used(written):
    pair = "METHODS: {dkd: {WARMUP_EPOCHS: 5}, sdd: {SDD: {WEIGHT: 3.0}}, sdd_nkd: {CE_WEIGHT: 0.5}}"
    more = "METHODS: {dkd: {DKD: {BETA: 3.0}}}"
    files = written(pair=pair, more=more)
    assert "METHODS" not in load_config(files)
    assert load_config(files).WARMUP_EPOCHS == 0
    dkd = load_config(files, ["DISTILLER", "dkd"])
    assert (dkd.WARMUP_EPOCHS, dkd.DKD.BETA, dkd.SDD.WEIGHT) == (5, 3.0, 1.0)
    assert load_config(files, ["DISTILLER", "dkd", "WARMUP_EPOCHS", "7"]).WARMUP_EPOCHS == 7
    sdd = ["DISTILLER", "sdd", "SDD.BASE"]
    assert (load_config(files, [*sdd, "kd"]).SDD.WEIGHT, load_config(files, [*sdd, "kd"]).CE_WEIGHT) == (3.0, 1.0)
    assert (load_config(files, [*sdd, "nkd"]).SDD.WEIGHT, load_config(files, [*sdd, "nkd"]).CE_WEIGHT) == (3.0, 0.5)


def test_a_value_that_the_methods_section_replaces_is_logged(written, caplog):
    files = written(mine="_BASE_: " + str(CONFIGS / "imagenet/base.yaml") + "\nWARMUP_EPOCHS: 9")
    assert load_config(["cifar100/methods/dkd.yaml", *files]).WARMUP_EPOCHS == 1
    assert f"METHODS of this method overrides {files[0]}: WARMUP_EPOCHS 1 instead of 9" in caplog.text


def test_a_section_of_a_file_is_named_after_a_colon(written):
    base, pairs = written(
        base="DKD: {BETA: 1.0, ALPHA: 0.5}",
        pairs="_BASE_: base.yaml\na: &a {STUDENT: {NAME: small}, METHODS: {dkd: {DKD: {BETA: 3.0}}}}\nb: *a\nc: 5",
    )
    for name in "ab":
        cfg = load_config(f"{pairs}:{name}", ["DISTILLER", "dkd"])
        assert (cfg.STUDENT.NAME, cfg.DKD.BETA, cfg.DKD.ALPHA) == ("small", 3.0, 0.5)
        assert load_config([f"{pairs}:{name}", base]).DKD.BETA == 1.0
    for name in "cd":
        with pytest.raises(SetupError, match=f"pairs.yaml' has no section '{name}'.*Known: a, b"):
            load_config(f"{pairs}:{name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("METHODS: {dkk: {WARMUP_EPOCHS: 5}}", "METHODS.dkk: there is no such method. Did you mean 'dkd'?"),
        ("METHODS: {dkd: {DKD: {BETTA: 5.0}}}", "METHODS.dkd: .*DKD.BETTA.*Did you mean 'DKD.BETA'?"),
        ("METHODS: {dkd: {DKD: {BETA: many}}}", "METHODS.dkd: .*Type mismatch"),
        ("METHODS: {dkd: 5}", "METHODS.dkd is 5; it must be a section"),
    ],
)
def test_invalid_methods_sections(written, text, message):
    with pytest.raises(SetupError, match=message):
        load_config(written(pair=text))
