"""The commands ``kd-det study converged``, ``kd-det study labels`` and ``kd-det study foreign``.

Detectron2 is imported only inside the functions, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from kd_det.common.command_line import command_parser
from kd_det.common.errors import one_line_errors
from kd_det.common.processes import forwarding_sigterm
from kd_det.studies.commands import GO_ON


def study_converged(arguments: Sequence[str] | None = None) -> None:
    """``kd-det study converged``: what distillation gives a student that was trained alone for long."""
    from kd_det.studies.converged import METHODS, SHARE, ConvergedStudy
    from kd_det.studies.scenes import SCENES, TRAIN_IMAGES

    parser = command_parser(
        "kd-det study converged",
        "Trains a teacher and a small student on the digits scenes, alone, in rounds that double the training until\n"
        "a round gains little; then the student before its last round for a short one: alone, alone for as long as\n"
        "the slowest method takes, and with each method. Choices look at tuning scenes that are not reported. Writes\n"
        "a results file, of which tools/make_tables.py makes MODEL_ZOO.md. The same command goes on where it was\n"
        "interrupted.",
        "kd-det study converged --seeds 5 --jobs 2",
        "kd-det study converged --also nkd --share 1 --scenes hard --output-dir output/converged_hard",
        "kd-det study converged --search-only --student-opts MODEL.RESNETS.WIDTH_PER_GROUP 4",
    )
    methods = f"of the digits benchmark, or KD terms joined by + (default: {' '.join(METHODS)})"
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME", help=methods)
    parser.add_argument("--also", nargs="+", default=[], metavar="NAME", help="methods beside those of --methods")
    each = "iterations of the student alone and with each method, after its rounds (default 480)"
    parser.add_argument("--iterations", type=int, default=480, metavar="N", help=each)
    parser.add_argument("--scenes", default="usual", metavar="KIND", help=f"{' or '.join(SCENES)} (default usual)")
    images = f"scenes that the teacher learns (default {TRAIN_IMAGES})"
    parser.add_argument("--train-images", type=int, default=TRAIN_IMAGES, metavar="N", help=images)
    share = f"share of these scenes that the student has labels of, up to 1 (default {SHARE:g})"
    parser.add_argument("--share", type=float, default=SHARE, help=share)
    for network, default in (("student", "an eighth"), ("teacher", "a quarter")):
        option = f"overrides of the {network}'s configuration (it is a ResNet-50 FPN with {default} of the channels)"
        parser.add_argument(f"--{network}-opts", nargs="+", default=[], metavar="KEY VALUE", help=option)
    option = "overrides of the runs with a method"
    parser.add_argument("--method-opts", nargs="+", default=[], metavar="KEY VALUE", help=option)
    first = "iterations of the first round (default 800)"
    parser.add_argument("--first", type=int, default=800, metavar="N", help=first)
    for option, whose, longest in (("--most", "student", 25600), ("--teacher-most", "teacher", 12800)):
        most = f"of all rounds of the {whose}, at most (default {longest})"
        parser.add_argument(option, type=int, default=longest, metavar="N", help=most)
    gain = "a round that gains less AP is the last (default 1.0)"
    parser.add_argument("--gain", type=float, default=1.0, metavar="AP", help=gain)
    gap = "AP that the teacher must have above the student alone (default 5.0)"
    parser.add_argument("--gap", type=float, default=5.0, metavar="AP", help=gap)
    parser.add_argument("--search-only", action="store_true", help="stop after the rounds alone")
    _add_common(parser, "output/study_converged", "results/digits_det_converged.json")

    def run(args: argparse.Namespace, command: str) -> bool:
        study = ConvergedStudy(
            args.output_dir, args.results, tuple(dict.fromkeys([*args.methods, *args.also])), args.seeds, args.jobs,
            args.device, args.iterations, args.scenes, args.train_images, args.share, tuple(args.student_opts),
            tuple(args.teacher_opts), tuple(args.method_opts), args.first, args.most, args.teacher_most, args.gain,
            args.gap,
        )  # fmt: skip
        study.run(command, search_only=args.search_only)
        return not args.search_only

    _run("converged", parser, arguments, run)


def study_labels(arguments: Sequence[str] | None = None) -> None:
    """``kd-det study labels``: a student on a few labels and a teacher's knowledge of the other images."""
    from kd_det.studies.digits_det import SCHEDULES
    from kd_det.studies.few_labels import FewLabelsStudy

    parser = command_parser(
        "kd-det study labels",
        "Trains a student on the digits scenes with a tenth of the labels; the same with the teacher's knowledge of\n"
        "these images, and of the others too, unlabelled; and with all labels. Writes a results file, of which\n"
        "tools/make_tables.py makes MODEL_ZOO.md. The same command goes on where it was interrupted.",
        "kd-det study labels --seeds 5 --jobs 2",
        "kd-det study labels --seeds 5 --schedule long --teacher-labels few --output-dir output/few_long \\",
        "    --results results/digits_det_few_long.json",
    )
    fraction = "share of the images that keep their labels (default 0.1)"
    parser.add_argument("--fraction", type=float, default=0.1, help=fraction)
    parser.add_argument("--schedule", default="demo", metavar="NAME", help=f"{' or '.join(SCHEDULES)} (default demo)")
    teacher = "what the teacher is trained on: all labels, or the few (default all)"
    parser.add_argument("--teacher-labels", default="all", metavar="WHICH", help=teacher)
    _add_common(parser, "output/study_labels", "results/digits_det_few_labels.json")
    opts = "KEY VALUE pairs for the runs with unlabelled images, such as KD.UNLABELED.THRESHOLD 0.7"
    parser.add_argument("opts", nargs=argparse.REMAINDER, help=opts)

    def run(args: argparse.Namespace, command: str) -> bool:
        study = FewLabelsStudy(
            args.output_dir, args.results, args.seeds, args.jobs, args.device, args.schedule, args.fraction,
            args.teacher_labels, tuple(args.opts),
        )  # fmt: skip
        study.run(command)
        return True

    _run("labels", parser, arguments, run)


