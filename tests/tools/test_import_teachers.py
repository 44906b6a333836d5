"""tools/import_teachers.py: archives and folders in the published layout, their accuracy, and what is refused."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from classification.models import create_model
from classification.models import teacher_import as module
from kd_det.common.errors import SetupError
from tests.tools.commands import run_door

FILES = {"resnet8x4": "resnet8x4_vanilla/ckpt_epoch_240.pth", "wrn_16_1": "wrn_16_1_vanilla/ckpt_epoch_240.pth"}


def checkpoint(name: str, num_classes: int = 100, prefix: str = "", legacy: bool = False) -> bytes:
    """A random network as the published code saves it, ``legacy``: as PyTorch before 1.6 did."""
    torch.manual_seed(len(name))
    state = create_model(name, num_classes).state_dict()
    content = {
        "epoch": 240,
        "model": {prefix + key: value for key, value in state.items()},
        "accuracy": torch.tensor([76.5]),
        "best_acc": np.float64(76.5),
    }
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def expected(name: str) -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO(checkpoint(name)), weights_only=False)["model"]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, path in FILES.items():
        file = tmp_path / "cifar_teachers" / path
        file.parent.mkdir(parents=True)
        file.write_bytes(checkpoint(name, legacy=name == "wrn_16_1"))
    (tmp_path / "cifar_teachers" / "README.md").write_text("the teachers\n")
    return tmp_path / "cifar_teachers"


def pack(folder: Path, kind: str) -> Path:
    path = folder.parent / f"teachers.{kind}"
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(folder.parent))
    else:
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
            for file in files:
                archive.add(file, file.relative_to(folder.parent))
    return path


def test_the_command_line(folder, tmp_path):
    result = run_door("import_teachers", pack(folder, "tar"), "--no-eval", "--output", tmp_path / "output")
    assert result.returncode == 0, result.stderr[-2000:]
    short = {"resnet8x4": "res8x4", "wrn_16_1": "wrn_16_1"}
    for name, path in FILES.items():
        written = tmp_path / "output" / "cifar100" / f"vanilla_{short[name]}" / "model.pth"
        assert f"cifar_teachers/{path} -> {written}" in result.stdout
        content = torch.load(written, weights_only=True)
        weights = content.pop("model")
        assert content == {"name": name, "num_classes": 100, "data": "cifar100"}
        assert list(weights) == list(expected(name))
        assert all(torch.equal(weights[key], value) for key, value in expected(name).items())


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "folder"])
def test_every_kind_of_archive(kind, folder):
    path = folder if kind == "folder" else pack(folder, kind)
    teachers = list(module.published_teachers(path))
    assert [teacher.name for teacher in teachers] == list(FILES)
    for teacher in teachers:
        assert not teacher.model.training
        assert torch.equal(next(teacher.model.parameters()), next(iter(expected(teacher.name).values())))


@pytest.mark.parametrize("written", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_scalars_of_both_major_versions(written):
    content = checkpoint("resnet8", legacy=True)  # no checksum, and names end with a line break: they can be replaced
    for module_name in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        content = content.replace(module_name + b"\n", written + b"\n")
    assert written in content
    module.load_published("resnet8", content, "file")


def test_the_prefix_of_data_parallel():
    model = module.load_published("resnet8", checkpoint("resnet8", prefix="module."), "file")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected("resnet8").items())


def test_a_file_of_another_model_names_the_first_keys():
    message = r"archive: a.pth is not a resnet8 for 100 classes. The first keys that differ: layer1.1.conv1.weight "
    with pytest.raises(SetupError, match=message + r"\(has 16x16x3x3, resnet8 lacks it"):
        module.load_published("resnet8", checkpoint("resnet14"), "archive: a.pth")
    message = r"The first keys that differ: fc.weight \(has 10x64, resnet8 has 100x64\), fc.bias"
    with pytest.raises(SetupError, match=message):
        module.load_published("resnet8", checkpoint("resnet8", num_classes=10), "file")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_file(legacy):
    with pytest.raises(SetupError, match="file is not a checkpoint, or is truncated"):
        module.load_published("resnet8", checkpoint("resnet8", legacy=legacy)[:5000], "file")


class Harmful:
    def __reduce__(self):
        return print, ("code of the file was run",)


def test_code_in_a_file_is_not_run(capsys):
    file = io.BytesIO()
    torch.save({"model": Harmful()}, file)
    with pytest.raises(SetupError, match="file is not a checkpoint"):
        module.load_published("resnet8", file.getvalue(), "file")
    assert "was run" not in capsys.readouterr().out


def test_a_file_without_weights():
    file = io.BytesIO()
    torch.save({"state": 1}, file)
    with pytest.raises(SetupError, match='file has no weights under "model"'):
        module.load_published("resnet8", file.getvalue(), "file")


def test_files_that_are_not_archives(folder, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no archive")
    with pytest.raises(SetupError, match=r"notes.txt is not a .tar or .zip archive"):
        list(module.published_teachers(text))
    for kind in ("tar", "tar.gz", "zip"):
        whole = pack(folder, kind)
        cut = tmp_path / f"cut.{kind}"
        cut.write_bytes(whole.read_bytes()[:300_000])
        with pytest.raises(SetupError, match="truncated"):
            list(module.published_teachers(cut))


def test_nothing_recognised(tmp_path):
    (tmp_path / "resnet9_vanilla").mkdir()
    (tmp_path / "resnet9_vanilla" / "ckpt_epoch_240.pth").write_bytes(b"")
    with pytest.raises(SetupError, match="has no file of a known model, such as resnet32x4_vanilla"):
        list(module.published_teachers(tmp_path))


def test_two_files_of_one_model(folder):
    (folder / FILES["wrn_16_1"]).with_name("ckpt_epoch_200.pth").write_bytes(checkpoint("wrn_16_1"))
    with pytest.raises(SetupError, match=r"two files of wrn_16_1: .*ckpt_epoch_200.pth and .*ckpt_epoch_240.pth"):
        list(module.published_teachers(folder))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("save/models/resnet32x4_vanilla/ckpt_epoch_240.pth", "resnet32x4"),
        ("resnet32_vanilla/ckpt_epoch_240.pth", "resnet32"),
        ("wrn_40_2_vanilla/ckpt_epoch_240.pth", "wrn_40_2"),
        ("vgg13,baseline/student_best", "vgg13"),
        ("teachers/ResNet50_best.pth", "ResNet50"),
        ("resnet32x4_vanilla/._ckpt_epoch_240.pth", None),
        ("resnet32x4_vanilla/log.txt", None),
        ("resnet1202_vanilla/ckpt_epoch_240.pth", None),
    ],
)
def test_the_model_by_the_path(path, name):
    assert module._model_of(path) == name


def test_the_accuracy(monkeypatch, tmp_path):
    """A stand-in for the network knows each image by its first pixel, and is right about three of four."""

    class Data:
        data = np.zeros((1200, 32, 32, 3), dtype=np.uint8)
        targets = [i % 100 for i in range(1200)]  # noqa: RUF012

        def __init__(self, root: str, train: bool) -> None:
            assert root == str(tmp_path) and train is False
            self.data[:, 0, 0, 0] = [i % 100 for i in range(1200)]

    def model(images: torch.Tensor) -> torch.Tensor:
        pixels = (images[:, 0, 0, 0] * 0.2675 + 0.5071) * 255
        answers = pixels.round().long()
        return torch.nn.functional.one_hot(torch.where(answers % 4 == 0, 99, answers), 100).float()

    monkeypatch.setattr("torchvision.datasets.CIFAR100", Data)
    assert module.cifar100_accuracy(model, tmp_path) == 75.0


def test_no_data_to_evaluate_on(tmp_path):
    with pytest.raises(SetupError, match=r"--data-root .* has no intact cifar-100-python/; .*--no-eval"):
        module.cifar100_accuracy(create_model("resnet8", 100), tmp_path)


def test_a_member_larger_than_a_teacher_is_not_read(folder, monkeypatch):
    monkeypatch.setattr("classification.models.archive.MAX_FILE", 6 * 2**20)
    (folder / FILES["wrn_16_1"]).write_bytes(bytes(7 * 2**20))
    for kind in ("tar", "tar.gz", "zip", "folder"):
        path = folder if kind == "folder" else pack(folder, kind)
        with pytest.raises(SetupError, match=r"wrn_16_1_vanilla/.*' has 7 MiB; a teacher has at most 6"):
            list(module.published_teachers(path))


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "tar.bz2", "zip"])
def test_an_archive_that_unpacks_to_much_more_is_refused(kind, tmp_path):
    path = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(3):
                archive.writestr(f"log{number}.txt", bytes(30_000_000))
    else:
        member = tarfile.TarInfo("log.txt")
        member.size = 3 * 2**30  # and nothing of it is there: the size is checked before
        with tarfile.open(path, f"w:{kind[4:]}") as archive:
            archive.addfile(member)
    with pytest.raises(SetupError, match=r"would unpack to \d+ MiB or more, over 10 times its size"):
        list(module.published_teachers(path))


def test_a_header_of_any_length_is_not_read(tmp_path):
    member = tarfile.TarInfo("resnet8_vanilla/x.pth")
    member.pax_headers = {"comment": "x" * 2**21}
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)
    with pytest.raises(SetupError, match=r"x.tar.gz is not a .tar or .zip archive, or is truncated: it has a header"):
        list(module.published_teachers(tmp_path / "x.tar.gz"))


def test_a_member_with_more_than_it_declares(folder, tmp_path):
    path = pack(folder, "zip")
    content = path.read_bytes()
    size = len(checkpoint("resnet8x4")).to_bytes(4, "little")
    path.write_bytes(content.replace(size, (1000).to_bytes(4, "little")))
    with pytest.raises(SetupError, match=r"not a \.tar or \.zip archive, or is truncated"):
        list(module.published_teachers(path))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("missing.tar", "error: {} does not exist."),
        ("teachers", "error: {}: resnet8_vanilla/x.pth: 3 of 3 values of the entry 'fc.bias' are non-finite"),
    ],
)
def test_the_command_line_refuses_in_one_line(tmp_path, capsys, name, error):
    from classification.studies.commands import import_teachers


    folder = tmp_path / "teachers" / "resnet8_vanilla"
    folder.mkdir(parents=True)
    torch.save({"model": {"fc.bias": torch.full((3,), float("nan"))}}, folder / "x.pth")
    with pytest.raises(SystemExit) as ended:
        import_teachers([str(tmp_path / name), "--no-eval"])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith(error.format(tmp_path / name))
