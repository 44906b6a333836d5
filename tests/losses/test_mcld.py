from __future__ import annotations

import io
import itertools
import math
import socket
from collections import deque
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing, nn

from kd_det.losses import MCLDLoss
from kd_det.losses.mcld import CATEGORY_NORMS

TERMS = ("instance", "sample", "category")
CLASSES, BATCH, QUEUE, SAMPLES = 5, 6, 16, 9


def batch(step=0, size=BATCH, classes=CLASSES, dtype=torch.float64):
    """s, t, y and indices of 9 recurring samples; each sample has its own label."""
    generator = torch.Generator().manual_seed(step)
    s, t = 3 * torch.randn(2, size, classes, dtype=torch.float64, generator=generator)
    indices = torch.randperm(max(SAMPLES, size), generator=generator)[:size]
    return s.to(dtype).requires_grad_(), t.to(dtype), indices % 3 % classes, indices


def loss_module(classes=CLASSES, queue=QUEUE, **settings):
    return MCLDLoss(classes, queue, **settings).double()


def cosine(a, b):
    return (
        sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in b)) / sum(x * x for x in a).sqrt()
    )


def mean(values):
    return sum(values) / len(values) if values else 0.0


def mcld_by_loops(s, t, y, indices, queue, temperature, norm="counts"):
    """The terms, one exponential after the other; ``queue`` has pairs of a sample's index and teacher logits."""
    rows = range(len(s))
    similar = [[(cosine(s[i], t[j].tolist()) / temperature).exp() for j in rows] for i in rows]
    instance, sample, category = [], [], []
    for i in rows:
        others = [(cosine(s[i], logits) / temperature).exp() for index, logits in queue if index != int(indices[i])]
        instance.append(-(similar[i][i] / (similar[i][i] + sum(others))).log())
        sample.append(-(similar[i][i] / sum(similar[i])).log())
        positives = [similar[i][j] for j in rows if j != i and y[j] == y[i]]
        negatives = [similar[i][j] for j in rows if y[j] != y[i]]
        if positives and norm == "supcon":
            category.append(mean([-(one / (sum(positives) + sum(negatives))).log() for one in positives]))
        elif positives:
            category.append(-(mean(positives) / (mean(positives) + mean(negatives))).log())
    return {"instance": mean(instance), "sample": mean(sample), "category": mean(category)}


def gradient(value, s):
    return torch.autograd.grad(value, s, retain_graph=True)[0]


@pytest.mark.parametrize("norm", ["counts", "supcon"])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_equals_plain_loops_while_the_queue_fills_and_wraps_around(temperature, norm):
    module, queue = loss_module(temperature=temperature, category_norm=norm), deque(maxlen=QUEUE)
    left_out = 0
    for step in range(7):
        s, t, y, indices = batch(step)
        terms, expected = module(s, t, y, indices), mcld_by_loops(s, t, y, indices, queue, temperature, norm)
        assert tuple(terms) == TERMS
        for name, value in terms.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(gradient(value, s), gradient(expected[name], s), rtol=1e-11, atol=1e-14)
        left_out += sum(index in indices.tolist() for index, _ in queue)
        queue.extend(zip(indices.tolist(), t.tolist(), strict=True))
    assert left_out > 20
    # 42 samples have entered 16 places.
    assert int(module.position) == 42 % 16
    oldest_first = torch.arange(16).add(42).remainder(16)
    assert module.indices[oldest_first].tolist() == [index for index, _ in queue]
    torch.testing.assert_close(
        module.logits[oldest_first], nn.functional.normalize(torch.tensor([r for _, r in queue]).double())
    )


def test_by_hand():
    """u = (1, 0), v and a queue entry at right angles to each other, τ = 1/2."""
    module = loss_module(2, 2, temperature=0.5)
    s, t, y = torch.tensor([[3.0, 0.0]]).double().requires_grad_(), torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    module(s, torch.tensor([[0.0, 9.0]]), y, torch.tensor([5]))
    terms = module(s, t, y, torch.tensor([7]))
    assert terms["instance"].item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-12)
    assert (terms["sample"].item(), terms["category"].item()) == (0, 0)
    # Of v and the other, only the other turns u: by its weight 1 / (1 + e²) over τ and the norm of s.
    assert gradient(terms["instance"], s).tolist()[0] == pytest.approx([0, 2 / 3 / (1 + math.exp(2))], rel=1e-12)


