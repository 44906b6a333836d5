"""The wheel in an environment of its own, used from an empty folder: the command, the shipped configurations, and a
term of one's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.modeling import build_model

import kd_det.modeling  # noqa: F401  (registers the models)
from kd_det.config import load_config
from tests.conftest import ROOT
from tests.docs.recipes import read_recipes
from tests.mini_coco import annotation_file

SOURCES = ("kd_det", "classification", "configs", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
TINY = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 1e-6]
TINY += ["TEST.EVAL_PERIOD", 0, "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", 96]
CLASSES = ["MODEL.ROI_HEADS.NUM_CLASSES", 80, "DATASETS.TRAIN", ("coco_2017_train",)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files beside setup.py
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        shutil.copytree(path, source / name) if path.is_dir() else shutil.copy(path, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", folder, source], check=True)
    (path,) = folder.glob("kd_det-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """``installed(*command)`` runs a command of a fresh environment that has the wheel and sees this one's packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], capture_output=True, text=True
    )
    others = [path for path in sys.path if path.endswith("-packages")] + [str(Path(detectron2.__file__).parents[1])]
    Path(found.stdout.strip(), "others.pth").write_text("\n".join(others))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", "--force-reinstall", wheel], check=True)

    def run(*command: object, cwd: Path, **environment: object) -> subprocess.CompletedProcess[str]:
        added = {name: str(value) for name, value in environment.items()}
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        line = [str(folder / "bin" / str(command[0])), *map(str, command[1:])]
        environment = {**inherited, **added}
        return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_the_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"kd_det", f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info"}
    files = [path for kind in ("coco", "digits_det") for path in ROOT.glob(f"configs/{kind}/*")]
    shipped = {path.relative_to(ROOT).as_posix() for path in files}
    assert {name.removeprefix("kd_det/") for name in names if "/configs/" in name} == shipped
    assert "kd_det/py.typed" in names and any(name.endswith("/LICENSE") for name in names)


def test_lists_without_detectron2_and_from_the_package(installed, tmp_path):
    listed = installed("kd-det", "list", "configs", "dkd_r101", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr[-2000:]
    expected = ["configs:", *(f"  coco/{name}dkd_r101_{s}.yaml" for name in ("", "sdd_") for s in ("r18", "r50"))]
    assert listed.stdout.splitlines() == expected
    refused = installed("kd-det", "bench", "classification", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr == (
        "error: the package classification is not part of the wheel. Run this command in a clone of kd_det.\n"
    )


def test_checks_a_data_set(installed, coco, tmp_path):
    files = f"mine={annotation_file(coco, 'train2017')},{coco / 'coco' / 'train2017'}"
    checked = installed("kd-det", "check-data", "--dataset", files, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr[-2000:]
    assert "mine: 4 images, 0 of them without objects; 12 objects in 80 classes" in checked.stdout


def test_trains_by_name_with_a_term_of_ones_own_in_two_processes(installed, coco, tmp_path):
    torch.manual_seed(0)
    teacher = build_model(load_config("digits_det/teacher.yaml", ["MODEL.DEVICE", "cpu", *CLASSES]))
    torch.save({"model": teacher.state_dict()}, tmp_path / "teacher.pth")
    (tmp_path / "my_terms.py").write_text(read_recipes("extend.md")["A term"].files["my_terms.py"])
    (tmp_path / "own.yaml").write_text("KD: {TERMS: ['dkd', 'p3'], P3: {WEIGHT: 0.25}}\nDATASETS: {TEST: []}")
    result = installed(
        "python", "-m", "kd_det", "train", "--num-gpus", 2, "--import", "my_terms.py",
        "--config-file", "digits_det/dkd.yaml", "own.yaml", *TINY, *CLASSES, "OUTPUT_DIR", "out",
        "KD.TEACHER.WEIGHTS", "teacher.pth", "KD.TEACHER.OPTS", CLASSES,
        cwd=tmp_path, DETECTRON2_DATASETS=coco,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    checkpoint = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 1 and not any("adapt" in name for name in checkpoint["model"])
    assert '"loss_p3"' in (tmp_path / "out" / "metrics.json").read_text()
    assert "WEIGHT: 0.25" in (tmp_path / "out" / "config.yaml").read_text()
