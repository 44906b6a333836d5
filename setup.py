"""Packages kd_det. Detectron2 is installed separately: tools/install_detectron2.py.

The wheel has kd_det with the configurations that detection uses. ``classification`` runs in a clone: only an editable
installation includes it.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "kd_det" / "__init__.py").read_text(), re.MULTILINE)[1]
CONFIGS = ("coco", "digits_det")

CLASSIFICATION = ["accelerate>=1.0", "torchmetrics>=1.4", "tqdm"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material", "mkdocstrings[python]"]
EXTRAS = {
    # For --format onnx of kd-det export.
    "export": ["onnx", "onnxruntime"],
    # For WANDB True in classification. TensorBoard's files are always written and need no extra.
    "loggers": ["wandb"],
    # For make docs.
    "docs": DOCS,
    # For work in a clone: classification, and everything that make runs.
    "dev": [*CLASSIFICATION, *DOCS, "pytest", "pytest-xdist", "hypothesis", "ruff", "mypy"],
}


class BuildWithConfigs(build_py):
    """Copies the configurations into the package. In the repository they are only in configs/."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        package = Path(self.build_lib, "kd_det")
        shutil.rmtree(package, ignore_errors=True)  # an earlier build may have left modules that no longer exist
        super().run()
        for name in CONFIGS:
            shutil.copytree(ROOT / "configs" / name, package / "configs" / name)


class EditableClone(editable_wheel):
    """Makes ``classification`` importable too."""

    def run(self) -> None:
        self.distribution.packages += find_packages(include=["classification", "classification.*"])
        super().run()


setup(
    name="kd_det",
    version=VERSION,
    description="Knowledge distillation for Detectron2 detectors and image classifiers",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["kd_det", "kd_det.*"]),
    package_data={"kd_det": ["py.typed"]},
    entry_points={"console_scripts": ["kd-det = kd_det.cli:main"]},
    cmdclass={"build_py": BuildWithConfigs, "editable_wheel": EditableClone},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "numpy",
        "Pillow",
        "fvcore",
        "iopath",
        "yacs",
        "PyYAML",
        "filelock",
        "pycocotools",
        "faster-coco-eval",
        # Not opencv-python: it cannot be imported without libGL, which most servers lack, and we open no windows.
        # Install only one of the two: they share files.
        "opencv-python-headless",
        "matplotlib",
        "scikit-learn",
        "scipy",
        "tensorboard",
        "timm>=1.0.12",
        "safetensors>=0.5",
        "tabulate",
    ],
    extras_require=EXTRAS,
)
