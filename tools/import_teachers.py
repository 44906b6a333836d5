#!/usr/bin/env python
"""Imports the published CIFAR-100 teachers (RepDistiller's, mdistiller's "cifar_teachers") as files of ours.

python tools/import_teachers.py cifar_teachers.tar --data-root datasets

Writes output/cifar100/vanilla_NAME/model.pth, which TEACHER.WEIGHTS cifar100/vanilla_NAME finds, and prints each one's
accuracy. Exit code 2 if the archive or a file in it is not what it should be.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from classification.models.teacher_import import cifar100_accuracy, published_teachers, save_teacher
from kd_det.common.errors import one_line_errors


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="the downloaded .tar or .zip, or the folder it was unpacked to")
    parser.add_argument("--data-root", type=Path, default=Path("datasets"), help="the folder of cifar-100-python/")
    parser.add_argument("--no-eval", action="store_true", help="do not evaluate; CIFAR-100 is not needed")
    parser.add_argument("--output", type=Path, default=Path("output"), help="default: output")
    args = parser.parse_args(arguments)
    with one_line_errors():
        for teacher in published_teachers(args.archive):
            accuracy = "" if args.no_eval else f"{cifar100_accuracy(teacher.model, args.data_root):6.2f} % top-1  "
            path = save_teacher(teacher, args.output)
            print(f"{teacher.name:12} {accuracy}{teacher.source} -> {path}", flush=True)


if __name__ == "__main__":
    main()
