"""The reader of weights: what it reads, and that damaged and hostile files end in one line within 1 GiB."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from classification.models import create_model, teacher_import
from classification.networks import load_weights
from kd_det.checkpoint import load_strictly, local_path, read_checkpoint
from kd_det.common.errors import SetupError
from tests.fuzz.harness import Target, run

KEY = "KD.TEACHER.WEIGHTS"


def training_checkpoint() -> dict:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4])
    base = torch.arange(12.0).view(3, 4)
    return {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
        "iteration": 7, "best": np.float64(0.5), "parameter": nn.Parameter(torch.ones(2)), "view": base.t()[1:],
        "base": base, "flag": torch.tensor([True, False]), "empty": torch.empty(0, 3), "half": torch.ones(2).bfloat16(),
        "dtype": torch.float32, "device": torch.device("cuda:0"), "size": torch.Size([2]), "bytes": b"\x00\xff",
        "state": torch.get_rng_state(), "array": np.arange(3), "seed": 2**127, "nothing": None, "pair": (1, [2.5, "a"]),
    }  # fmt: skip


def assert_same(ours: object, theirs: object) -> None:
    if isinstance(theirs, (torch.Tensor, np.ndarray)):
        ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs.detach())
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs) and getattr(ours, "_metadata", 0) == getattr(theirs, "_metadata", 0)
        for name, value in theirs.items():
            assert_same(ours[name], value)
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is type(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_checkpoint_is_read_as_torch_reads_it(tmp_path, zipped):
    content = training_checkpoint()
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(str(tmp_path / "x.pth"))
    assert_same(read, content)
    assert read["view"].untyped_storage().data_ptr() == read["base"].untyped_storage().data_ptr()


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_kind_and_protocol(tmp_path, protocol):
    arrays = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in ("f2", "f4", ">f8", "i8", "u1", "?")}
    arrays |= {"fortran": np.asfortranarray(arrays["f4"]), "empty": np.empty((0, 4)), "scalar": np.float32(2)}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo"}, protocol))
    read = read_checkpoint(str(tmp_path / "x.pkl"))["model"]
    assert all(np.array_equal(read[name], value) and read[name].shape == value.shape for name, value in arrays.items())


def test_a_caffe2_pickle_of_python_2(tmp_path):
    """Texts and contents are byte strings there."""
    values = np.arange(4, dtype="<f4")

    def text(content: bytes) -> bytes:
        return b"U" + bytes([len(content)]) + content

    dtype = b"cnumpy\ndtype\n(" + text(b"f4") + b"K\x00K\x01tR(K\x03" + text(b"<") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    dtype += b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    array += b"(K\x01(K\x04t" + dtype + b"\x89" + text(values.tobytes()) + b"tb"
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02}" + text(b"blobs") + b"}" + text(b"conv1_w") + array + b"ss.")
    read = read_checkpoint(str(tmp_path / "x.pkl"))
    assert read["__author__"] == "Caffe2" and torch.equal(read["model"]["conv1_w"], torch.arange(4.0))


def zipped(pickled: bytes, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + pickled)
        for name, content in members.items():
            archive.writestr(f"a/data/{name}", content)
    return file.getvalue()


def compressed() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        archive.writestr("a/data/0", bytes(2_000_000))
    return file.getvalue()


def legacy(count: int, shape: int) -> bytes:
    """A tensor of ``shape`` elements over a storage of ``count``, of which the file has one."""
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nU\x010U\x03cpu" + pickle.dumps(count, 2)[2:-1] + b"NtQ"
    size = pickle.dumps(shape, 2)[2:-1]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + b"\x85K\x01\x85\x89NtR"
    content = b"\x80\x02}U\x05model}U\x01w" + tensor + b"ss."
    return head + content + pickle.dumps(["0"], 2) + struct.pack("=qf", count, 0)


ARRAY = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
FLOATS = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4\x89\x88tR"
# Two objects at addresses from the file, in fields of a dtype that claims to hold no objects.
HIDDEN = (
    b"cnumpy\ndtype\nq\x01(X\x03\x00\x00\x00V16\x89\x88tR(K\x03X\x01\x00\x00\x00|NX\x01\x00\x00\x00aX\x01\x00\x00\x00b\x86"
    b"}(X\x01\x00\x00\x00ah\x01(X\x02\x00\x00\x00O8\x89\x88tRK\x00\x86"
    b"X\x01\x00\x00\x00bh\x01(X\x02\x00\x00\x00O8\x89\x88tRK\x08\x86uK\x10K\x01K\x00tb"
)
HOSTILE = {
    "memo index": b"\x80\x02Nr\x00\x00\x00\x80.",
    "long bytes": b"\x80\x05\x8e" + struct.pack("<Q", 2**40) + b".",
    "long bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "long frame": b"\x80\x05\x95" + struct.pack("<Q", 2**40) + b".",
    "object array": b"\x80\x03" + ARRAY + b"(K\x01K\x01\x85cnumpy\ndtype\n(X\x02\x00\x00\x00O8\x89\x88tR\x89]Natb.",
    "hidden objects": b"\x80\x03ccollections\nOrderedDict\n(" + ARRAY + b"(K\x01K\x01\x85" + HIDDEN
    + b"\x89C\x10" + b"A" * 16 + b"tbtR.",
    "buffer of an array": b"\x80\x03cnumpy\nndarray\n(K\x01\x85" + FLOATS + b"C\x04abcdtR.",
    "ordered dict of an array": b"\x80\x03ccollections\nOrderedDict\n(" + ARRAY + b"tR.",
    "a kind that is nested": b"\x80\x02cnumpy\ndtype\n(" + b"N" + b"\x85" * 5000 + b"tR.",
    "a device that is nested": b"\x80\x02ctorch\ndevice\n(" + b"N" + b"\x85" * 5000 + b"tR.",
    "shape beyond the content": b"\x80\x03" + ARRAY + b"(K\x01J\xff\xff\xff\x7f\x85" + FLOATS + b"\x89C\x04abcdtb.",
    "encodings of encodings": b"\x80\x02X\x00\x00\x10\x00" + b"a" * 2**20 + b"q\x000"
    + b"c_codecs\nencode\nq\x010" + b"h\x01h\x00\x85R" * 5000 + b".",
    "parts that repeat each other": b"\x80\x02}X\x05\x00\x00\x00model]q\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"s.",
    "nesting": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "millions of marks": b"(" * 1_500_000,
    "a key that is nested": b"\x80\x02}N" + b"\x85q\x00h\x00\x86" * 40 + b"Ns.",
    "a bytearray of any length": zipped(b"cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R."),
    "compressed members": compressed(),
    "a storage longer than its member": zipped(
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuJ\xff\xff\xff\x7ftQK\x00))\x89NtR.", **{"0": b"abcd"},
    ),
    "a storage longer than the file": legacy(2**28, 1),
    "a tensor longer than its storage": legacy(1, 2**28),
    "code": b"cos\nsystem\n(X\x04\x00\x00\x00truetR.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_little_memory(name):
    def make(rng: random.Random, folder: Path) -> Path:
        path = folder / ("x.pth" if HOSTILE[name].startswith((b"PK", b"\x80\x02\x8a\x0a")) else "x.pkl")
        path.write_bytes(HOSTILE[name])
        return path

    outcome = run(Target(name, make, lambda path: read_checkpoint(str(path), KEY)), cases=1)
    assert outcome.refused == 1 and not outcome.failures, outcome.summary(name)


def test_the_message_does_not_advise_to_run_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return print, ("code of the file was run",)

    torch.save({"model": Harmful()}, tmp_path / "x.pth")
    with pytest.raises(SetupError, match=r"asks for '(__builtin__|builtins)\.print'") as caught:
        read_checkpoint(str(tmp_path / "x.pth"), KEY)
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ([1, 2], "the weights are a list, not a dict"),
        ({"weight": 3}, "entry 'weight' is a int, not a tensor"),
        ({"weight": torch.ones(2), "other": "text"}, "entry 'other' is a str, not a tensor"),
        ({3: torch.ones(2)}, "3 is not a valid name of an entry"),
        ({"weight": torch.tensor([1.0, float("nan"), 2.0])}, "1 of 3 values of the entry 'weight' are non-finite"),
        ({"weight": torch.tensor([float("-inf")]).half()}, "1 of 1 values of the entry 'weight' are non-finite"),
    ],
)
def test_values_that_are_not_weights(tmp_path, model, fault):
    path = tmp_path / "x.pth"
    torch.save({"model": model}, path)
    for read in (
        lambda: load_strictly(nn.Linear(2, 2), str(path), KEY),
        lambda: load_weights(nn.Linear(2, 2), path, model, KEY),
    ):
        if not isinstance(model, list):
            with pytest.raises(SetupError) as caught:
                read()
            assert fault in str(caught.value) and KEY in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(SetupError, match=fault):
        read_checkpoint(str(path), KEY)


def test_importers_refuse_non_finite_weights(tmp_path, monkeypatch):
    import kd_det.pretrained  # noqa: F401

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    state = create_model("resnet8", 100).state_dict()
    state["fc.bias"][3] = float("nan")
    file = io.BytesIO()
    torch.save({"model": state}, file)
    with pytest.raises(SetupError, match=r"a\.tar: 1 of 100 values of the entry 'fc.bias' are non-finite"):
        teacher_import.load_published("resnet8", file.getvalue(), "a.tar")
    torch.save(OrderedDict({"conv1.weight": torch.full((2,), float("inf"))}), tmp_path / "resnet.pth")
    for prefix in ("torchvision", "timm"):
        with pytest.raises(SetupError, match=r"resnet\.pth.*2 of 2 values of the entry 'conv1.weight' are non-finite"):
            local_path(f"{prefix}://{tmp_path}/resnet.pth", "MODEL.WEIGHTS")


@pytest.mark.parametrize("name", ["torchvision://{}/x.pth", "timm://{}/x.pth", "timm://{}/x.safetensors"])
def test_damaged_files_of_other_libraries_are_one_line(tmp_path, monkeypatch, name):
    import kd_det.pretrained  # noqa: F401

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    for suffix in ("pth", "safetensors"):
        (tmp_path / f"x.{suffix}").write_bytes(b"\xff" * 100)
    with pytest.raises(SetupError, match=r"cannot be read: ") as caught:
        local_path(name.format(tmp_path), "MODEL.WEIGHTS")
    assert "\n" not in str(caught.value)
