"""The installer on a small stand-in for the source distribution: no network, nothing installed."""

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import detectron2_patches
import install_detectron2
from detectron2_patches import NOT_COMPILED, PATCHES, Patch
from install_detectron2 import InstallError

SCRIPT = Path(install_detectron2.__file__)
SOURCES = {
    "LICENSE": "Apache License\n",
    "setup.py": "raise SystemExit('upstream setup.py must not run')\n",
    "detectron2/__init__.py": '__version__ = "0.6"\n',
    "detectron2/resize.py": "INTERPOLATION = Image.LINEAR\nOTHER = Image.LINEAR_LIGHT\n",
    "detectron2/projects/__init__.py": "",
    "detectron2/model_zoo/__init__.py": "",
    "detectron2/model_zoo/configs/COCO-Detection/faster_rcnn.yaml": "VERSION: 2\n",
    "detectron2/model_zoo/configs/common/optim.py": "",
    "projects/PointRend/point_rend/__init__.py": "",
    "projects/DeepLab/deeplab/__init__.py": "",
    "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "",
}
PATCH = Patch(
    what="Image.LINEAR",
    reason="for the test",
    files={"detectron2/resize.py": 1},
    pattern=r"\bImage\.LINEAR\b",
    replacement="Image.BILINEAR",
)


def write_sdist(path: Path, sources: dict[str, str], root: str = "pb1-detectron2-0.6") -> str:
    """Writes a .tar.gz and returns its SHA-256."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in sources.items():
            member = tarfile.TarInfo(f"{root}/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """An environment without detectron2 in which pip only notes what it was asked for."""
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(install_detectron2, "installed_detectron2", lambda: None)
    monkeypatch.setattr(install_detectron2, "run_pip", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("sdist")
    sdist = folder / "pb1-detectron2-0.6.tar.gz"
    sha256 = write_sdist(sdist, SOURCES)
    new_files = {"detectron2/new.py": "NEW = True\n"}
    path = install_detectron2.make_wheel(sdist, folder, sha256=sha256, patches=[PATCH], new_files=new_files)
    assert path.name == "detectron2-0.6-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_wheel_holds_the_patched_package(wheel: zipfile.ZipFile):
    text = wheel.read("detectron2/resize.py").decode()
    assert text == "INTERPOLATION = Image.BILINEAR\nOTHER = Image.LINEAR_LIGHT\n"
    assert wheel.read("detectron2/new.py").decode() == "NEW = True\n"
    packaged = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packaged == {
        "detectron2/__init__.py",
        "detectron2/new.py",
        "detectron2/resize.py",
        "detectron2/model_zoo/__init__.py",
        "detectron2/model_zoo/configs/COCO-Detection/faster_rcnn.yaml",
        "detectron2/model_zoo/configs/common/optim.py",
        "detectron2/projects/__init__.py",
        "detectron2/projects/deeplab/__init__.py",
        "detectron2/projects/panoptic_deeplab/__init__.py",
        "detectron2/projects/point_rend/__init__.py",
    }


def test_wheel_metadata(wheel: zipfile.ZipFile):
    metadata = wheel.read("detectron2-0.6.dist-info/METADATA").decode()
    assert re.search(r"^Name: detectron2$", metadata, re.MULTILINE)
    assert re.search(r"^Version: 0\.6$", metadata, re.MULTILINE)
    requirements = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    assert any(requirement.startswith("fvcore") for requirement in requirements)
    # Upper bounds and pins are what keeps the original from being installed beside current libraries.
    assert not [requirement for requirement in requirements if "<" in requirement or "==" in requirement]
    licenses = [name for name in wheel.namelist() if name.endswith("LICENSE")]
    assert [wheel.read(name).decode() for name in licenses] == ["Apache License\n"]


def test_wrong_hash_stops_before_anything_is_installed(tmp_path, no_pip, capsys):
    sdist = tmp_path / "sdist.tar.gz"
    found = write_sdist(sdist, SOURCES)
    assert install_detectron2.main(["--sdist", str(sdist)]) == 1
    message = capsys.readouterr().err
    assert found in message and install_detectron2.SHA256 in message and str(sdist) in message
    assert no_pip == []


def test_missing_sdist_is_named(tmp_path, no_pip, capsys):
    assert install_detectron2.main(["--sdist", str(tmp_path / "absent.tar.gz")]) == 1
    assert "absent.tar.gz is not a file" in capsys.readouterr().err
    assert no_pip == []


@pytest.mark.parametrize(
    ("sources", "count"),
    [
        ({"detectron2/resize.py": "INTERPOLATION = Image.BILINEAR\n"}, 0),
        ({"detectron2/resize.py": "Image.LINEAR, Image.LINEAR\n"}, 2),
        ({"detectron2/elsewhere.py": "Image.LINEAR\n"}, 0),
    ],
    ids=["gone", "one too many", "file gone"],
)
def test_patch_that_does_not_fit_is_named(tmp_path, no_pip, sources, count):
    sdist = tmp_path / "sdist.tar.gz"
    sha256 = write_sdist(sdist, sources)
    with pytest.raises(InstallError, match=rf"'Image\.LINEAR' fits {count} places in detectron2/resize\.py"):
        install_detectron2.make_wheel(sdist, tmp_path, sha256=sha256, patches=[PATCH])
    assert no_pip == []


def test_archive_that_leads_outside_is_refused(tmp_path):
    sdist = tmp_path / "sdist.tar.gz"
    write_sdist(sdist, {"evil.py": ""}, root="../..")
    with pytest.raises(InstallError, match="cannot be unpacked"):
        install_detectron2.unpack(sdist, tmp_path / "tree")
    assert not list(tmp_path.rglob("evil.py"))


def test_local_sdist_is_built_and_installed(tmp_path, monkeypatch, no_pip):
    monkeypatch.setattr(install_detectron2, "make_wheel", lambda sdist, folder: folder / f"{sdist.name}.whl")
    arguments = ["--sdist", "local.tar.gz", "--wheel-dir", str(tmp_path), "--constraint", "pins.txt"]
    assert install_detectron2.main(arguments) == 0
    (call,) = no_pip
    assert call[0] == "install" and call[-3:] == ("-c", "pins.txt", str(tmp_path / "local.tar.gz.whl"))


def test_download_is_held_to_the_hash(tmp_path, no_pip):
    (tmp_path / "pb1-detectron2-0.6.tar.gz").touch()
    install_detectron2.download_sdist(tmp_path)
    (call,) = no_pip
    assert {"download", "--no-deps", "--no-build-isolation", "--require-hashes"} <= set(call)
    requirement = (tmp_path / "requirements.txt").read_text().strip()
    assert requirement == f"pb1-detectron2==0.6 --hash=sha256:{install_detectron2.SHA256}"


def run_script_beside(package: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs the script where ``package`` is the source of the detectron2 that Python finds."""
    (folder / "detectron2").mkdir()
    (folder / "detectron2" / "__init__.py").write_text(package)
    command = [sys.executable, str(SCRIPT), "--sdist", "absent.tar.gz"]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True
    )


