from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_det.losses import multi_scale_logits, sdd_loss
from tests.losses.cases import random_maps


def classifier_of(features=3, classes=5, bias=True):
    torch.manual_seed(0)
    return nn.Linear(features, classes, bias=bias, dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (7, 7), (5, 9)])
def test_region_0_is_the_global_logit(size, bias):
    (feature_map,) = random_maps(size)
    classifier = classifier_of(bias=bias)
    logits = multi_scale_logits(feature_map, classifier)
    assert logits.shape == (2, 5, 21)
    torch.testing.assert_close(logits[:, :, 0], classifier(feature_map.mean((2, 3))), rtol=1e-13, atol=1e-14)


def test_regions_are_those_of_each_scale_row_by_row():
    (feature_map,) = random_maps((8, 4))
    classifier = classifier_of()
    logits = multi_scale_logits(feature_map, classifier, scales=(1, 2, 4))
    region = 0
    for scale in (1, 2, 4):
        height, width = 8 // scale, 4 // scale
        for row in range(scale):
            for column in range(scale):
                part = feature_map[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width]
                torch.testing.assert_close(logits[:, :, region], classifier(part.mean((2, 3))))
                region += 1
    assert region == logits.shape[2]


def test_parts_that_do_not_divide_the_map_overlap():
    """7 rows in 2 parts: rows 0 to 3 and 3 to 6. They are pooled from the map, not from each other."""
    (feature_map,) = random_maps((7, 7))
    classifier = classifier_of()
    logits = multi_scale_logits(feature_map, classifier, scales=(1, 2))
    torch.testing.assert_close(logits[:, :, 4], classifier(feature_map[:, :, 3:, 3:].mean((2, 3))))


def test_equals_pooled_logits_of_every_position():
    """A linear classifier commutes with pooling."""
    (feature_map,) = random_maps((7, 5))
    classifier = classifier_of()
    every_position = classifier(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    expected = [nn.functional.adaptive_avg_pool2d(every_position, scale).flatten(2) for scale in (1, 2, 4)]
    torch.testing.assert_close(multi_scale_logits(feature_map, classifier), torch.cat(expected, 2))


def test_the_classifier_runs_once():
    classifier = classifier_of()
    calls = []
    classifier.register_forward_hook(lambda *arguments: calls.append(arguments))
    multi_scale_logits(random_maps((8, 8))[0], classifier)
    assert len(calls) == 1


def test_map_and_classifier_get_gradients():
    (feature_map,) = random_maps((5, 4))
    feature_map.requires_grad_()
    classifier = classifier_of()
    inputs = (feature_map, *classifier.parameters())
    assert torch.autograd.gradcheck(lambda m, *_: multi_scale_logits(m, classifier), inputs)


@pytest.mark.parametrize(("size", "scales"), [((1, 1), (1,)), ((2, 9), (1, 2)), ((3, 3), [1, 3]), ((4, 4), (1, 4, 2))])
def test_small_maps_take_the_scales_that_fit(size, scales):
    (feature_map,) = random_maps(size)
    logits = multi_scale_logits(feature_map, classifier_of(), scales)
    assert logits.shape == (2, 5, sum(scale**2 for scale in scales))
    assert logits.isfinite().all()


def test_feeds_sdd_loss():
    s, t = random_maps((8, 8), (7, 7))
    s.requires_grad_()
    classifier = classifier_of()
    loss = sdd_loss(*(multi_scale_logits(m, classifier) for m in (s, t)), torch.tensor([0, 4]))
    loss.backward()
    assert loss > 0
    assert s.grad.abs().sum((1, 2, 3)).all()


def test_an_empty_batch():
    assert multi_scale_logits(random_maps((8, 8), batch=0)[0], classifier_of()).shape == (0, 5, 21)


def test_autocast_gives_what_the_model_itself_gives():
    feature_map = random_maps((8, 8))[0].float()
    classifier = classifier_of().float()
    with torch.autocast("cpu", torch.bfloat16):
        logits = multi_scale_logits(feature_map, classifier)
        expected = classifier(feature_map.mean((2, 3)))
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits[:, :, 0], expected)


@pytest.mark.parametrize("scales", [(), (2, 4), (2, 1), (1, 0), (1, -2), (1, 2, 2), (1, 1), (1, 2.0), (True, 2)])
def test_invalid_scales(scales):
    with pytest.raises(ValueError, match="scales must be different whole numbers, the first of them 1; got"):
        multi_scale_logits(random_maps((8, 8))[0], classifier_of(), scales)


@pytest.mark.parametrize("size", [(3, 8), (8, 3)])
def test_scales_larger_than_the_map(size):
    with pytest.raises(ValueError, match=r"scales \(1, 2, 4\): the map's shorter side is 3"):
        multi_scale_logits(random_maps(size)[0], classifier_of())


def test_repeated_positions_are_those_of_the_map():
    """As the published code pools: a 2 x 2 map to 4 x 4, then that to 2 x 2 and to 1 x 1."""
    (feature_map,) = random_maps((2, 2))
    classifier = classifier_of()
    logits = multi_scale_logits(feature_map, classifier, repeat=True)
    four = nn.functional.adaptive_avg_pool2d(feature_map, 4)
    levels = [nn.functional.adaptive_avg_pool2d(four, 1), nn.functional.adaptive_avg_pool2d(four, 2), four]
    pooled = torch.cat([level.flatten(2) for level in levels], 2)
    torch.testing.assert_close(logits, classifier(pooled.transpose(1, 2)).transpose(1, 2), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("classifier", [nn.Conv2d(3, 5, 1), nn.Sequential(nn.Linear(3, 5)), torch.zeros(5, 3)])
def test_a_classifier_that_is_not_linear(classifier):
    with pytest.raises(TypeError, match=f"must be an nn.Linear.*got {type(classifier).__name__}"):
        multi_scale_logits(random_maps((8, 8))[0], classifier)


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 3), (3, 8, 8), (2, 3, 0, 8)])
def test_maps_that_do_not_fit_the_classifier(shape):
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\).*got") as caught:
        multi_scale_logits(torch.zeros(shape), classifier_of().float())
    assert str(shape) in str(caught.value)
