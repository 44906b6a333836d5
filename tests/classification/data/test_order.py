from __future__ import annotations

import pytest
import torch

from classification.data.loaders import epoch_order, eval_shares, train_shares


def places(share: slice) -> list[int]:
    return list(range(share.start, share.stop))


def test_an_order_is_a_permutation_of_seed_and_epoch():
    order = epoch_order(100, seed=3, epoch=5)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, epoch_order(100, seed=3, epoch=5))
    assert not torch.equal(order, epoch_order(100, seed=3, epoch=6))
    assert not torch.equal(order, epoch_order(100, seed=4, epoch=5))


@pytest.mark.parametrize(
    ("samples", "processes", "sizes"),
    [
        (16, 1, [8, 8]),
        (21, 1, [8, 8, 5]),  # the ragged batch is kept
        (17, 1, [8, 8]),  # one of a single sample is not
        (18, 1, [8, 8, 2]),
        (21, 2, [4, 4, 2]),  # 5 left, 4 of them divide by 2
        (19, 2, [4, 4]),  # 3 left: one each, so none
        (23, 4, [2, 2]),  # 7 left: one each
        (17, 8, [1, 1]),  # a batch of one on purpose stays
    ],
)
def test_sizes_of_the_batches(samples, processes, sizes):
    for process in range(processes):
        shares = train_shares(samples, 8, process, processes)
        assert [len(places(share)) for share in shares] == sizes
        assert all(share.stop <= samples for share in shares)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_join_to_consecutive_batches(processes):
    shares = [train_shares(24, 8, process, processes) for process in range(processes)]
    joined = [[place for of_one in shares for place in places(of_one[batch])] for batch in range(3)]
    assert joined == [list(range(8)), list(range(8, 16)), list(range(16, 24))]


@pytest.mark.parametrize("samples", [1, 2, 7, 8, 9, 17, 24])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_evaluation_sees_each_sample_once(samples, processes):
    shares = [eval_shares(samples, 8, process, processes) for process in range(processes)]
    seen = [place for of_one in shares for share in of_one for place in places(share)]
    assert sorted(seen) == list(range(samples))
    lengths = [sum(len(places(share)) for share in of_one) for of_one in shares]
    assert max(lengths) - min(lengths) <= -(-samples // 8)
    assert all(share.start < share.stop for of_one in shares for share in of_one)
