from __future__ import annotations

import statistics

import pytest
import torch

from classification.studies import pipeline
from classification.studies.pipeline import (
    SyntheticCIFAR100,
    compare_pipelines,
    in_memory_pipeline,
    torchvision_pipeline,
    write_synthetic_cifar100,
)

KEYS = {"data", "images", "rounds", "batch_size", "workers", "device", "threads", "torchvision", "in_memory", "ratio"}


def test_a_row_without_cifar(tmp_path):
    row = compare_pipelines(1, 40, root=str(tmp_path), batch_size=16, workers=0)
    assert row.keys() == KEYS
    assert (row["data"], row["images"], row["rounds"], row["batch_size"]) == ("synthetic", 40, 1, 16)
    assert row["ratio"] == pytest.approx(row["in_memory"] / row["torchvision"])
    assert not list(tmp_path.iterdir())


def test_rounds_are_interleaved_and_their_medians_taken(tmp_path, monkeypatch):
    speeds = iter([0, 0, 1.0, 10.0, 5.0, 90.0, 3.0, 40.0])  # two warm-ups, then torchvision and ours in turn
    timed = []

    def time(batches):
        timed.append(type(batches).__name__)
        return next(speeds)

    monkeypatch.setattr(pipeline, "_images_per_second", time)
    row = compare_pipelines(3, 10, root=str(tmp_path), workers=0)
    assert timed == ["DataLoader", "generator"] * 4
    assert (row["torchvision"], row["in_memory"]) == (statistics.median([1, 5, 3]), statistics.median([10, 90, 40]))
    assert row["ratio"] == pytest.approx(40 / 3)


def test_both_give_the_same_kind_of_batches(tmp_path):
    """The same images, labels and statistics: what is timed is the same work."""
    write_synthetic_cifar100(tmp_path, 60)
    theirs = list(torchvision_pipeline(SyntheticCIFAR100, str(tmp_path), 50, 16, 0)(0))
    ours = list(in_memory_pipeline(SyntheticCIFAR100, str(tmp_path), 50, 16, torch.device("cpu"))(0))
    assert [len(labels) for _, labels in theirs] == [len(batch.labels) for batch in ours] == [16, 16, 16, 2]
    for (images, labels), batch in zip(theirs, ours, strict=True):
        assert images.shape == batch.images.shape and images.dtype == batch.images.dtype
        assert labels.dtype == batch.labels.dtype
    their_labels = torch.cat([labels for _, labels in theirs]).sort().values
    assert torch.equal(their_labels, torch.cat([batch.labels for batch in ours]).sort().values)
    for extreme in (torch.amin, torch.amax):
        of_both = [
            extreme(torch.cat(list(images)), (0, 2, 3))
            for images in ([images for images, _ in theirs], [batch.images for batch in ours])
        ]
        torch.testing.assert_close(*of_both, rtol=1e-5, atol=1e-5)
