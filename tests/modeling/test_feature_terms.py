"""The terms on feature maps: which maps, adapters, maps of other strides and paddings, the objects' surroundings."""

from __future__ import annotations

import re

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

from kd_det.checkpoint import KDCheckpointer
from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.losses import hcl_loss
from kd_det.modeling.regions import DistillationInputs
from kd_det.modeling.terms import Maps, build_terms
from kd_det.modeling.terms.features import MapPair, align, feature_pairs
from kd_det.modeling.terms.fgfi import near_anchors
from tests.modeling.test_any_rcnn import C4, distilling
from tests.modeling.test_distill_rcnn import Calls
from tests.tiny import batch, build, loss_gradients, student_config, teacher_files

NAMES = ("fgfi", "fitnet", "pkd", "reviewkd")
KEY = "KD.FITNET.FEATURES"


def pyramid(channels: int, levels=(2, 3, 4)) -> dict[str, ShapeSpec]:
    return {f"p{level}": ShapeSpec(channels=channels, stride=2**level) for level in levels}


def maps(student: dict[str, ShapeSpec], teacher: dict[str, ShapeSpec]) -> Maps:
    return Maps(student, lambda: teacher)


def random_features(shapes: dict[str, ShapeSpec], size=(64, 96), seed=0, images=2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(images, shape.channels, size[0] // shape.stride, size[1] // shape.stride, generator=generator)
        for name, shape in shapes.items()
    }


def term(name: str, known: Maps, *overrides):
    torch.manual_seed(0)
    cfg = load_config("", ["KD.TERMS", (name,), "MODEL.RPN.IN_FEATURES", list(known.student), *overrides])
    return build_terms(cfg, known)[name]


def inputs(student, teacher, **others) -> DistillationInputs:
    return DistillationInputs([], student, teacher, **others)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def c4_teacher(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("c4"), *C4)


# Which maps


def test_without_names_all_common_maps_are_used():
    known = maps(pyramid(16, (5, 3, 4, 7)), pyramid(24, (2, 3, 4, 5)))
    pairs = feature_pairs(KEY, (), known)
    assert [(pair.student, pair.teacher) for pair in pairs] == [("p3", "p3"), ("p4", "p4"), ("p5", "p5")]
    assert (pairs[0].student_shape.channels, pairs[0].teacher_shape.channels) == (16, 24)
    assert [pair.student for pair in feature_pairs(KEY, (), known, admitted=("p4", "p7"))] == ["p4"]


def test_named_pairs_come_largest_first():
    known = maps(pyramid(16), {"res4": ShapeSpec(channels=64, stride=16), **pyramid(24)})
    pairs = feature_pairs(KEY, ["p4 = res4", "p2"], known)
    assert [(pair.student, pair.teacher) for pair in pairs] == [("p2", "p2"), ("p4", "res4")]


BOTH = "The student's maps: p2 (16 channels, stride 4), p3 (16 channels, stride 8), p4 (16 channels, stride 16); the "
BOTH += "teacher's: res4 (64 channels, stride 16)."


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "features, message",
    [
        ((), f" is empty, which means all maps of the same name, but there are none. {BOTH} Pair them as"),
        (("p3",), f": the teacher has no map 'p3'. {BOTH}"),
        (("q3=res4",), f": the student has no map 'q3'. {BOTH}"),
        (("p3=res5",), f": the teacher has no map 'res5'. Did you mean 'res4'? {BOTH}"),
        (("p3=res4", "p3=res4"), f": the student's 'p3' is listed twice; name every map once. {BOTH}"),
        (("p2=res4", "p3=res4"), f": the teacher's 'res4' is listed twice; name every map once. {BOTH}"),
    ],
)
def test_levels_that_do_not_match(name, features, message):
    known = maps(pyramid(16), {"res4": ShapeSpec(channels=64, stride=16)})
    with pytest.raises(SetupError, match=re.escape(f"KD.{name.upper()}.FEATURES{message}")):
        term(name, known, f"KD.{name.upper()}.FEATURES", features)


