import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from kd_det.data.digits_rendering import photographs, scans


@pytest.mark.parametrize("seed", [0, 7])
def test_the_splits_share_no_scan_and_together_are_all_scans(seed):
    train, val = scans("train", seed)[0], scans("val", seed)[0]
    assert len(train) == 1297
    assert len(val) == 500
    joined = np.concatenate([train, val]).reshape(-1, 64) * 16
    expected = load_digits().images.reshape(-1, 64)
    assert np.array_equal(np.unique(joined, axis=0), np.unique(expected, axis=0))
    assert not {scan.tobytes() for scan in train} & {scan.tobytes() for scan in val}


def test_scans_keep_their_labels():
    digits = load_digits()
    pairs = zip(digits.images.astype(np.float32), digits.target, strict=True)
    label_of = {scan.tobytes(): label for scan, label in pairs}
    for split in ("train", "val"):
        inks, labels = scans(split)
        assert [label_of[(ink * 16).tobytes()] for ink in inks] == labels.tolist()


def test_every_class_has_its_share_of_both_splits():
    for split, share in (("train", 1297 / 1797), ("val", 500 / 1797)):
        counts = np.bincount(scans(split)[1], minlength=10)
        assert np.allclose(counts, np.bincount(load_digits().target) * share, atol=1)


def test_the_parts_of_a_photograph_join_to_the_whole():
    parts = zip(photographs("train"), photographs("val"), strict=True)
    for (left, right), whole in zip(parts, load_sample_images().images, strict=True):
        assert np.array_equal(np.concatenate([np.asarray(left), np.asarray(right)], axis=1), whole)


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match=r"'test'.*train.*val"):
        scans("test")
