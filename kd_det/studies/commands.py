"""The commands suggest-beta, demo, the benchmark on digits scenes and the runs of the COCO table.

Detectron2 is imported only inside the functions, because suggest-beta does not need it for a classifier.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from kd_det.common.beta import MeasuredGaps, describe, write
from kd_det.common.command_line import UpToOverrides, add_config_file, command_parser, output_folder, parse_arguments
from kd_det.common.errors import SetupError, one_line_errors

DETECTION_IMAGES = 500
GO_ON = "interrupted; run the same command again to continue from the last checkpoint"


def suggest_beta(arguments: Sequence[str] | None = None) -> None:
    """Measures how confident the teacher is, and suggests DKD's beta for it."""
    parser = command_parser(
        "kd-det suggest-beta",
        "Measures how confident the teacher is of its targets, and suggests DKD's beta for it.\n\nFor a "
        "detector the targets are the objects of a data set, for a classifier its training images.\nWrites gaps.json "
        "and a histogram, gaps.png and gaps.svg, to --output-dir.",
        "kd-det suggest-beta --config-file coco/dkd_r101_r18.yaml --on coco_2017_val --images 500",
        "kd-det suggest-beta --config-file digits/pairs/resnet20_resnet8.yaml     (in a clone)",
        "(after kd-det demo:)",
        "kd-det suggest-beta --config-file digits_det/dkd.yaml --on digits_det_val \\",
        "    KD.TEACHER.WEIGHTS output/demo/teacher/seed1/model_final.pth",
    )
    add_config_file(parser, required=True, help="the student's configuration, with its teacher")
    spread = f"number of images, evenly spread (default {DETECTION_IMAGES} for a detector, all for a classifier)"
    parser.add_argument("--images", type=int, help=spread)
    parser.add_argument("--output-dir", type=Path, default=Path("output/analysis/beta"), metavar="DIR")
    detection = parser.add_argument_group("detection")
    data_set = "the data set (default: the first of DATASETS.TRAIN)"
    detection.add_argument("--on", default="", metavar="NAME", help=data_set)
    own = "your own data set in COCO format, as an entry of DATASETS.COCO_JSON; may be given several times"
    detection.add_argument("--dataset", action="append", default=[], metavar="NAME=JSON,FOLDER", help=own)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configuration")
    with one_line_errors():
        args = parse_arguments(parser, arguments)
        gaps = _measure(args)
        print(describe(gaps) + "\n")
        for path in write(gaps, output_folder("--output-dir", args.output_dir)):
            print(f"wrote {path}")


def _measure(args: argparse.Namespace) -> MeasuredGaps:
    # In a clone this verb also takes a classifier's configuration.
    classifiers = import_module("classification.studies.beta") if find_spec("classification") is not None else None
    if classifiers is not None and classifiers.is_classification(args.config_file):
        for option, value in (("--on", args.on), ("--dataset", args.dataset)):
            if value:
                raise SetupError(f"{option} {value}: it is for detectors only; a classifier's data set is DATA.NAME.")
        cfg = import_module("classification.config").load_config(args.config_file, args.opts)
        return classifiers.classifier_gaps(cfg, args.images)

    from kd_det.engine.setup import read_setup
    from kd_det.studies.teacher_confidence import detector_gaps

    images = DETECTION_IMAGES if args.images is None else args.images
    return detector_gaps(read_setup(args.config_file, args.opts, args.dataset), args.on, images)


def demo(arguments: Sequence[str] | None = None) -> None:
    """Trains a teacher and two students, alone and with DKD, on the digits scenes."""
    parser = command_parser(
        "kd-det demo",
        "Trains a teacher and two students, alone and with DKD, on digits scenes, in minutes on two CPU cores and\n"
        "without a download. Writes a table and pictures to output/demo. Run it again after an interruption to go on.",
        "kd-det demo",
    )
    _add_run_options(parser, "output/demo")
    _run_benchmark("kd-det demo", parser, arguments, seeds=1, methods=["dkd"])