def test_a_student_without_common_levels_is_refused_before_training(c4_teacher):
    with pytest.raises(SetupError, match=r"KD\.REVIEWKD\.FEATURES is empty.*p6 \(16 channels, stride 64\).*res4 \("):
        build(student_config(c4_teacher, terms=("reviewkd",)))


@pytest.mark.parametrize(
    "name, key, value", [("fgfi", "THRESHOLD", 1.0), ("fgfi", "THRESHOLD", -0.1), ("reviewkd", "MID_CHANNELS", 0)]
)
def test_invalid_settings(name, key, value):
    with pytest.raises(SetupError, match=re.escape(f"KD.{name.upper()}.{key} is {value}; it must be")):
        term(name, maps(pyramid(16), pyramid(16)), f"KD.{name.upper()}.{key}", value)


# Maps of other strides and paddings


def ramp(stride: int, rows: int, columns: int) -> torch.Tensor:
    """(1, 2, rows, columns): the pixel coordinates of each position's centre."""
    y, x = ((torch.arange(count) + 0.5) * stride for count in (rows, columns))
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))[None]


def pair(student: int, teacher: int) -> MapPair:
    return MapPair("s", "t", ShapeSpec(channels=2, stride=student), ShapeSpec(channels=2, stride=teacher))


def test_equal_strides_are_cropped_to_what_both_have():
    ours, theirs = align(ramp(8, 5, 9), ramp(8, 6, 7), pair(8, 8))
    assert torch.equal(ours, theirs) and ours.shape == (1, 2, 5, 7)


