#!/usr/bin/env python3
"""Installs detectron2 0.6 as a pure-Python wheel, patched for current Python, numpy, Pillow and torch.

It does nothing if detectron2 can be imported already (a build of upstream's main branch, conda's 0.6). Otherwise
it downloads the source distribution with pip, checks its SHA-256, unpacks it, applies the patches of
detectron2_patches.py, builds a wheel and installs it. torch, setuptools and wheel must be installed already.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2_patches import NEW_FILES, PATCHES, Patch

REQUIREMENT = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

# Upstream keeps these three outside the package and maps them into it when it builds its wheel.
PROJECTS = {
    "projects/PointRend/point_rend": "detectron2/projects/point_rend",
    "projects/DeepLab/deeplab": "detectron2/projects/deeplab",
    "projects/Panoptic-DeepLab/panoptic_deeplab": "detectron2/projects/panoptic_deeplab",
}

# Replaces upstream's setup.py, which compiles C++ sources that the distribution lacks and pins outdated packages.
PYPROJECT = """\
[build-system]
requires = ["setuptools>=64", "wheel"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "0.6"
description = "Detectron2 0.6 without its compiled extension, patched for current libraries"
requires-python = ">=3.10"
dependencies = [
    "torch>=2.4", "torchvision", "numpy", "Pillow>=9.1", "matplotlib", "pycocotools>=2.0.2", "termcolor>=1.1",
    "yacs>=0.1.8", "tabulate", "cloudpickle", "tqdm>4.29", "tensorboard", "fvcore>=0.1.5", "iopath>=0.1.7",
    "omegaconf>=2.1", "hydra-core>=1.1", "black",
]

[tool.setuptools.packages.find]
include = ["detectron2*"]

[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*.yaml", "configs/**/*.py"]
"""


class InstallError(Exception):
    """The installation cannot continue; the message says why and what to do."""


def installed_detectron2() -> str | None:
    """Returns the version and folder of the installed detectron2, or None if there is none."""
    try:
        module = importlib.import_module("detectron2")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "detectron2":
            return None
        raise InstallError(
            f"detectron2 is installed but cannot be imported: {error}. Repair or remove it."
        ) from error
    return f"{module.__version__} in {Path(module.__file__).parent}"


def check_build_tools() -> None:
    """Raises InstallError if a package is missing that a build without isolation needs."""
    missing = [name for name in ("torch", "setuptools", "wheel") if importlib.util.find_spec(name) is None]
    if missing:
        raise InstallError(f"Install {', '.join(missing)} into {sys.prefix} first.")


def run_pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command).returncode:
        raise InstallError(f"pip failed; see its messages above: {' '.join(command)}")


def download_sdist(folder: Path, sha256: str = SHA256) -> Path:
    """Lets pip, under the user's own pip configuration, fetch the source distribution into ``folder``."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{sha256}\n")
    # Not isolated: pip asks the distribution for its metadata, and its setup.py imports torch to answer.
    run_pip(
        "download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", "pb1-detectron2",
        "--require-hashes", "-r", str(requirements), "-d", str(folder),
    )  # fmt: skip
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def check_hash(sdist: Path, sha256: str = SHA256) -> None:
    """Raises InstallError unless the file's SHA-256 is the expected one."""
    if not sdist.is_file():
        raise InstallError(f"{sdist} is not a file; --sdist takes the .tar.gz of {REQUIREMENT}.")
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != sha256:
        raise InstallError(f"{sdist} has SHA-256 {found} instead of {sha256}: not the sources to patch.")


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpacks into ``folder``, refusing links and paths that lead outside; returns the source tree's root."""
    if not hasattr(tarfile, "data_filter"):
        raise InstallError("This Python cannot unpack archives safely; use 3.10.12, 3.11.4, 3.12 or later.")
    try:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise InstallError(f"{sdist} cannot be unpacked: {error}") from error
    (root,) = (path for path in folder.iterdir() if path.is_dir())
    return root


def apply_patch(root: Path, patch: Patch) -> None:
    """Applies one patch; raises InstallError unless each file has exactly the expected number of places."""
    for name, expected in patch.files.items():
        file = root / name
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        patched, count = re.subn(patch.pattern, patch.replacement, text, flags=re.MULTILINE)
        if count != expected:
            raise InstallError(f"The patch '{patch.what}' fits {count} places in {name} instead of {expected}.")
        file.write_text(patched, encoding="utf-8")


def patch_tree(root: Path, patches: Sequence[Patch] = PATCHES, new_files: Mapping[str, str] = NEW_FILES) -> None:
    """Turns the unpacked distribution into a tree from which setuptools builds a pure-Python wheel."""
    for patch in patches:
        apply_patch(root, patch)
    for name, text in new_files.items():
        (root / name).write_text(text, encoding="utf-8")
    for source, target in PROJECTS.items():
        shutil.move(root / source, root / target)
    for relic in ("setup.py", "setup.cfg"):
        (root / relic).unlink(missing_ok=True)
    (root / "pyproject.toml").write_text(PYPROJECT)


def build_wheel(root: Path, folder: Path) -> Path:
    """Builds the wheel of the patched tree into ``folder`` and returns its path."""
    run_pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(root))
    (wheel,) = folder.glob("detectron2-0.6-*.whl")
    return wheel


def make_wheel(
    sdist: Path,
    wheel_dir: Path,
    *,
    sha256: str = SHA256,
    patches: Sequence[Patch] = PATCHES,
    new_files: Mapping[str, str] = NEW_FILES,
) -> Path:
    """Checks, unpacks, patches and builds ``sdist``; returns the wheel's path. Nothing is installed."""
    check_hash(sdist, sha256)
    with tempfile.TemporaryDirectory() as work:
        root = unpack(sdist, Path(work))
        patch_tree(root, patches, new_files)
        return build_wheel(root, wheel_dir)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sdist", type=Path, help=f"a local {REQUIREMENT} .tar.gz instead of a download")
    parser.add_argument("--wheel-dir", type=Path, help="keep the wheel in this folder")
    parser.add_argument("--constraint", type=Path, help="pip constraints for the dependencies")
    return parser.parse_args(argv)


def install(arguments: argparse.Namespace) -> None:
    present = installed_detectron2()
    if present:
        print(f"detectron2 {present} is installed already; nothing to do.")
        return
    check_build_tools()
    with tempfile.TemporaryDirectory() as work:
        sdist = arguments.sdist or download_sdist(Path(work))
        wheel_dir = arguments.wheel_dir or Path(work)
        wheel_dir.mkdir(parents=True, exist_ok=True)
        wheel = make_wheel(sdist, wheel_dir)
        constraint = ["-c", str(arguments.constraint)] if arguments.constraint else []
        run_pip("install", "--quiet", "--no-build-isolation", *constraint, str(wheel))
    importlib.invalidate_caches()
    print(f"Installed detectron2 {installed_detectron2()}")


def main(argv: Sequence[str] | None = None) -> int:
    try:
        install(parse_arguments(argv))
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
