"""Properties of every data set."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from classification.data import build_data


def fields(batch):
    """Those of a batch that are there: without a strong view, the first three."""
    return [field for field in batch if field is not None]


def batches_of(cfg, *, epoch=0, start=0, process=0, processes=1):
    return list(build_data(cfg, "cpu", process, processes).train.epoch(epoch, start))


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(fields(a), fields(b), strict=True))


def test_an_epoch_is_a_function_of_seed_and_epoch(any_config):
    first = batches_of(any_config, epoch=2)
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    assert_same(first, batches_of(any_config, epoch=2))
    data = build_data(any_config, "cpu")
    list(data.train.epoch(0))
    assert_same(first, list(data.train.epoch(2)))
    assert not torch.equal(first[0].images, next(data.train.epoch(3)).images)
    any_config.SEED = 1
    assert not torch.equal(first[0].images, batches_of(any_config, epoch=2)[0].images)


def test_a_strong_view_is_beside_the_same_plain_one(any_config):
    plain = batches_of(any_config, epoch=2)
    any_config.DATA.STRONG_VIEW = True
    first, again = batches_of(any_config, epoch=2), batches_of(any_config, epoch=2)
    assert_same(first, again)
    for batch, without in zip(first, plain, strict=True):
        assert without.strong is None and batch.strong.shape == batch.images.shape
        assert torch.equal(batch.labels, without.labels)
        assert not torch.equal(batch.images, batch.strong)
    if any_config.DATA.NAME in ("digits", "cifar100"):
        assert all(torch.equal(a.images, b.images) for a, b in zip(first, plain, strict=True))
    assert all(batch.strong is None for batch in build_data(any_config, "cpu").val)


@pytest.mark.parametrize("auto_augment", [False, True])
def test_a_start_gives_the_tail(any_config, auto_augment):
    any_config.DATA.AUTO_AUGMENT = auto_augment
    if any_config.DATA.NAME == "digits":
        any_config.DATA.BATCH_SIZE = 400
    whole = batches_of(any_config, epoch=1)
    assert_same(whole[1:], batches_of(any_config, epoch=1, start=1))
    assert batches_of(any_config, epoch=1, start=len(whole)) == []


@pytest.mark.parametrize("auto_augment", [False, True])
def test_two_processes_join_to_one(any_config, auto_augment):
    any_config.DATA.AUTO_AUGMENT = auto_augment
    if any_config.DATA.NAME == "digits":
        any_config.DATA.BATCH_SIZE = 400
    one = batches_of(any_config)
    whole = len(one) - (len(one[-1].labels) < any_config.DATA.BATCH_SIZE)
    halves = zip(*(batches_of(any_config, process=process, processes=2)[:whole] for process in (0, 1)), strict=True)
    joined = [type(a)(*(torch.cat(pair) for pair in zip(fields(a), fields(b), strict=True))) for a, b in halves]
    assert_same(one[:whole], joined)


def test_validation_sees_each_sample_once_over_three_processes(any_config):
    any_config.DATA.BATCH_SIZE = 3
    one = build_data(any_config, "cpu").val
    shares = [build_data(any_config, "cpu", process, 3).val for process in range(3)]
    assert all(len(list(share)) == len(share) and share.samples == one.samples for share in shares)
    seen = [item for share in shares for batch in share for item in zip(*fields(batch), strict=True)]
    expected = [item for batch in one for item in zip(*fields(batch), strict=True)]
    assert [int(index) for _, _, index in expected] == list(range(one.samples))
    for (image, label, _), (its, its_label, _) in zip(expected, sorted(seen, key=lambda item: item[2]), strict=True):
        assert torch.equal(image, its) and label == its_label


def test_the_global_random_numbers_are_untouched(any_config):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    data = build_data(any_config, "cpu")
    any_config.DATA.AUTO_AUGMENT = True
    for loader in (data.train.epoch(0), data.val, data.train.plain(), build_data(any_config, "cpu").train.epoch(0)):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_contents(any_config):
    data = build_data(any_config, "cpu")
    size = any_config.DATA.IMAGE_SIZE
    assert data.image_size == size and data.num_classes == len(data.class_names)
    plain = list(data.train.plain())
    labels = torch.cat([batch.labels for batch in plain])
    assert torch.cat([batch.indices for batch in plain]).tolist() == list(range(data.train.samples))
    assert torch.equal(labels, data.train.labels)
    epoch = list(data.train.epoch(0))
    assert len(epoch) == len(data.train)
    for batch in epoch:
        assert torch.equal(batch.labels, labels[batch.indices])
        assert batch.images.shape == (len(batch.labels), 3, size, size) and batch.images.dtype == torch.float32
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert batch.images.is_contiguous()
    seen = torch.cat([batch.indices for batch in epoch])
    assert len(seen.unique()) == len(seen)


def test_channels_last_changes_the_memory_only(any_config):
    planar = batches_of(any_config)[0]
    any_config.SOLVER.CHANNELS_LAST = True
    interleaved = batches_of(any_config)[0]
    assert interleaved.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(planar.images, interleaved.images)
    validation = next(iter(build_data(any_config, "cpu").val))
    assert validation.images.is_contiguous(memory_format=torch.channels_last)


def test_normalisation_is_that_of_the_data_set(any_config):
    data = build_data(any_config, "cpu")
    batch = next(iter(data.val))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
    levels = (batch.images * std + mean) * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    assert levels.round().min() >= 0 and levels.round().max() <= 255 and levels.max() > 100