def study_foreign(arguments: Sequence[str] | None = None) -> None:
    """``kd-det study foreign``: the predictions of another library's detector teach a student."""
    from kd_det.studies.digits_det import SCHEDULES
    from kd_det.studies.foreign_teacher import ForeignTeacherStudy

    parser = command_parser(
        "kd-det study foreign",
        "Trains torchvision's Faster R-CNN on the digits scenes, imports its predictions as stored knowledge, and\n"
        "trains a student alone and from them: from its detections with the winner's score, and from whole score\n"
        "vectors of its detections and proposals. Writes a results file, of which tools/make_tables.py makes\n"
        "MODEL_ZOO.md. The same command goes on where it was interrupted.",
        "kd-det study foreign --seeds 5 --jobs 2",
    )
    parser.add_argument("--schedule", default="demo", metavar="NAME", help=f"{' or '.join(SCHEDULES)} (default demo)")
    teacher = "iterations of torchvision's detector, 8 scenes each (default 1500)"
    parser.add_argument("--teacher-iterations", type=int, default=1500, metavar="N", help=teacher)
    _add_common(parser, "output/study_foreign", "results/digits_det_foreign_teacher.json")

    def run(args: argparse.Namespace, command: str) -> bool:
        study = ForeignTeacherStudy(
            args.output_dir, args.results, args.seeds, args.jobs, args.device, args.schedule, args.teacher_iterations
        )
        study.run(command)
        return True

    _run("foreign", parser, arguments, run)


def _add_common(parser: argparse.ArgumentParser, folder: str, results: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="runs of each arm (default 5)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time, sharing the cores")
    parser.add_argument("--device", default=device, help=f"cpu or cuda (default here {device})")
    parser.add_argument("--output-dir", type=Path, default=Path(folder), metavar="DIR", help=f"default {folder}")
    parser.add_argument("--results", type=Path, default=Path(results), metavar="FILE", help=f"default {results}")


def _run(
    name: str,
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    run: Callable[[argparse.Namespace, str], bool],
) -> None:
    """Calls ``run`` with the parsed options and the command line; it returns whether it has written a results file."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(arguments)
    with one_line_errors():
        try:
            with forwarding_sigterm():
                written = run(args, shlex.join(["kd-det", "study", name, *arguments]))
        except RuntimeError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(GO_ON)
        if written:
            print(f"wrote {args.results}; python tools/make_tables.py puts it into MODEL_ZOO.md")
