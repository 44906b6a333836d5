"""The command lines that start classification runs or time them: seeds, sweeps, imported teachers, benchmark."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from classification.config import load_config
from classification.models.teacher_import import cifar100_accuracy, published_teachers, save_teacher
from classification.studies import ablation, seeds
from classification.studies.efficiency import REFERENCE, choose_arms
from classification.studies.pipeline import compare_pipelines
from classification.studies.steps import Arm, compare_steps
from kd_det.common.command_line import add_config_file, add_import, command_parser, parse_arguments
from kd_det.common.environment import described, hardware
from kd_det.common.errors import SetupError, one_line_errors
from kd_det.common.figures import save_figure
from kd_det.common.files import write_json
from kd_det.common.tables import markdown

ABLATION = "ablation"
GO_ON = "interrupted; run the same command again to continue from the last checkpoints"
BY_HAND, DKD = "DKD, loop written by hand", "DKD"
ARMS = [
    Arm(BY_HAND, by_hand=True),
    Arm(DKD),
    Arm("SDD-DKD", ("DISTILLER", "sdd")),
    Arm("DKD, channels_last", ("SOLVER.CHANNELS_LAST", "True")),
    Arm("DKD, bf16", ("SOLVER.MIXED_PRECISION", "bf16")),
    Arm("DKD, bf16, channels_last", ("SOLVER.MIXED_PRECISION", "bf16", "SOLVER.CHANNELS_LAST", "True")),
]
COMPILED = Arm("DKD, compiled", ("SOLVER.COMPILE", "True"))


def run(arguments: Sequence[str] | None = None) -> None:
    """tools/run_classification.py: runs over seeds, from configurations to one results file and table."""
    command = "python tools/run_classification.py"
    parser = command_parser(
        command,
        "Runs configurations over seeds and writes one results file and table. Each method is run with each pair.\n"
        "--config-file adds one more run: files merged from left to right and KEY VALUE pairs, as for\n"
        "classification.train. It may be given several times.\n\n"
        "A missing teacher is trained first if TEACHER.AUTO_TRAIN is on. Finished runs are reused, interrupted ones\n"
        "are resumed.",
        f"{command} --methods cifar100/methods/kd.yaml cifar100/methods/dkd.yaml \\",
        "    --pairs digits/pairs/resnet20_resnet8.yaml --config-file digits/base.yaml STUDENT.NAME resnet8 --seeds 3",
        f"{command} --methods configs/cifar100/methods/*.yaml \\",
        "    --pairs digits/pairs/resnet20_resnet8.yaml --results results/classification_digits.json",
    )
    parser.add_argument("--methods", nargs="+", default=[], metavar="FILE", help="files of methods, for --pairs")
    parser.add_argument("--pairs", nargs="+", default=[], metavar="FILE", help="files of pairs, for --methods")
    one = "files, merged, and KEY VALUE pairs of one run; may be given several times"
    parser.add_argument("--config-file", nargs="+", action="append", default=[], metavar="FILE", dest="runs", help=one)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each configuration, SEED 1, 2, ... (default 3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--threads", type=int, help="CPU threads of each run (default: torch's choice)")
    parser.add_argument("--results", type=Path, help="the results file to update (default OUTPUT_DIR/results.json)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of every configuration")
    add_import(parser)
    _run_trainings(parser, arguments, _run_seeds)


def _run_trainings(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, work: Callable[[argparse.Namespace], None]
) -> None:
    """``work`` with the parsed arguments; a failed training or Ctrl-C ends the process with one line."""
    with one_line_errors():
        args = parse_arguments(parser, arguments)
        try:
            work(args)
        except RuntimeError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(GO_ON)


def _run_seeds(args: argparse.Namespace) -> None:
    if min(args.seeds, args.jobs) < 1:
        raise SetupError(f"--seeds {args.seeds} --jobs {args.jobs}: give 1 or more of each.")
    chosen = seeds.choices(args.runs, args.methods, args.pairs)
    rows = seeds.run_seeds(chosen, range(1, args.seeds + 1), args.opts, args.jobs, args.threads)
    cfg = load_config(chosen[0].files, [*chosen[0].overrides, *args.opts])
    path = args.results or Path(cfg.OUTPUT_DIR) / "results.json"
    seeds.update_results(path, rows, cfg.DATA.NAME)
    print(seeds.seeds_table(rows))
    print(f"wrote {path}")


def ablate(arguments: Sequence[str] | None = None) -> None:
    """tools/ablate.py: sweeps keys of a configuration over values and seeds."""
    command = "python tools/ablate.py"
    parser = command_parser(
        command,
        "Sweeps keys of a configuration over values and seeds.\n\n"
        "Every combination is checked before the first run. Run the same command again after an interruption:\n"
        "finished runs are reused, interrupted ones are resumed. Writes ablation.csv, ablation.json and, for one or\n"
        'two keys, a heat map, ablation.png and .svg. The runs are in the folder "runs" of --output-dir.',
        f"{command} --config-file cifar100/methods/dkd.yaml digits/pairs/resnet20_resnet8.yaml \\",
        "    --grid DKD.ALPHA 0.5 1.0 2.0 --grid DKD.BETA 1.0 2.0 8.0 --seeds 2 --jobs 2 --memory-gib 4",
    )
    add_config_file(parser, required=True)
    keys = "a key and its values; may be given several times, for all combinations"
    parser.add_argument("--grid", nargs="+", action="append", required=True, metavar="KEY VALUE", help=keys)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each combination, SEED 1, 2, ... (default 3)")
    parser.add_argument("--jobs", type=int, default=1, help="the most runs at a time (default 1)")
    limit = "another run is started only if the largest peak measured so far leaves room (default: no limit)"
    parser.add_argument("--memory-gib", type=float, metavar="GIB", help=limit)
    shared = "CPU threads of each run (default: an equal share of the cores; for one run at a time, torch's choice)"
    parser.add_argument("--threads", type=int, help=shared)
    parser.add_argument("--output-dir", type=Path, default=Path("output/analysis") / ABLATION, metavar="DIR")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides, the same in all runs")
    _run_trainings(parser, arguments, _ablate)


def _ablate(args: argparse.Namespace) -> None:
    sweep = ablation.Ablation(
        tuple(args.config_file), tuple(args.opts), tuple(map(tuple, args.grid)), args.seeds, args.output_dir, args.jobs,
        args.memory_gib, args.threads,
    )  # fmt: skip
    rows = sweep.run()
    write_json(args.output_dir / f"{ABLATION}.json", sweep.record(rows))
    ablation.write_ablation_csv(args.output_dir / f"{ABLATION}.csv", rows)
    print(f"\n{ablation.ablation_table(rows)}\n\nwrote {args.output_dir / ABLATION}.json and .csv")
    title = f"{sweep.name}: last top-1, mean ± std over seeds 1 to {args.seeds}"
    for path in save_figure(ablation.draw_heat_map(ablation.heat_map(rows), title), args.output_dir, ABLATION):
        print(f"wrote {path}")


def import_teachers(arguments: Sequence[str] | None = None) -> None:
    """tools/import_teachers.py: imports the published CIFAR-100 teachers into our format."""
    command = "python tools/import_teachers.py"
    parser = command_parser(
        command,
        'Imports the published CIFAR-100 teachers (RepDistiller\'s, mdistiller\'s "cifar_teachers") into our format.\n'
        "\nWrites output/cifar100/vanilla_NAME/model.pth, which TEACHER.WEIGHTS cifar100/vanilla_NAME finds, and "
        "prints its\naccuracy. Exit code 2 if the archive or a file in it is not as expected.",
        f"{command} cifar_teachers.tar --data-root datasets",
    )
    parser.add_argument("archive", type=Path, help="the downloaded .tar or .zip, or the folder it was unpacked to")
    parser.add_argument("--data-root", type=Path, default=Path("datasets"), help="the folder with cifar-100-python/")
    parser.add_argument("--no-eval", action="store_true", help="do not evaluate; CIFAR-100 is not needed")
    parser.add_argument("--output", type=Path, default=Path("output"), help="default: output")
    args = parser.parse_args(arguments)
    with one_line_errors():
        for teacher in published_teachers(args.archive):
            accuracy = "" if args.no_eval else f"{cifar100_accuracy(teacher.model, args.data_root):6.2f} % top-1  "
            path = save_teacher(teacher, args.output)
            print(f"{teacher.name:12} {accuracy}{teacher.source} -> {path}", flush=True)


def bench(arguments: Sequence[str] | None = None) -> None:
    """``kd-det bench classification``: speed of the data pipeline and of a training step."""
    parser = command_parser(
        "kd-det bench classification",
        "Times classification training: the data pipeline, and a step. All arms take turns in one run; figures are\n"
        "medians.",
        "kd-det bench classification",
        "kd-det bench classification --rounds 9 --compile",
        "kd-det bench classification --methods crd simkd mlkd",
    )
    parser.add_argument("--rounds", type=int, default=5, help="how many rounds; each runs every arm (default 5)")
    parser.add_argument("--steps", type=int, default=4, help="steps of each arm in a round (default 4)")
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile, which takes minutes to start")
    helps = "time these methods' steps too, such as crd (all: every method; about 1 GiB of memory each)"
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help=helps)
    args = parser.parse_args(arguments)
    with one_line_errors():
        methods = choose_arms([] if args.methods == ["all"] else args.methods) if args.methods else []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{described(hardware(device))}, torch {torch.__version__}\n")
    pipelines = compare_pipelines(args.rounds)
    print(f"in-memory pipeline {pipelines['in_memory']:,.0f} images/s, torchvision with 2 workers "
          f"{pipelines['torchvision']:,.0f}: {pipelines['ratio']:.1f}x\n")  # fmt: skip
    arms = [*ARMS, *([COMPILED] if args.compile else []), *(arm for arm in methods if arm.title != REFERENCE)]
    results = compare_steps(
        arms, teacher=args.teacher, student=args.student, batch_size=args.batch_size, rounds=args.rounds,
        steps=args.steps,
    )  # fmt: skip
    seconds = {result["title"]: result["seconds"] for result in results}
    memory = {result["title"]: f"{result['peak_memory_mib']:.0f}" for result in results}
    rows = [
        [title, f"{1000 * s:.0f} ms", f"{s / seconds[BY_HAND]:.3f}", f"{s / seconds[DKD]:.3f}", memory[title]]
        for title, s in seconds.items()
    ]
    print(f"{args.teacher} -> {args.student}, {args.batch_size} images a step")
    print(markdown(rows, ["step", "median", "to by hand", "to DKD", "peak MiB"]))
