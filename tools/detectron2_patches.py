"""The changes that detectron2 0.6 needs to run on current Python, numpy, Pillow and torch.

We found them by importing and using the package. None changes a result. The installer (``install_detectron2.py``)
applies the table and stops if an entry does not fit the sources exactly.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patch:
    """One textual change: ``pattern`` (a regular expression) becomes ``replacement``.

    ``files`` maps a path inside the source tree to the number of times the pattern must occur there.
    """

    what: str
    reason: str
    files: dict[str, int]
    pattern: str
    replacement: str


NOT_COMPILED = '''\
"""Replaces ``detectron2._C``, the compiled extension that this pure-Python wheel does not have."""


def __getattr__(name):
    if name.startswith("__"):  # introspection asks every module for such names and expects AttributeError
        raise AttributeError(name)
    raise ImportError(
        f"detectron2._C.{name} is needed, but this detectron2 was installed without its compiled extension. "
        "Rotated boxes and deformable convolutions on the GPU need a detectron2 that is built from source."
    )
'''

# Files that the patches below refer to and that the distribution lacks.
NEW_FILES = {"detectron2/not_compiled.py": NOT_COMPILED}

PATCHES = (
    Patch(
        what="numpy's aliases of builtin types",
        reason="numpy 1.24 removed np.int, np.float, np.bool, np.str and np.object",
        files={
            "detectron2/data/build.py": 2,
            "detectron2/data/datasets/pascal_voc.py": 1,
            "detectron2/evaluation/pascal_voc_evaluation.py": 2,
            "detectron2/evaluation/sem_seg_evaluation.py": 7,
            "detectron2/structures/masks.py": 3,
            "detectron2/utils/video_visualizer.py": 1,
            "detectron2/utils/visualizer.py": 3,
        },
        pattern=r"\bnp\.(bool|int|float|str|object)\b",
        replacement=r"\1",
    ),
    Patch(
        what="Image.LINEAR",
        reason="Pillow 10 removed this alias of Image.BILINEAR",
        files={"detectron2/data/transforms/transform.py": 1},
        pattern=r"\bImage\.LINEAR\b",
        replacement="Image.BILINEAR",
    ),
    Patch(
        what="import of pkg_resources",
        reason="current setuptools has no pkg_resources, a fresh Python 3.12 environment no setuptools",
        files={"detectron2/model_zoo/model_zoo.py": 1},
        pattern=r"^import pkg_resources$",
        replacement="from importlib import resources",
    ),
    Patch(
        what="use of pkg_resources",
        reason="follows the import",
        files={"detectron2/model_zoo/model_zoo.py": 1},
        pattern=r'pkg_resources\.resource_filename\(\s*"detectron2\.model_zoo", (os\.path\.join\(.*\))\s*\)',
        replacement=r'str(resources.files("detectron2.model_zoo") / \1)',
    ),
    Patch(
        what="imports of the compiled extension in layers",
        reason="no C++ sources to compile; only rotated boxes and GPU deformable convolutions need them",
        files={
            "detectron2/layers/deform_conv.py": 1,
            "detectron2/layers/roi_align_rotated.py": 1,
            "detectron2/layers/rotated_boxes.py": 1,
        },
        pattern=r"^from detectron2 import _C$",
        replacement="from detectron2 import not_compiled as _C",
    ),
    Patch(
        what="import of the compiled COCO evaluation",
        reason="without the extension COCOEvaluator uses pycocotools, as in upstream's later versions",
        files={"detectron2/evaluation/coco_evaluation.py": 1},
        pattern=r"^from detectron2\.evaluation\.fast_eval_api import COCOeval_opt\n",
        replacement="",
    ),
    Patch(
        what="use of the compiled COCO evaluation",
        reason="follows the import",
        files={"detectron2/evaluation/coco_evaluation.py": 1},
        pattern=r"\(COCOeval_opt if use_fast_impl else COCOeval\)",
        replacement="COCOeval",
    ),
    Patch(
        what="label of the compiled COCO evaluation",
        reason="the log must not call pycocotools' figures unofficial",
        files={"detectron2/evaluation/coco_evaluation.py": 1},
        pattern=r'"unofficial" if self\._use_fast_impl else "official"',
        replacement='"official"',
    ),
    Patch(
        what="import of the caffe2 exporter",
        reason="torch no longer ships caffe2; TracingAdapter, next to it, does not need it",
        files={"detectron2/export/__init__.py": 1},
        pattern=r"^from \.api import \*\n",
        replacement="",
    ),
    Patch(
        what="Logger.warn",
        reason="deprecated since Python 3.3 and removed for a while in 3.13",
        files={
            "detectron2/data/datasets/coco.py": 2,
            "detectron2/engine/defaults.py": 1,
            "detectron2/evaluation/coco_evaluation.py": 2,
            "detectron2/evaluation/lvis_evaluation.py": 2,
            "detectron2/evaluation/sem_seg_evaluation.py": 2,
        },
        pattern=r"logger\.warn\(",
        replacement="logger.warning(",
    ),
    Patch(
        what="torch.meshgrid without indexing",
        reason="torch announces that it will require the argument, and warns until then",
        files={"detectron2/modeling/anchor_generator.py": 1},
        pattern=r"torch\.meshgrid\(shifts_y, shifts_x\)",
        replacement='torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
    ),
    Patch(
        what="torch.cuda.amp.GradScaler",
        reason="torch 2.4 deprecated it for torch.amp.GradScaler",
        files={"detectron2/engine/train_loop.py": 1},
        pattern=r"from torch\.cuda\.amp import GradScaler(\s+)grad_scaler = GradScaler\(\)",
        replacement=r'from torch.amp import GradScaler\1grad_scaler = GradScaler("cuda")',
    ),
    Patch(
        what="import of torch.cuda.amp.autocast",
        reason="torch 2.4 deprecated it for torch.autocast",
        files={"detectron2/engine/train_loop.py": 1},
        pattern=r"from torch\.cuda\.amp import autocast$",
        replacement="from torch import autocast",
    ),
    Patch(
        what="use of torch.cuda.amp.autocast",
        reason="follows the import",
        files={"detectron2/engine/train_loop.py": 1},
        pattern=r"with autocast\(\):",
        replacement='with autocast("cuda"):',
    ),
    Patch(
        what="launch refuses machines without a GPU",
        reason="upstream main launches several processes on the CPU too",
        files={"detectron2/engine/launch.py": 1},
        pattern=r'    assert torch\.cuda\.is_available\(\), "cuda is not available[^\n]*\n',
        replacement="",
    ),
    Patch(
        what="launch always uses NCCL",
        reason="NCCL is for GPUs; gloo is torch's backend for CPUs",
        files={"detectron2/engine/launch.py": 1},
        pattern=r'backend="NCCL"',
        replacement='backend="NCCL" if torch.cuda.is_available() else "GLOO"',
    ),
    Patch(
        what="launch always picks a GPU",
        reason="as above",
        files={"detectron2/engine/launch.py": 1},
        pattern=(
            r"    assert num_gpus_per_machine <= torch\.cuda\.device_count\(\)\n"
            r"    torch\.cuda\.set_device\(local_rank\)"
        ),
        replacement=(
            "    if torch.cuda.is_available():\n"
            "        assert num_gpus_per_machine <= torch.cuda.device_count()\n"
            "        torch.cuda.set_device(local_rank)"
        ),
    ),
)
