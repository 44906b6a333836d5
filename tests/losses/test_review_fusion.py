from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd_det.losses import ReviewKDFusion, hcl_loss

IN, OUT, MID = (3, 5, 4), (6, 2, 7), 8
SIZES = [(9, 7), (4, 3), (1, 1)]


def fusion_of(in_channels=IN, out_channels=OUT, mid_channels=MID):
    """With random normalisation as well: at the start every BatchNorm would be alike."""
    torch.manual_seed(0)
    fusion = ReviewKDFusion(in_channels, out_channels, mid_channels).double()
    for module in fusion.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 2.0)
    return fusion


def maps_of(sizes=SIZES, channels=IN, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, count, *size, dtype=torch.float64, generator=generator)
        for count, size in zip(channels, sizes, strict=True)
    ]


def normalised(values, norm, training):
    mean, var = (values.mean((0, 2, 3)), values.var((0, 2, 3), unbiased=False)) if training else (None, None)
    mean, var = (norm.running_mean, norm.running_var) if mean is None else (mean, var)
    scale = norm.weight / (var + norm.eps).sqrt()
    return (values - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


def nearest(values, height, width):
    rows, columns = (
        torch.arange(new) * old // new for new, old in ((height, values.shape[2]), (width, values.shape[3]))
    )
    return values[:, :, rows][:, :, :, columns]


def by_description(fusion, maps, training):
    """The paper's figure: concatenate, attend, mix, expand; by einsum and indexing."""
    results, deeper = [], None
    for block, feature_map in zip(list(fusion.blocks)[::-1], maps[::-1], strict=True):
        convolution, norm = block.reduce
        own = torch.einsum("bchw,mc->bmhw", feature_map, convolution.weight[:, :, 0, 0])
        own = normalised(own, norm, training)
        if deeper is not None:
            deeper = nearest(deeper, *own.shape[2:])
            both = torch.cat((own, deeper), 1)
            scores = torch.einsum("bchw,mc->bmhw", both, block.attention.weight[:, :, 0, 0])
            weights = 1 / (1 + torch.exp(-scores - block.attention.bias.view(1, 2, 1, 1)))
            own = own * weights[:, 0:1] + deeper * weights[:, 1:2]
        deeper = own
        convolution, norm = block.expand
        windows = F.pad(own, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        results.insert(0, normalised(torch.einsum("bchwij,ocij->bohw", windows, convolution.weight), norm, training))
    return results


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [SIZES, [(8, 8), (4, 4), (2, 2)], [(5, 12), (5, 12), (2, 3)]])
def test_does_what_the_paper_describes(sizes, training):
    fusion, maps = fusion_of().train(training), maps_of(sizes)
    expected = by_description(copy.deepcopy(fusion), maps, training)
    for result, wanted in zip(fusion(maps), expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize(
    "sizes",
    [
        [(16, 16), (8, 8), (4, 4)],
        [(16, 9), (8, 5), (3, 2)],
        [(7, 2), (3, 1), (1, 1)],
        [(2, 3), (1, 2), (1, 1)],
        [(1, 1), (1, 1), (1, 1)],
    ],
)
def test_has_the_students_sizes_and_the_teachers_channels(sizes, batch, training):
    fusion, maps = fusion_of().train(training), maps_of(sizes, batch=batch)
    for m in maps:
        m.requires_grad_()
    results = fusion(maps)
    assert [tuple(r.shape) for r in results] == [(batch, c, *size) for c, size in zip(OUT, sizes, strict=True)]
    assert all(r.isfinite().all() for r in results)
    hcl_loss(results, [torch.ones_like(r) for r in results]).backward()
    assert all(m.grad.isfinite().all() for m in maps)
    assert all(p.grad.isfinite().all() for p in fusion.parameters())


def test_one_level_has_nothing_to_fuse():
    fusion = fusion_of((3,), (6,), 4)
    (result,) = fusion(maps_of([(5, 4)], (3,)))
    assert result.shape == (2, 6, 5, 4)
    assert not any("attention" in name for name, _ in fusion.named_parameters())


def test_shallow_levels_learn_from_deeper_ones_and_not_the_reverse():
    fusion, maps = fusion_of(), maps_of([(9, 7), (4, 3), (2, 2)])
    for m in maps:
        m.requires_grad_()
    for level, result in enumerate(fusion(maps)):
        grads = torch.autograd.grad(result.square().sum(), maps, retain_graph=True, allow_unused=True)
        assert [grad is not None and bool(grad.any()) for grad in grads] == [other >= level for other in range(3)]


def test_every_parameter_is_trained():
    fusion, maps = fusion_of(), maps_of([(9, 7), (4, 3), (2, 2)])
    teacher = maps_of([(9, 7), (4, 3), (2, 2)], OUT, seed=1)
    hcl_loss(fusion(maps), teacher).backward()
    assert all(parameter.grad.any() for parameter in fusion.parameters())


def test_gradient_is_that_of_the_value():
    fusion, maps = fusion_of((2, 3), (3, 2), 2), maps_of([(3, 2), (1, 2)], (2, 3))
    assert torch.autograd.gradcheck(lambda *m: tuple(fusion(m)), [m.requires_grad_() for m in maps])


def test_learns_to_imitate_the_teacher():
    torch.manual_seed(0)
    fusion = ReviewKDFusion((3, 3), (4, 4), 8).double()
    student, teacher = maps_of([(6, 6), (3, 3)], (3, 3)), maps_of([(6, 6), (3, 3)], (4, 4), seed=1)
    optimizer = torch.optim.Adam(fusion.parameters(), 0.03)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = hcl_loss(fusion(student), teacher)
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.5 * values[0]


def test_one_value_a_channel_leaves_the_statistics_as_they_are():
    """There is no variance in it: it is normalised as in evaluation."""
    fusion, maps = fusion_of((3,), (6,), 4), maps_of([(1, 1)], (3,), batch=1)
    before = copy.deepcopy(fusion.state_dict())
    training = fusion(maps)[0]
    assert all(fusion.state_dict()[name].equal(value) for name, value in before.items())
    assert training.equal(fusion.eval()(maps)[0])
    fusion.train()(maps_of([(1, 1)], (3,), batch=2))
    assert not all(fusion.state_dict()[name].equal(value) for name, value in before.items())


def test_autocast_runs_in_half_precision():
    fusion, maps = fusion_of().float(), [m.float() for m in maps_of()]
    with torch.autocast("cpu", torch.bfloat16):
        results = fusion(maps)
        loss = hcl_loss(results, [torch.zeros_like(r) for r in results])
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in fusion.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((3, 5), (6,), 8), r"one entry for each level.*got \[3, 5\] and \[6\]"),
        (((), (), 8), r"one level or more; got \[\] and \[\]"),
        (((3, 0), (6, 2), 8), r"channels must be 1 or more; got \[3, 0\], \[6, 2\]"),
        (((3, 5), (6, -2), 8), "channels must be 1 or more"),
        (((3, 5), (6, 2), 0), "mid_channels 0"),
    ],
)
def test_invalid_channels(arguments, words):
    with pytest.raises(ValueError, match=words):
        ReviewKDFusion(*arguments)


