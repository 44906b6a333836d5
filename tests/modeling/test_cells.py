"""The cells of a box: the same regions as explicit boxes or strided samples, at the level of the whole box."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torchvision.ops import roi_align

from kd_det.modeling.terms.cells import Cells, choose_boxes, pool_cells

STRIDES = (4, 8, 16)


def pooler(strides=STRIDES, resolution=3):
    return ROIPooler(resolution, [1 / stride for stride in strides], sampling_ratio=2, pooler_type="ROIAlignV2")


def random_maps(images=2, size=256):
    torch.manual_seed(0)
    return [torch.randn(images, 5, size // stride, size // stride, requires_grad=True) for stride in STRIDES]


def boxes(*corners):
    return Boxes(torch.tensor(corners, dtype=torch.float32).view(-1, 4))


# Sizes 40, 111 (level 2), 112, 223 (level 3) and 224 (level 4): a quarter of the last four would lie a level lower.
GIVEN = [
    boxes([3, 5, 43, 45], [10, 20, 121, 131], [10, 20, 122, 132]),
    boxes([1, 2, 224, 225], [1, 2, 225, 226], [30, 8, 50, 200]),
]
LEVELS = [0, 0, 1, 1, 2, 0]


def every_box():
    """(number in the batch, image, corners, level)"""
    flat = [(image, corners) for image, given in enumerate(GIVEN) for corners in given.tensor.tolist()]
    return [(number, image, corners, LEVELS[number]) for number, (image, corners) in enumerate(flat)]


def align_one(values, image, corners, level, resolution):
    roi = torch.tensor([[image, *corners]])
    return roi_align(values[level], roi, resolution, 1 / STRIDES[level], sampling_ratio=2, aligned=True)[0]


@pytest.mark.parametrize("side", [2, 3])
def test_grid_cells_are_boxes_of_their_own_at_the_whole_boxes_level(side):
    values = random_maps()
    pooled = pool_cells(pooler(), values, GIVEN, Cells((side,), "grid")).unflatten(0, (-1, side**2))
    assert pooled.shape == (6, side**2, 5, 3, 3)
    for number, image, (x0, y0, x1, y1), level in every_box():
        width, height = (x1 - x0) / side, (y1 - y0) / side
        for row in range(side):
            for column in range(side):
                left, top = x0 + column * width, y0 + row * height
                expected = align_one(values, image, (left, top, left + width, top + height), level, 3)
                torch.testing.assert_close(pooled[number, row * side + column], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [2, 3])
def test_interleaved_cells_are_every_other_sample_of_a_finer_pooling(side):
    values = random_maps()
    pooled = pool_cells(pooler(), values, GIVEN, Cells((side,), "interleaved")).unflatten(0, (-1, side**2))
    for number, image, corners, level in every_box():
        fine = align_one(values, image, corners, level, 3 * side)
        for row in range(side):
            for column in range(side):
                expected = fine[:, row::side, column::side]
                torch.testing.assert_close(pooled[number, row * side + column], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["grid", "interleaved"])
def test_every_cell_comes_from_the_level_of_the_whole_box(kind):
    levels = [torch.full((2, 1, 256 // stride, 256 // stride), float(level)) for level, stride in enumerate(STRIDES)]
    pooled = pool_cells(pooler(), levels, GIVEN, Cells((2,), kind))
    whole = pooler()(levels, GIVEN)
    assert whole[:, 0, 1, 1].tolist() == LEVELS
    assert pooled[:, 0, 1, 1].tolist() == [level for level in LEVELS for _ in range(4)]


@pytest.mark.parametrize("kind", ["grid", "interleaved"])
def test_scales_are_concatenated_in_order(kind):
    values = random_maps()
    both, two, three = (
        pool_cells(pooler(), values, GIVEN, Cells(sides, kind)).unflatten(0, (6, -1)) for sides in ((2, 3), (2,), (3,))
    )
    assert Cells((2, 3), kind).count == 13
    assert torch.equal(both, torch.cat((two, three), dim=1))


@pytest.mark.parametrize("kind", ["grid", "interleaved"])
def test_a_head_with_one_level_and_the_gradient(kind):
    values = random_maps()[:1]
    pooled = pool_cells(pooler(STRIDES[:1]), values, GIVEN, Cells((2,), kind))
    assert pooled.shape == (24, 5, 3, 3)
    pooled.sum().backward()
    assert torch.isfinite(values[0].grad).all() and values[0].grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["grid", "interleaved"])
@pytest.mark.parametrize("strides", [STRIDES, STRIDES[:1]])
def test_no_boxes(kind, strides):
    values = random_maps()[: len(strides)]
    for given, count in (([boxes(), boxes()], 0), ([boxes(), GIVEN[0]], 3)):
        pooled = pool_cells(pooler(strides), values, given, Cells((2, 3), kind))
        assert pooled.shape == (13 * count, 5, 3, 3) and pooled.requires_grad


@pytest.mark.parametrize("asked, total, rows", [(None, 3, [0, 1, 2]), (4, 3, [0, 1, 2]), (2, 7, [0, 3]), (3, 0, [])])
def test_rows_are_evenly_spaced(asked, total, rows):
    assert Cells((2,), boxes=asked).rows(total, torch.device("cpu")).tolist() == rows


def test_chosen_boxes_stay_with_their_images():
    first, second = boxes([0, 0, 1, 1], [0, 0, 2, 2]), boxes([0, 0, 3, 3])
    chosen = choose_boxes([first, boxes(), second], torch.tensor([1, 2]))
    assert [each.tensor[:, 2].tolist() for each in chosen] == [[2.0], [], [3.0]]
