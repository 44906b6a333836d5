"""Settings and data that are not valid, each with its message."""

from __future__ import annotations

import shutil

import pytest

from classification.data import build_data, check_images
from kd_det.common.errors import SetupError
from tests.classification.data.layouts import config, write_cub, write_folders


def refuse(match: str, *overrides: object, processes: int = 1) -> None:
    with pytest.raises(SetupError, match=match):
        build_data(config(*overrides), "cpu", 0, processes)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (("DATA.NAME", "cifar10"), r"DATA\.NAME 'cifar10' does not exist\. Did you mean 'cifar100'\?"),
        (("DATA.NAME", "digit"), r"Did you mean 'digits'"),
        (("DATA.BATCH_SIZE", 0), r"DATA\.BATCH_SIZE is 0"),
        (("DATA.EVAL_BATCH_SIZE", 0), r"DATA\.EVAL_BATCH_SIZE is 0"),
        (("DATA.WORKERS", -1), r"DATA\.WORKERS is -1"),
        (("SEED", -1), r"SEED is -1"),
        (("DATA.BATCH_SIZE", 1438), r"DATA\.BATCH_SIZE 1438 is larger than the training set of 1437"),
        (("DATA.IMAGE_SIZE", 64), r"DATA\.IMAGE_SIZE 64.*TEACHER\.IMAGE_SIZE"),
        (("DATA.NAME", "cifar100", "DATA.IMAGE_SIZE", 224), r"DATA\.IMAGE_SIZE 224.*TEACHER\.IMAGE_SIZE"),
        (("DATA.NAME", "folder", "DATA.IMAGE_SIZE", 0), r"DATA\.IMAGE_SIZE is 0"),
        (("DATA.LABEL_NOISE", 1.0), r"DATA\.LABEL_NOISE is 1\.0"),
        (("DATA.LABEL_NOISE", -0.1), r"DATA\.LABEL_NOISE is -0\.1"),
        (("DATA.CONFIDENCE_RANGE", "(0.5, 0.5)"), r"DATA\.CONFIDENCE_RANGE is \(0\.5, 0\.5\)"),
        (("DATA.CONFIDENCE_RANGE", "(0.5, 0.2)"), r"DATA\.CONFIDENCE_RANGE"),
        (("DATA.CONFIDENCE_RANGE", "(-0.1, 0.2)"), r"DATA\.CONFIDENCE_RANGE"),
        (("DATA.CONFIDENCE_RANGE", "(0.5, 1.1)"), r"DATA\.CONFIDENCE_RANGE"),
        (("DATA.CONFIDENCE_RANGE", "(0.0, 0.5, 1.0)"), r"DATA\.CONFIDENCE_RANGE"),
    ],
)
def test_settings(overrides, match):
    refuse(match, *overrides)


def test_label_noise_that_is_nan():
    cfg = config()
    cfg.DATA.LABEL_NOISE = float("nan")
    with pytest.raises(SetupError, match=r"DATA\.LABEL_NOISE is nan"):
        build_data(cfg, "cpu")


def test_a_batch_that_does_not_divide():
    refuse(r"DATA\.BATCH_SIZE 8, .* divisible by the 3 processes; give a multiple of 3", processes=3)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("folder", r"train.*train/CLASS/IMAGE and val/CLASS/IMAGE"),
        ("imagenet", r"imagenet/train"),
        ("cub200", r"images\.txt"),
    ],
)
def test_missing_folders_name_the_layout(tmp_path, name, match):
    refuse(match, "DATA.NAME", name, "DATA.ROOT", tmp_path)
    with pytest.raises(SetupError, match=match):
        check_images(config("DATA.NAME", name, "DATA.ROOT", tmp_path))


class TestFolders:
    @pytest.fixture
    def root(self, tmp_path):
        return write_folders(tmp_path)

    def refuse(self, root, match):
        refuse(match, "DATA.NAME", "folder", "DATA.ROOT", root)

    def test_no_val(self, root):
        shutil.rmtree(root / "val")
        self.refuse(root, r"no folder '.*val'")

    def test_empty(self, root):
        shutil.rmtree(root / "train")
        (root / "train").mkdir()
        self.refuse(root, r"train' is empty.*train/CLASS/IMAGE")

    def test_an_empty_class(self, root):
        (root / "train" / "dog").mkdir()
        self.refuse(root, r"empty class folders.*dog")

    def test_one_class(self, tmp_path):
        self.refuse(write_folders(tmp_path, classes=("ant",)), r"only one class, 'ant'")

    @pytest.mark.parametrize(("lacking", "having"), [("train", "val"), ("val", "train")])
    def test_different_classes(self, root, lacking, having):
        shutil.rmtree(root / lacking / "bee")
        self.refuse(root, rf"different classes.*{having} has 'bee', {lacking} does not")


class TestCub:
    @pytest.fixture
    def folder(self, tmp_path):
        return write_cub(tmp_path)

    @pytest.mark.parametrize(
        ("file", "old", "new", "match"),
        [
            ("image_class_labels.txt", "4 2\n", "", r"image_class_labels\.txt has no image 4"),
            ("train_test_split.txt", "4 0\n", "", r"train_test_split\.txt has no image 4"),
            ("train_test_split.txt", "4 0\n", "4 0\n7 1\n", r"images\.txt has no image 7"),
            ("train_test_split.txt", "4 0\n", "4 2\n", r"image 4 has 2; it must be 0 or 1"),
            ("train_test_split.txt", "4 0\n", "4 x\n", r"image 4 has 'x', which is not a number"),
            ("train_test_split.txt", " 0\n", " 1\n", r"no image has 0"),
            ("image_class_labels.txt", "4 2\n", "4 1\n", r"class 1 .*image 4, '002\.Laysan_Albatross'"),
            ("image_class_labels.txt", " 2\n", " 3\n", r"without gaps"),
            ("image_class_labels.txt", "4 2\n", "4\n", r"line 4: '4' is not"),
            ("image_class_labels.txt", "4 2\n", "4 2\n4 2\n", r"line 5: '4 2' is not a new"),
            ("images.txt", "4 ", "x ", r"images\.txt, line 4"),
        ],
    )
    def test_files_that_disagree(self, folder, file, old, new, match):
        path = folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        refuse(match, "DATA.NAME", "cub200", "DATA.ROOT", folder.parent)

    def test_a_missing_file(self, folder):
        (folder / "images.txt").unlink()
        refuse(r"no file '.*images\.txt'", "DATA.NAME", "cub200", "DATA.ROOT", folder.parent)

    def test_one_class(self, folder):
        for file in ("images.txt", "image_class_labels.txt", "train_test_split.txt"):
            lines = (folder / file).read_text().splitlines()
            (folder / file).write_text("\n".join(line for line in lines if line[0] in "236"))
        refuse(r"at least two classes", "DATA.NAME", "cub200", "DATA.ROOT", folder.parent)