@pytest.mark.parametrize("strides", [(8, 16), (8, 32), (64, 32), (32, 8)])
@pytest.mark.parametrize("padded", [(64, 128), (128, 64)])
def test_positions_stay_over_their_pixels(strides, padded):
    """The padded image is 128 high and 192 wide for one network, 64 pixels larger for the other."""
    sizes = [(128 + pixels, 192 + pixels) for pixels in padded]
    maps_of = [ramp(stride, h // stride, w // stride) for stride, (h, w) in zip(strides, sizes, strict=True)]
    ours, theirs = align(*maps_of, pair(*strides))
    height, width = map(min, *sizes)
    assert ours.shape == theirs.shape == (1, 2, height // strides[1], width // strides[1])
    edge = max(1, strides[0] // strides[1])  # there is nothing beyond the border to interpolate with
    inner = (..., slice(edge, -edge or None), slice(edge, -edge or None))
    assert ours[inner].numel() > 0
    torch.testing.assert_close(ours[inner], theirs[inner])


def test_halving_is_the_mean_of_four():
    values = torch.randn(1, 2, 6, 8)
    ours, _ = align(values, torch.zeros(1, 2, 3, 4), pair(8, 16))
    torch.testing.assert_close(ours, F.avg_pool2d(values, 2))


def test_a_last_row_or_column_without_partner_counts_alone():
    values = torch.randn(1, 2, 7, 9)
    ours, _ = align(values, torch.zeros(1, 2, 4, 5), pair(8, 16))
    assert ours.shape == (1, 2, 4, 5)
    torch.testing.assert_close(ours[..., :3, :4], F.avg_pool2d(values[..., :6, :8], 2))
    torch.testing.assert_close(ours[..., 3, :4], F.avg_pool1d(values[0, :, 6, :8], 2)[None])
    torch.testing.assert_close(ours[..., 3, 4], values[..., 6, 8])


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1)])
def test_maps_smaller_than_a_position_of_the_teacher(size):
    values = torch.randn(1, 2, *size)
    ours, theirs = align(values, torch.zeros(1, 2, 1, 1), pair(8, 32))
    assert ours.shape == theirs.shape == (1, 2, 1, 1)
    assert values.min() <= ours.min() and ours.max() <= values.max()


# The losses


def test_fitnet_is_the_error_of_linearly_adapted_maps():
    ours, theirs = pyramid(16), pyramid(24)
    adapted = term("fitnet", maps(ours, theirs), "KD.FITNET.WEIGHT", 0.3)
    s, t = random_features(ours), random_features(theirs, seed=1)
    expected = 0.0
    for name, layer in zip(("p2", "p3", "p4"), adapted.adapt, strict=True):
        weight = layer.weight[:, :, 0, 0]
        values = torch.einsum("oi,nihw->nohw", weight, s[name]) + layer.bias[:, None, None]
        expected += (values - t[name]).square().mean() / 3
    loss = adapted(inputs(s, t))
    assert set(loss) == {"loss_fitnet"}
    torch.testing.assert_close(loss["loss_fitnet"], 0.3 * expected)


def test_adapters_keep_the_variance_of_the_students_maps():
    ours = {"p2": ShapeSpec(channels=256, stride=4)}
    (adapter,) = term("fitnet", maps(ours, {"p2": ShapeSpec(channels=512, stride=4)})).adapt
    assert not adapter.bias.any()
    assert 0.9 < adapter(random_features(ours)["p2"]).var() < 1.1


def pearson(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The mean over channels of the correlation of two (N, D, H, W)."""
    rows = [values.transpose(0, 1).flatten(1) for values in (s, t)]
    return torch.stack([torch.corrcoef(torch.stack(both))[0, 1] for both in zip(*rows, strict=True)]).mean()


def test_pkd_adapts_only_where_channels_differ():
    ours, theirs = pyramid(16), {**pyramid(16), "p3": ShapeSpec(channels=24, stride=8)}
    imitating = term("pkd", maps(ours, theirs), "KD.PKD.WEIGHT", 2.0)
    assert {name: tuple(value.shape) for name, value in imitating.named_parameters()} == {
        "adapt.1.weight": (24, 16, 1, 1),
        "adapt.1.bias": (24,),
    }
    s, t = random_features(ours), random_features(theirs, seed=1)
    t["p2"] = s["p2"] + 0.5 * t["p2"]
    adapted = {**s, "p3": imitating.adapt[1](s["p3"])}
    expected = torch.stack([1 - pearson(adapted[name], t[name]) for name in t]).mean()
    torch.testing.assert_close(imitating(inputs(s, t))["loss_pkd"], 2 * expected, rtol=1e-4, atol=1e-5)


def test_reviewkd_compares_fused_maps_of_the_teachers_channels():
    ours, theirs = pyramid(16), pyramid(24)
    fusing = term("reviewkd", maps(ours, theirs), "KD.REVIEWKD.MID_CHANNELS", 8, "KD.REVIEWKD.WEIGHT", 2.0)
    s, t = random_features(ours), random_features(theirs, seed=1)
    fused = fusing.adapt([s["p2"], s["p3"], s["p4"]])
    assert [values.shape for values in fused] == [values.shape for values in t.values()]
    torch.testing.assert_close(fusing(inputs(s, t))["loss_reviewkd"], 2 * hcl_loss(fused, list(t.values())))
    # Every level sees the deeper ones, none the shallower.
    s["p4"].requires_grad_()
    s["p2"].requires_grad_()
    first, *_, last = fusing.adapt([s["p2"], s["p3"], s["p4"]])
    assert torch.autograd.grad(first.square().sum(), s["p4"], retain_graph=True)[0].any()
    assert torch.autograd.grad(last.sum(), s["p2"], allow_unused=True)[0] is None


# Near the objects


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inner = width * height
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_near_anchors_are_those_of_a_loop(threshold):
    generator = torch.Generator().manual_seed(1)

    def random_boxes(count):
        corner = 60 * torch.rand(count, 2, generator=generator)
        return Boxes(torch.cat((corner, corner + 1 + 30 * torch.rand(count, 2, generator=generator)), dim=1))

    anchors = {"p2": random_boxes(40), "p3": random_boxes(12)}
    beyond = Boxes(torch.tensor([[500.0, 500, 520, 520], [7, 7, 7, 7]]))  # meets no anchor; has no area
    objects = [random_boxes(3), random_boxes(0), Boxes.cat([random_boxes(2), beyond]), random_boxes(1)]
    got = near_anchors(objects, anchors, threshold)
    for image, given in enumerate(objects):
        near = {name: [False] * len(level) for name, level in anchors.items()}
        for one in given.tensor.tolist():
            ious = {name: [iou(one, other) for other in level.tensor.tolist()] for name, level in anchors.items()}
            largest = max(max(values) for values in ious.values())
            for name, values in ious.items():
                here = [value > threshold * largest for value in values]
                near[name] = [before or now for before, now in zip(near[name], here, strict=True)]
        assert {name: mask[image].tolist() for name, mask in got.items()} == near
    assert got["p2"][0].any() and not got["p2"][1].any()


def masks_given(monkeypatch):
    """The masks that the term hands to its loss, in a list that fills."""
    import kd_det.modeling.terms.fgfi as module

    given, original = [], module.fgfi_loss
    monkeypatch.setattr(module, "fgfi_loss", lambda s, t, masks: given.append(masks) or original(s, t, masks))
    return given


def test_fgfi_imitates_around_the_object_and_nowhere_else(teacher, monkeypatch):
    given = masks_given(monkeypatch)
    model = build(student_config(teacher, terms=("fgfi",)))
    items = batch()
    items[0]["instances"].gt_boxes = Boxes(torch.tensor([[62.0, 12, 78, 28]]).repeat(3, 1))  # centre (70, 20)
    items[1]["instances"] = items[1]["instances"][:0]
    seen = Calls(model.terms["fgfi"])
    loss = model(items)["loss_fgfi"]
    (masks,), ((received,),) = given, seen.inputs
    assert [tuple(mask.shape) for mask in masks] == [(2, 16, 24), (2, 8, 12), (2, 4, 6), (2, 2, 3), (2, 1, 2)]
    assert not any(mask[1].any() for mask in masks)
    assert not masks[0].any() and not masks[3].any()  # anchors of 8 and 64 pixels; the object has 16
    rows, columns = masks[1][0].nonzero().unbind(1)
    assert abs((rows.float() + 0.5).mean() * 8 - 20) < 5 and abs((columns.float() + 0.5).mean() * 8 - 70) < 5
    term, total, count = model.terms["fgfi"], 0.0, 0
    for layer, name, mask in zip(term.adapt, ("p2", "p3", "p4", "p5", "p6"), masks, strict=True):
        errors = (layer(received.student_features[name]) - received.teacher_features[name]).square().sum(1)
        total, count = total + errors[mask].sum(), count + mask.sum()
    torch.testing.assert_close(loss, 0.01 * total / (2 * count))


def test_fgfi_without_anchors_is_refused(teacher):
    with pytest.raises(SetupError, match=r"\"fgfi\".*MODEL\.PROPOSAL_GENERATOR\.NAME is 'PrecomputedProposals'.*Train"):
        build(student_config(teacher, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", terms=("fgfi",)))
    fewer = ["MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5"], "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64]]]
    with pytest.raises(SetupError, match=r"KD\.FGFI\.FEATURES: the student has no anchors on 'p2', only on MODEL\.RPN"):
        build(student_config(teacher, *fewer, "KD.FGFI.FEATURES", ("p2", "p3"), terms=("fgfi",)))


def test_fgfi_takes_the_levels_with_anchors(teacher):
    fewer = ["MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5"], "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64]]]
    model = build(student_config(teacher, *fewer, terms=("fgfi",)))
    assert [each.student for each in model.terms["fgfi"].pairs] == ["p3", "p4", "p5"]
    assert model(batch())["loss_fgfi"] > 0


# In the detector


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(80, 100), (40, 130)])
@pytest.mark.parametrize("features", [("p4=res4",), ("p3=res4",)])
def test_student_and_teacher_that_pad_differently(c4_teacher, name, size, features):
    """An FPN pads images to multiples of 32, a C4 network not at all."""
    model = build(student_config(c4_teacher, f"KD.{name.upper()}.FEATURES", features, terms=(name,)))
    seen = Calls(model.terms[name])
    losses, gradients = loss_gradients(model, batch(size=size))
    ((received,),) = seen.inputs
    sizes = [received.student_features["p4"].shape[2:], received.teacher_features["res4"].shape[2:]]
    assert sizes[0] == (-(-size[0] // 32) * 2, -(-size[1] // 32) * 2)
    assert sizes[1] == (-(-size[0] // 16), -(-size[1] // 16)) and sizes[0] != sizes[1]
    assert torch.isfinite(losses[f"loss_{name}"]) and losses[f"loss_{name}"] > 0
    assert gradients["backbone.fpn_lateral4.weight"].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("features", [("p3=p4", "p4=p3"), ("p2=p5", "p6=p2")])
def test_levels_of_other_strides(teacher, name, features, monkeypatch):
    given = masks_given(monkeypatch)
    model = build(student_config(teacher, f"KD.{name.upper()}.FEATURES", features, terms=(name,)))
    losses, gradients = loss_gradients(model, batch())
    assert torch.isfinite(losses[f"loss_{name}"]) and losses[f"loss_{name}"] >= 0
    assert gradients["backbone.fpn_lateral5.weight"].any()
    if name == "fgfi" and features[0] == "p3=p4":
        assert [tuple(mask.shape) for mask in given[0]] == [(2, 4, 6), (2, 8, 12)] and all(m.any() for m in given[0])


@pytest.mark.parametrize("name", NAMES)
def test_c4_students(teacher, c4_teacher, name):
    for theirs, features in ((c4_teacher, ()), (teacher, ("res4=p4",)), (teacher, ("res4=p2",))):
        cfg = student_config(theirs, *distilling(C4), f"KD.{name.upper()}.FEATURES", features, terms=(name,))
        losses, gradients = loss_gradients(build(cfg), batch(size=(80, 100)))
        assert losses[f"loss_{name}"] > 0 and all(torch.isfinite(value) for value in losses.values())
        assert gradients["backbone.res3.0.conv1.weight"].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_under_mixed_precision_the_loss_is_float32(name, dtype):
    ours, theirs = pyramid(16), pyramid(24)
    imitating = term(name, maps(ours, theirs), f"KD.{name.upper()}.FEATURES", ("p2=p3", "p3=p2", "p4"))
    objects = Instances((64, 96), gt_boxes=Boxes(torch.tensor([[10.0, 10, 40, 40]])))
    positions = {"p2": 16 * 24, "p3": 8 * 12, "p4": 4 * 6}
    anchors = {level: Boxes(40 * torch.rand(count, 4).cumsum(1)) for level, count in positions.items()}
    given = {"targets": [objects, objects], "anchors": anchors}
    s, t = random_features(ours), random_features(theirs, seed=1)
    exact = imitating(inputs(s, t, **given))[f"loss_{name}"]
    half = {key: value.to(dtype).requires_grad_() for key, value in s.items()}
    with torch.autocast("cpu", dtype=dtype):
        loss = imitating(inputs(half, t, **given))[f"loss_{name}"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0)
    loss.backward()
    assert all(torch.isfinite(value.grad).all() for value in half.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_a_term_learns_is_trained_saved_beside_the_student_and_resumed(teacher, tmp_path, name):
    cfg = student_config(teacher, terms=(name,))
    model, resumed = build(cfg), build(cfg, seed=2)
    initial = {key: value.clone() for key, value in model.terms.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    sum(model(batch()).values()).backward()
    optimizer.step()
    trained = model.terms.state_dict()
    assert any(not torch.equal(initial[key], value) for key, value in trained.items())
    KDCheckpointer(model, str(tmp_path), kd_terms=model.terms).save("model_0000001")
    saved = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    assert not any("terms" in key or "adapt" in key for key in saved["model"])
    assert saved["kd_terms"].keys() == trained.keys() and trained
    KDCheckpointer(resumed, str(tmp_path), kd_terms=resumed.terms).resume_or_load("", resume=True)
    assert all(torch.equal(resumed.terms.state_dict()[key], value) for key, value in trained.items())
    (after, _), (expected, _) = (loss_gradients(each, batch()) for each in (resumed, model))
    assert after == expected
