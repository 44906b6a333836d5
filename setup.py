"""Packages kd_det and classification. detectron2 is a step of its own: tools/install_detectron2.py."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "kd_det" / "__init__.py").read_text(), re.MULTILINE)[1]

setup(
    name="kd_det",
    version=VERSION,
    description="Knowledge distillation for Detectron2 detectors and image classifiers",
    packages=find_packages(include=["kd_det", "kd_det.*", "classification", "classification.*"]),
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
        # Not opencv-python: nothing here opens a window, and that one cannot be imported without libGL,
        # as on most servers. Install one of the two, never both: they share their files.
        "opencv-python-headless",
        "matplotlib",
        "scikit-learn",
        "tensorboard",
        "timm>=1.0.12",
        "accelerate>=1.0",
        "torchmetrics>=1.4",
        "tqdm",
        "tabulate",
    ],
    extras_require={"dev": ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy"]},
)