def benchmark_digits(arguments: Sequence[str] | None = None) -> None:
    """The benchmark on the digits scenes: every method, several seeds."""
    from kd_det.studies.methods import all_methods

    arguments = sys.argv[1:] if arguments is None else arguments
    if "--demo" in arguments:
        demo([argument for argument in arguments if argument != "--demo"])
        return
    parser = command_parser(
        "python tools/run_digits_det.py",
        "Compares methods on the digits scenes. --demo is kd-det demo: one seed, DKD alone, output in output/demo.",
        "python tools/run_digits_det.py --seeds 3",
        "python tools/run_digits_det.py --seeds 3 --methods dkd reviewkd --schedule long",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each student arm (default 3)")
    parser.add_argument("--methods", nargs="+", default=list(all_methods()), help=f"default: {' '.join(all_methods())}")
    _add_run_options(parser, "output/digits_det/<schedule>")
    _run_benchmark("python tools/run_digits_det.py", parser, arguments)


def study_coco(arguments: Sequence[str] | None = None) -> None:
    """``kd-det study coco``: the rows of the COCO table over seeds."""
    from kd_det.studies.coco import METHODS, PAIRS, CocoStudy, chosen

    parser = command_parser(
        "kd-det study coco",
        "Trains the rows of the COCO table (Zhao et al. 2022, table 10) over seeds, and each pair's student alone, one "
        "run\nafter the other. After each row it writes the results file, of which tools/make_tables.py makes "
        "MODEL_ZOO.md.\nThe same command goes on where it was interrupted.",
        "kd-det study coco --seeds 3 --num-gpus 8",
        "kd-det study coco --seeds 1 --pairs r101_r50 --methods kd dkd --start coco/r50_published.yaml \\",
        "    --output-dir output/study_coco_msra --results output/study_coco_msra/results.json",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row, SEED 1, 2, ... (default 3)")
    for option, known in (("pairs", PAIRS), ("methods", METHODS)):
        names = " ".join(known)
        parser.add_argument(f"--{option}", nargs="+", action=UpToOverrides, metavar="NAME", help=f"default: {names}")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of each run (default 1; 0: the CPU)")
    parser.add_argument("--start", default="", metavar="FILE", help="a configuration that goes after each run's own")
    parser.add_argument("--output-dir", type=Path, default=Path("output/study_coco"), metavar="DIR")
    results = Path("results/coco_ours.json")
    parser.add_argument("--results", type=Path, default=results, metavar="FILE", help=f"default {results}")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configurations")
    with one_line_errors():
        args = parse_arguments(parser, arguments)
        study = CocoStudy(
            chosen(args.pairs, tuple(PAIRS)), chosen(args.methods, METHODS), args.seeds, args.output_dir, args.results,
            tuple(args.opts), args.num_gpus, args.start,
        )  # fmt: skip
        try:
            study.run(shlex.join(["kd-det", "study", "coco", *(sys.argv[1:] if arguments is None else arguments)]))
        except RuntimeError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(GO_ON)
        print(f"wrote {args.results}; python tools/make_tables.py puts it into MODEL_ZOO.md")


def _add_run_options(parser: argparse.ArgumentParser, folder: str) -> None:
    from kd_det.studies.digits_det import SCHEDULES

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--schedule", choices=SCHEDULES, default="demo", help="the length of training (default demo)")
    parser.add_argument("--output-dir", type=Path, help=f"default {folder}")
    parser.add_argument("--jobs", type=int, default=1, help="student runs at a time, sharing the cores (default 1)")
    parser.add_argument("--device", default=device, help=f"cpu or cuda (default here {device})")


def _run_benchmark(
    name: str, parser: argparse.ArgumentParser, arguments: Sequence[str] | None, **fixed: object
) -> None:
    """Runs the benchmark with the parser's options; ``fixed`` has those that the parser does not offer."""
    from kd_det.studies.digits_det import Benchmark, arms_of
    from kd_det.studies.digits_runs import seeds_of

    arguments = sys.argv[1:] if arguments is None else arguments
    args = argparse.Namespace(**{**fixed, **vars(parser.parse_args(arguments))})
    default = Path("output/demo") if fixed else Path("output/digits_det") / args.schedule
    with one_line_errors():
        try:
            if args.jobs < 1:
                raise SetupError(f"--jobs is {args.jobs}; give 1 or more.")
            arms, seeds = arms_of(args.methods), seeds_of(args.seeds)
            benchmark = Benchmark(args.output_dir or default, arms, seeds, args.schedule, args.device, args.jobs)
            benchmark.run(shlex.join([*name.split(), *arguments]))
        except RuntimeError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(GO_ON)