def test_entries_of_the_same_sample_are_not_negatives():
    module = loss_module(queue=BATCH)
    s, t, y, indices = batch()
    module(s, t, y, indices.fill_(4))
    value = module(s, t, y, indices)["instance"]
    assert value.item() == 0
    assert not gradient(value, s).any()
    assert module(s, t, y, indices + 1)["instance"] > 0.1


@pytest.mark.parametrize("entered", [0, BATCH])
def test_empty_entries_are_not_negatives(entered):
    """A queue with room to spare gives what one without gives."""
    wide, narrow = loss_module(queue=1000), loss_module(queue=BATCH)
    for module in (wide, narrow):
        s, t, y, indices = batch(1, entered)
        module(s, t, y, indices)
    s, t, y, _ = batch(2)
    values = [module(s, t, y, torch.arange(100, 106))["instance"] for module in (wide, narrow)]
    torch.testing.assert_close(*values, rtol=1e-13, atol=0)
    assert (values[0] == 0) == (entered == 0)


def test_the_queue_is_filled_after_the_loss_and_in_training_alone():
    module = loss_module()
    s, t, y, indices = batch()
    assert module(s, t, y, indices)["instance"] == 0
    assert module.indices.tolist() == indices.tolist() + [-1] * 10
    state = {name: value.clone() for name, value in module.state_dict().items()}
    first = module.eval()(s, t, y, indices + 50)
    assert first["instance"] > 0
    assert all(module.state_dict()[name].equal(value) for name, value in state.items())
    assert first["instance"] == module(s, t, y, indices + 50)["instance"]
    assert not any(buffer.requires_grad for buffer in module.buffers())