@pytest.mark.parametrize(
    "maps",
    [maps_of()[:2], maps_of()[1:], [*maps_of(), maps_of()[2]], maps_of()[::-1], maps_of(channels=(3, 5, 5))],
)
def test_other_maps_than_it_was_built_for_name_both_sides(maps):
    with pytest.raises(ValueError, match=r"\[3, 5, 4\] channels, for teacher maps with \[6, 2, 7\]; got") as caught:
        fusion_of()(maps)
    assert all(str(tuple(m.shape)) in str(caught.value) for m in maps)


def test_maps_of_two_batches():
    with pytest.raises(ValueError, match="maps of one batch"):
        fusion_of()([*maps_of()[:2], maps_of(batch=1)[2]])


@pytest.mark.parametrize("sizes", [[(1, 1), (4, 3), (9, 7)], [(9, 7), (4, 8), (1, 1)]])
def test_maps_that_do_not_come_largest_first(sizes):
    with pytest.raises(ValueError, match="must be listed largest first; got 3 maps"):
        fusion_of()(maps_of(sizes))


@pytest.mark.parametrize("maps", [[], maps_of()[0], [m[0] for m in maps_of()], [m.long() for m in maps_of()]])
def test_arguments_that_are_not_lists_of_maps(maps):
    with pytest.raises(ValueError, match="student_maps must be"):
        fusion_of()(maps)
