import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from kd_det.data.digits_rendering import SceneSettings, covered_share, draw_scene, paste, photographs, scans

GREY = (Image.new("RGB", (200, 200), (100, 100, 100)),)


def test_boxes_and_areas_are_those_of_the_pasted_ink():
    # No tint, a known contrast and a plain ground: a pixel's brightness tells its opacity.
    settings = SceneSettings(digits=(1, 1), background=(1.0, 1.0), contrast=(100, 100))
    for seed in range(30):
        pixels, (digit,) = draw_scene(scans("train"), GREY, settings, np.random.default_rng(seed))
        # Tints cancel in the mean over channels; rounding moves each by half a grey level.
        opacity = (pixels.astype(float).mean(axis=2) - 100) / 100
        rows, columns = np.nonzero(opacity >= 0.25)
        x0, y0, x1, y1 = digit.box
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract(found, digit.box)).max() <= 1
        assert digit.area == pytest.approx((opacity >= 0.25).sum(), rel=0.05)
        assert (y1 - y0) <= 44
        assert 0 <= x0 < x1 <= 128
        assert 0 <= y0 < y1 <= 128


def test_paste_blends_by_opacity():
    canvas = np.full((4, 4, 3), 50, dtype=np.float32)
    opacity = np.array([[0.0, 0.5], [1.0, 0.25]], dtype=np.float32)
    settings = SceneSettings(contrast=(80, 80))
    paste(canvas, opacity, 1, 2, settings, np.random.default_rng(0))
    grey = canvas.mean(axis=2)
    expected = np.full((4, 4), 50.0)
    expected[2:4, 1:3] += 80 * opacity
    assert np.allclose(grey, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("other", "share"),
    [
        ((10, 10, 20, 20), 1.0),
        ((15, 10, 25, 20), 0.5),
        ((20, 10, 30, 20), 0.0),
        ((12, 12, 14, 14), 1.0),
        ((0, 0, 12, 15), 0.1),
    ],
)
def test_covered_share_by_hand(other, share):
    assert covered_share((10, 10, 20, 20), other) == pytest.approx(share)
    assert covered_share(other, (10, 10, 20, 20)) == pytest.approx(share)


def test_digits_overlap_no_more_than_allowed():
    settings = SceneSettings(digits=(8, 8), max_overlap=0.2)
    shares = []
    for seed in range(20):
        _, digits = draw_scene(scans("train"), GREY, settings, np.random.default_rng(seed))
        pairs = [(a.box, b.box) for i, a in enumerate(digits) for b in digits[:i]]
        shares += [covered_share(*pair) for pair in pairs]
    assert 0 < max(shares) <= 0.2


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