def test_present_detectron2_is_left_alone(tmp_path):
    result = run_script_beside('__version__ = "9.8"\n', tmp_path)
    assert result.returncode == 0
    assert f"detectron2 9.8 in {tmp_path / 'detectron2'} is installed already" in result.stdout


def test_present_detectron2_that_cannot_be_imported_is_reported(tmp_path):
    result = run_script_beside("import absent_dependency\n", tmp_path)
    assert result.returncode == 1
    assert "absent_dependency" in result.stderr and "Traceback" not in result.stderr


def test_missing_build_tools_are_named(monkeypatch):
    monkeypatch.setattr(
        install_detectron2.importlib.util, "find_spec", lambda name: None if name == "wheel" else object()
    )
    with pytest.raises(InstallError, match="Install wheel into"):
        install_detectron2.check_build_tools()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x.astype(np.bool)", "x.astype(bool)"),
        ("np.array(x, dtype=np.float)", "np.array(x, dtype=float)"),
        ("np.int64, np.bool_, np.float32, np.integer", "np.int64, np.bool_, np.float32, np.integer"),
    ],
)
def test_numpy_aliases(before, after):
    (patch,) = (patch for patch in PATCHES if "numpy" in patch.what)
    assert re.sub(patch.pattern, patch.replacement, before) == after


def test_compiled_extension_is_missed_only_when_it_is_used():
    module = ModuleType("not_compiled")
    exec(NOT_COMPILED, module.__dict__)
    assert not hasattr(module, "__wrapped__")
    with pytest.raises(ImportError, match=r"detectron2\._C\.box_iou_rotated is needed"):
        module.box_iou_rotated(1, 2)


def test_new_files_are_what_the_patches_refer_to():
    replacements = " ".join(patch.replacement for patch in PATCHES)
    for name in detectron2_patches.NEW_FILES:
        assert Path(name).stem in replacements


def test_installed_detectron2_has_what_the_project_uses():
    from detectron2 import model_zoo
    from detectron2.data import transforms
    from detectron2.evaluation import COCOEvaluator
    from detectron2.export import TracingAdapter

    assert Path(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml")).is_file()
    assert callable(COCOEvaluator) and callable(TracingAdapter)
    extent = transforms.ExtentTransform(src_rect=(0, 0, 4, 4), output_size=(2, 2))
    assert extent.apply_image(np.zeros((4, 4), dtype=np.uint8)).shape == (2, 2)