def test_a_saved_queue_goes_on_bit_identically():
    module = loss_module()
    for step in range(4):
        module(*batch(step))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    resumed = loss_module()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in range(4, 8):
        s, t, y, indices = batch(step)
        for a, b in zip(module(s, t, y, indices).values(), resumed(s, t, y, indices).values(), strict=True):
            assert a.equal(b)
            assert gradient(a, s).equal(gradient(b, s))
    assert sorted(module.state_dict()) == ["indices", "logits", "position"]
    assert all(resumed.state_dict()[name].equal(value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("on", [TERMS[:1], TERMS[1:2], TERMS[2:], TERMS[:2], TERMS[1:], TERMS[::2]])
def test_each_term_can_be_switched_off(on):
    every, some = loss_module(), loss_module(**{name: name in on for name in TERMS})
    for step in range(2):
        s, t, y, indices = batch(step)
        expected, terms = every(s, t, y, indices), some(s, t, y, indices)
        assert tuple(terms) == on
        assert all(value.equal(expected[name]) for name, value in terms.items())


@pytest.mark.parametrize("name", TERMS)
def test_gradient_is_that_of_the_value(name):
    module = loss_module()
    module(*batch(0))
    module.eval()
    s, t, y, indices = batch(1)
    assert torch.autograd.gradcheck(lambda s: module(s, t, y, indices)[name], s)


def test_a_second_derivative_of_the_instance_term_is_refused():
    module = loss_module()
    module(*batch(0))
    s, t, y, indices = batch(1)
    (first,) = torch.autograd.grad(module(s, t, y, indices)["instance"], s, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        first.sum().backward()


def test_only_directions_count():
    module = loss_module()
    module(*batch(0))
    module.eval()
    s, t, y, indices = batch(1)
    factors = torch.tensor([1e-3, 1.0, 2.0, 50.0, 1e6, 1e10], dtype=torch.float64).unsqueeze(1)
    for a, b in zip(
        module(s, t, y, indices).values(), module(factors * s, factors * t, y, indices).values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_a_batch_with_no_two_samples_of_one_label():
    s, t, _, indices = batch()
    value = loss_module()(s, t, torch.arange(BATCH), indices)["category"]
    assert value.item() == 0
    assert gradient(value, s).tolist() == [[0.0] * CLASSES] * BATCH


@pytest.mark.parametrize("norm", ["counts", "supcon"])
def test_samples_without_a_positive_do_not_count(norm):
    s, t, _, indices = batch()
    module = loss_module(category_norm=norm)
    value = module(s, t, torch.tensor([0, 1, 2, 3, 4, 0]), indices)["category"]
    expected = mcld_by_loops(
        s, t, torch.tensor([0, 7, 7, 8, 9, 0]) * torch.tensor([1, 1, 2, 1, 1, 1]), indices, [], 0.2, norm
    )
    torch.testing.assert_close(value, expected["category"])
    # They are negatives still; their own rows pass nothing.
    assert gradient(value, s).any(1).tolist() == [True, False, False, False, False, True]


def test_a_batch_of_one_label_has_no_negatives():
    """Counted, nothing is left to tell the positives from. The supervised contrastive loss compares them still."""
    s, t, _, indices = batch()
    values = [loss_module(category_norm=norm)(s, t, torch.zeros(BATCH).long(), indices) for norm in CATEGORY_NORMS]
    assert values[0]["category"].item() == 0 and not gradient(values[0]["category"], s).any()
    assert values[1]["category"] > 0.1


def test_many_negatives_count_as_much_as_few():
    """Where all similarities are equal: log 2 whatever the numbers, and log of the others' number in "supcon"."""
    s = torch.ones(BATCH, CLASSES, dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 2, 3, 4])
    both = [loss_module(category_norm=norm)(s, s, y, y)["category"].item() for norm in CATEGORY_NORMS]
    assert both == pytest.approx([math.log(2), math.log(BATCH - 1)], rel=1e-12)


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("classes", [2, 100])
def test_the_smallest_batches(size, classes):
    module = loss_module(classes)
    for step in range(2):
        s, t, y, _ = batch(step, size, classes)
        terms = module(s, t, y, torch.full((size,), step))
        sum(terms.values()).backward()
        assert s.grad.shape == s.shape and s.grad.isfinite().all()
        assert terms["sample"].item() == terms["category"].item() == 0
        assert (terms["instance"].item() == 0) == (size == 0 or step == 0)
    assert int(module.position) == 2 * size


# The right gradient is of the order of 1 / temperature: at 1e-6, more than a float16.
@pytest.mark.parametrize(
    ("dtype", "temperature"),
    [
        *itertools.product([torch.float16, torch.bfloat16, torch.float32, torch.float64], [1e-3, 0.2, 1e6]),
        *itertools.product([torch.bfloat16, torch.float32, torch.float64], [1e-6]),
    ],
)
def test_finite_logits_give_a_finite_loss(dtype, temperature):
    largest = torch.finfo(dtype).max
    corners = torch.tensor([-largest, 0.0, torch.finfo(dtype).tiny, 1.0, largest], dtype=dtype)
    rows = torch.cartesian_prod(corners, corners, corners)
    s, t = rows.clone().requires_grad_(), rows.flip(0)
    module = MCLDLoss(3, 200, temperature=temperature)
    for step in range(2):
        terms = module(s, t, torch.arange(125) % 7, torch.arange(125) + 300 * step)
        assert all(value.isfinite() for value in terms.values())
    assert gradient(sum(terms.values()), s).isfinite().all()


def test_a_row_of_zeros_passes_no_gradient_and_harms_no_other():
    module = loss_module()
    module(*batch(0))
    s, t, y, indices = batch(1)
    t[3] = 0
    value = module(s * torch.ones(BATCH, 1).index_fill_(0, torch.tensor(2), 0), t, y, indices + 50)
    assert gradient(sum(value.values()), s).any(1).tolist() == [True, True, False, True, True, True]


def test_nan_is_not_hidden():
    module = loss_module()
    for network in range(2):
        arguments = list(batch())
        arguments[network] = arguments[network].detach().index_fill(0, torch.tensor([2]), math.nan)
        assert all(value.isnan() for value in module.eval()(*arguments).values())


def test_the_teacher_gets_no_gradient_and_arguments_stay():
    module = loss_module()
    s, t, y, indices = batch()
    copies = [z.detach().clone() for z in (s, t, y, indices)]
    sum(module(s, t.requires_grad_(), y, indices).values()).backward()
    assert s.grad.any() and t.grad is None
    assert all(z.detach().equal(copy) for z, copy in zip((s, t, y, indices), copies, strict=True))


@pytest.mark.parametrize("s_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("t_dtype", [torch.bfloat16, torch.float64])
def test_dtypes_widen_to_float32_or_more(s_dtype, t_dtype):
    module, same = MCLDLoss(CLASSES, QUEUE), MCLDLoss(CLASSES, QUEUE)
    wide = torch.float64 if torch.float64 in (s_dtype, t_dtype) else torch.float32
    for step in range(2):
        s, t, y, indices = batch(step)
        s, t = s.detach().to(s_dtype).requires_grad_(), t.to(t_dtype)
        terms, expected = module(s, t, y, indices), same(s.to(wide), t.to(wide), y, indices)
        assert all(value.dtype == wide and value.equal(expected[name]) for name, value in terms.items())
        assert gradient(sum(terms.values()), s).dtype == s_dtype


def test_autocast_changes_nothing():
    inside, outside = MCLDLoss(CLASSES, QUEUE), MCLDLoss(CLASSES, QUEUE)
    for step in range(2):
        s, t, y, indices = batch(step, dtype=torch.float32)
        expected = outside(s, t, y, indices)
        with torch.autocast("cpu", torch.bfloat16):
            terms = inside(s, t, y, indices)
            gradients = [gradient(value, s) for value in terms.values()]
        for value, other, slope in zip(terms.values(), expected.values(), gradients, strict=True):
            assert value.equal(other) and slope.equal(gradient(other, s))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes must be 2 or more; got 1"),
        ({"queue_size": 0}, "queue_size must be 1 or more; got 0"),
        ({"temperature": 0.0}, "temperature must be from 1e-06 to 1e\\+06; got 0.0"),
        ({"category_norm": "sum"}, "category_norm must be one of counts, supcon; got 'sum'"),
        (dict.fromkeys(TERMS, False), "at least one of instance, sample and category must be on"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MCLDLoss(**{"num_classes": 5, "queue_size": 6} | settings)


def test_a_queue_smaller_than_a_batch():
    module = loss_module(queue=BATCH - 1)
    with pytest.raises(ValueError, match="the queue has 5 entries, fewer than the 6 samples of a batch"):
        module(*batch())
    assert not module.logits.any()
    assert set(loss_module(queue=1, instance=False)(*batch())) == {"sample", "category"}


def test_invalid_arguments():
    module, (s, t, y, indices) = loss_module(), batch()
    for arguments, message in (
        ((s, t[:, :4], y, indices), "must both be"),
        ((s[:, :4], t[:, :4], y, indices), r"built for 5 classes; got student_logits \(6, 4\)"),
        ((s, t, y[:5], indices), r"labels must be \(6,\)"),
        ((s, t, y, indices[:5]), r"indices must be int64 \(6,\)"),
        ((s, t, y, indices.int()), r"got torch.int32"),
    ):
        with pytest.raises(ValueError, match=message):
            module(*arguments)


SHARES = [((0, 4), (4, 6)), ((0, 3), (3, 6)), ((0, 0), (0, 6)), ((0, 1), (1, 6))]


def one_process(rank, port, folder):
    """Takes its share of four batches, and leaves values and gradients, and the queue."""
    address, limit = f"tcp://127.0.0.1:{port}", timedelta(seconds=120)
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=limit)
    module, steps = loss_module(), []
    try:
        for step, shares in enumerate(SHARES):
            s, t, y, indices = (z.detach()[slice(*shares[rank])] for z in batch(step))
            terms = module(s.requires_grad_(), t, y, indices)
            steps.append({name: (value.detach(), gradient(value, s)) for name, value in terms.items()})
    finally:
        distributed.destroy_process_group()
    torch.save((steps, module.state_dict()), f"{folder}/{rank}.pth")


def test_two_processes_are_as_one_on_the_joined_batch(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    other = multiprocessing.get_context("spawn").Process(target=one_process, args=(1, port, str(tmp_path)))
    other.start()
    one_process(0, port, str(tmp_path))
    other.join(120)
    assert other.exitcode == 0
    halves = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    module = loss_module()
    for step in range(len(SHARES)):
        s, t, y, indices = batch(step)
        for name, value in module(s, t, y, indices).items():
            values, gradients = zip(*(steps[step][name] for steps, _ in halves), strict=True)
            torch.testing.assert_close(sum(values) / 2, value.detach(), rtol=1e-12, atol=1e-14)
            # A process's gradients count half in the mean over the two.
            torch.testing.assert_close(torch.cat(gradients) / 2, gradient(value, s), rtol=1e-11, atol=1e-14)
    for _, state in halves:
        assert all(state[name].equal(value) for name, value in module.state_dict().items())
