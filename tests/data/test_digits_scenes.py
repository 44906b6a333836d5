import contextlib
import io
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from pycocotools.coco import COCO

from kd_det.common.errors import SetupError
from kd_det.data.digits_scenes import DigitsDetSettings, annotation_file, image_root, make_digits_det, remove_made

SMALL = DigitsDetSettings(seed=3, train_images=6, val_images=4)


def contents(root):
    folder = Path(root) / "digits_det"
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(root):
    return {path: path.stat().st_mtime_ns for path in Path(root).rglob("*") if path.is_file()}


@pytest.fixture
def made(tmp_path):
    make_digits_det(tmp_path, SMALL)
    return tmp_path


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(made, tmp_path):
    make_digits_det(tmp_path / "again", SMALL)
    make_digits_det(tmp_path / "other", DigitsDetSettings(seed=4, train_images=6, val_images=4))
    assert contents(tmp_path / "again") == contents(made)
    other = contents(tmp_path / "other")
    assert all(other[name] != data for name, data in contents(made).items())


def test_a_complete_set_is_kept(made):
    before = times(made)
    make_digits_det(made, SMALL)
    assert times(made) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "val" / "000002.png").write_bytes(b"half"),
        lambda folder: (folder / "train" / "000003.png").unlink(),
        lambda folder: (folder / "annotations" / "train.json").write_text("{}"),
        lambda folder: [path.unlink() for path in (folder / "train").iterdir()],
    ],
)
def test_a_damaged_set_is_made_again(made, damage):
    whole = contents(made)
    damage(made / "digits_det")
    assert contents(made) != whole
    make_digits_det(made, SMALL)
    assert contents(made) == whole


def unlink(path):
    path.unlink()
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "train" / "mine.png").write_bytes(b"mine"),
        lambda folder: (folder / "mine").mkdir(),
        lambda folder: (folder / "mine").symlink_to(folder.parent),
        lambda folder: unlink(folder / "manifest.json"),
        lambda folder: (folder / "manifest.json").write_text('{"recipe": '),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text('{"recipe": {}, "files": {"train/000001.png": ""}}'),
        lambda folder: folder.rename(folder.with_name("elsewhere")) and folder.symlink_to("elsewhere"),
        lambda folder: folder.rename(folder.with_name("elsewhere")) and folder.write_text("a file"),
    ],
)
@pytest.mark.parametrize("damaged", [True, False])
def test_what_we_did_not_make_is_never_removed(made, change, damaged):
    folder = made / "digits_det"
    change(folder)
    if damaged and folder.is_dir():
        (folder / "val" / "000002.png").write_bytes(b"half")
    before = contents(made)
    with pytest.raises(SetupError, match=r"DETECTRON2_DATASETS: .*digits_det'.* Nothing was removed\. Move it away"):
        make_digits_det(made, DigitsDetSettings(seed=4, train_images=1, val_images=1))
    assert contents(made) == before
    assert {path.name for path in made.iterdir()} - {"elsewhere"} == {".digits_det.lock", "digits_det"}


def test_a_users_own_folder_of_that_name_is_left_alone(tmp_path):
    own = tmp_path / "digits_det" / "train" / "mine.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    with pytest.raises(SetupError, match=r"it has 'train.*', which is not in a manifest of kd_det"):
        make_digits_det(tmp_path, SMALL)
    assert own.read_bytes() == b"mine"


def test_a_killed_removal_is_continued(made, monkeypatch):
    folder = made / "digits_det"
    removed = []
    original = Path.unlink

    def killed(self, **options):
        if len(removed) == 4:
            raise KeyboardInterrupt
        removed.append(self)
        original(self, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", killed)
        remove_made(folder)
    assert len(removed) == 4 and (folder / "manifest.json").exists()
    make_digits_det(made, SMALL)
    assert len(list(image_root(made, "train").iterdir())) == 6


def test_other_settings_replace_the_set(made):
    make_digits_det(made, DigitsDetSettings(seed=3, train_images=5, val_images=4))
    assert len(list(image_root(made, "train").iterdir())) == 5


def test_leftovers_of_a_killed_process_do_no_harm(tmp_path):
    (tmp_path / ".digits_det.partial" / "train").mkdir(parents=True)
    (tmp_path / ".digits_det.partial" / "train" / "stray.png").write_bytes(b"")
    make_digits_det(tmp_path, SMALL)
    assert len(list(image_root(tmp_path, "train").iterdir())) == 6
    assert not (tmp_path / ".digits_det.partial").exists()


def test_processes_may_make_it_at_once(tmp_path):
    make_digits_det(tmp_path / "alone", SMALL)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=make_digits_det, args=(tmp_path / "shared", SMALL)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_pycocotools_reads_it(made):
    for split, images in (("train", 6), ("val", 4)):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(annotation_file(made, split))
        assert len(coco.imgs) == images
        assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list("0123456789")
        for image in coco.imgs.values():
            assert cv2.imread(str(image_root(made, split) / image["file_name"])).shape == (128, 128, 3)
            assert coco.getAnnIds(imgIds=image["id"])
        for annotation in coco.anns.values():
            x, y, width, height = annotation["bbox"]
            assert 0 < annotation["area"] <= width * height
            assert x >= 0
            assert y >= 0
            assert x + width <= 128
            assert y + height <= 128


def test_a_registered_set_is_made_when_detectron2_loads_it(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from kd_det.data import register_digits_det

    register_digits_det(tmp_path, prefix="digits_test", settings=SMALL)
    try:
        assert not list(tmp_path.iterdir())
        records = DatasetCatalog.get("digits_test_val")
        expected = json.loads(annotation_file(tmp_path, "val").read_text())
        assert len(records) == 4
        assert sum(len(record["annotations"]) for record in records) == len(expected["annotations"])
        labels = [item["category_id"] for record in records for item in record["annotations"]]
        assert labels == [item["category_id"] - 1 for item in expected["annotations"]]
        assert MetadataCatalog.get("digits_test_val").thing_classes == list("0123456789")
    finally:
        for split in ("train", "val"):
            DatasetCatalog.remove(f"digits_test_{split}")
            MetadataCatalog.remove(f"digits_test_{split}")


def test_importing_the_package_registers_the_sets_and_makes_nothing(tmp_path):
    code = (
        "import kd_det.data; from detectron2.data import DatasetCatalog, MetadataCatalog; "
        "assert {'digits_det_train', 'digits_det_val'} <= set(DatasetCatalog.list()); "
        "val = MetadataCatalog.get('digits_det_val'); print(val.json_file, val.evaluator_type)"
    )
    environment = {"DETECTRON2_DATASETS": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "digits_det" / "annotations" / "val.json"), "coco"]
    assert not list(tmp_path.iterdir())
