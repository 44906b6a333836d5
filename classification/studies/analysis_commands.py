"""The command lines of the analyses of finished runs: linear probe, correlation, t-SNE; and of the methods' cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from classification.results import commit
from classification.studies import correlation as correlations
from classification.studies import linear_probe as probes
from classification.studies import tsne as embeddings
from classification.studies.efficiency import (
    choose_arms,
    draw_costs,
    draw_scatter,
    efficiency_table,
    make_rows,
    points,
    read_accuracies,
)
from classification.studies.runs import FinishedRun, load_run
from classification.studies.step_worker import NOISE
from classification.studies.steps import compare_steps
from classification.studies.transfer_data import DOMAINS, read_domain
from kd_det.common.command_line import add_import, command_parser, parse_arguments
from kd_det.common.environment import described, hardware, versions
from kd_det.common.errors import SetupError, one_line_errors
from kd_det.common.figures import save_figure
from kd_det.common.files import write_json

EFFICIENCY = "efficiency"
TSNE_HELP = {
    "classes": "how many classes, evenly spread; 0: all",
    "samples": "the most samples to draw",
    "perplexity": "t-SNE's perplexity: about how many neighbours of a sample count",
    "seed": "the seed of t-SNE and of the choice of samples",
}


def _parser(tool: str, name: str, runs: int | str, description: str, *examples: str) -> argparse.ArgumentParser:
    """The options that the analyses of runs share.

    Args:
        tool: the script in tools/, without ".py".
        name: the analysis, for the default of --output-dir.
        runs: how many runs it takes, as argparse's ``nargs``.
        description, examples: see ``command_parser``.
    """
    command = f"python tools/{tool}.py"
    parser = command_parser(command, description, *(f"{command} {example}" for example in examples))
    where = "a finished run's OUTPUT_DIR, or its name below output/"
    parser.add_argument("runs", nargs=runs, metavar="RUN", help=where)
    folder = Path("output/analysis") / name
    parser.add_argument("--output-dir", type=Path, default=folder, metavar="DIR", help=f"default {folder}")
    overrides = "overrides of every run's configuration, such as DATA.ROOT"
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help=overrides)
    add_import(parser)
    return parser


def _load_runs(args: argparse.Namespace) -> list[FinishedRun]:
    """The runs that the command line names.

    Raises:
        SetupError: one cannot be loaded.
    """
    return [load_run(name, args.opts) for name in args.runs]


def linear_probe(arguments: Sequence[str] | None = None) -> None:
    """tools/linear_probe.py: a linear classifier on frozen student features, on other data."""
    parser = _parser(
        "linear_probe",
        probes.NAME,
        "+",
        "Trains a linear classifier on frozen features, on other data: top-1, one row per run.\n\n"
        "A run may also be a model.pth alone, such as an imported teacher's. SGD is as in Zhao et al. 2022, A.7: 40\n"
        "epochs.\n\n"
        "Writes linear_probe.json, .csv, .png and .svg. digits_rotated_inverted needs no files. stl10 and\n"
        "tiny_imagenet are read from --data-root as published (stl10_binary/, tiny-imagenet-200/), and resized to\n"
        "the images of the run.",
        "cifar100/kd_wrn_40_2_wrn_16_2 cifar100/dkd_wrn_40_2_wrn_16_2 --teachers --on stl10 tiny_imagenet",
        "digits/vanilla_resnet8 digits/dkd_resnet20_resnet8",
    )
    on = f"data sets: {', '.join(DOMAINS)} (default digits_rotated_inverted)"
    parser.add_argument(
        "--on", nargs="+", choices=DOMAINS, default=["digits_rotated_inverted"], metavar="DATA", help=on
    )
    parser.add_argument("--data-root", default="datasets", metavar="DIR", help="their folder (default datasets)")
    kinds = "sgd (default) or lbfgs: scikit-learn's logistic regression on standardised features"
    parser.add_argument("--probe", choices=probes.PROBES, default="sgd", metavar="NAME", help=kinds)
    parser.add_argument("--teachers", action="store_true", help="probe the runs' teachers too, each once")
    with one_line_errors():
        args = parse_arguments(parser, arguments)
        domains = {name: read_domain(name, args.data_root) for name in args.on}
        runs = _load_runs(args)
        rows = [probes.probe_run(run, domains, args.probe) for run in runs]
        if args.teachers:
            taught = {run.cfg.TEACHER.dump(): run for run in runs if run.cfg.TEACHER.NAME}
            rows += [probes.probe_run(run, domains, args.probe, teacher=True) for run in taught.values()]
        files = probes.write_probes(args.output_dir, rows)
    print(probes.probe_table(rows))
    print(f"wrote {', '.join(map(str, files))}")


def correlation(arguments: Sequence[str] | None = None) -> None:
    """tools/plot_correlation.py: how close students' logit correlations are to their teacher's."""
    parser = _parser(
        "plot_correlation",
        correlations.NAME,
        "+",
        "Compares students' logit correlations with their teacher's: |difference| of the C x C matrices, side by\n"
        "side. An entry is the Pearson correlation of the logits of two classes over the validation samples. With\n"
        "--mode class-mean, row i is the mean logits of class i's samples, as in figure 4 of Zhao et al. 2022.\n\n"
        "Prints each matrix's mean: the lower, the closer to the teacher. Writes correlation.json, difference_1.csv\n"
        "and so on, correlation.png and .svg. To compare with a run that had no teacher, name one for all:\n"
        "--opts TEACHER.NAME resnet20 TEACHER.WEIGHTS digits/vanilla_resnet20.",
        "digits/kd_resnet20_resnet8 digits/dkd_resnet20_resnet8",
    )
    modes = "correlation (default) or class-mean"
    parser.add_argument("--mode", choices=correlations.LABELS, default="correlation", metavar="NAME", help=modes)
    with one_line_errors():
        args = parse_arguments(parser, arguments)
        runs = _load_runs(args)
        results = correlations.compare(runs, args.mode)
        files = correlations.write_comparison(args.output_dir, results, runs[0], args.mode)
    for result in results:
        print(f"{result['run']}: mean |difference| {result['mean']:.4f}, largest {result['max']:.4f}")
    print(f"wrote {', '.join(map(str, files))}")


def tsne(arguments: Sequence[str] | None = None) -> None:
    """tools/plot_tsne.py: t-SNE of the penultimate features of runs."""
    parser = _parser(
        "plot_tsne",
        embeddings.NAME,
        "+",
        "Draws the penultimate features of runs on the validation samples, side by side in two dimensions, by\n"
        "scikit-learn's t-SNE.\n\n"
        "Prints how well the classes are separated (silhouette, and accuracy of the 10 nearest neighbours) in the\n"
        "embedding and, since t-SNE distorts, in the features themselves. Writes tsne.json, tsne.csv, tsne.png and\n"
        ".svg.",
        "cifar100/kd_res32x4_res8x4 cifar100/dkd_res32x4_res8x4 --samples 10000",
        "digits/vanilla_resnet8 digits/dkd_resnet20_resnet8",
    )
    for name, default in embeddings.Settings()._asdict().items():
        text = f"{TSNE_HELP[name]} (default {default:g})"
        parser.add_argument(f"--{name}", type=type(default), default=default, metavar="N", help=text)
    with one_line_errors():
        args = parse_arguments(parser, arguments)
        settings = embeddings.Settings(*(getattr(args, name) for name in embeddings.Settings._fields))
        settings.check()
        runs = _load_runs(args)
        found = embeddings.compare(runs, settings)
        files = embeddings.write_comparison(args.output_dir, found, runs[0], settings)
    for each in found:
        figures = [f"{space} silhouette {values['silhouette']:.3f}, kNN {values['knn_top1']:.1f} %"
                   for space, values in each.figures.items()]  # fmt: skip
        print(f"{each.run}: {'; '.join(figures)}")
    print(f"wrote {', '.join(map(str, files))}")


def efficiency(arguments: Sequence[str] | None = None) -> None:
    """tools/efficiency.py: what every distiller costs, next to its accuracy."""
    command = "python tools/efficiency.py"
    parser = command_parser(
        command,
        "Measures what every distiller costs: the time of a batch with its data, memory and parameters in one\n"
        "interleaved run, next to its accuracy (figure 2 of Zhao et al. 2022).\n\n"
        "The steps run on noise of CIFAR-100's shape: 50,000 samples, which is the size of MCLD's queue, of 100\n"
        "classes. All methods are in memory at once, about 1 GiB each; --methods chooses fewer. The accuracies come\n"
        "from a results file of tools/run_classification.py, or from a paper's file in results/. Writes\n"
        "efficiency.json, and accuracy against time (efficiency.png) and all costs (efficiency_costs.png; also .svg).",
        command,
        f"{command} --methods mcld hcd --rounds 9                  (and DKD, which they are compared with)",
        f"{command} --results results/classification_zhao2022.json",
        f"{command} --data digits --teacher resnet20 --student resnet8",
    )
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="default: all")
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="how many rounds; each runs every method (default 5)")
    parser.add_argument("--steps", type=int, default=4, help="steps of each method in a round (default 4)")
    parser.add_argument("--data", choices=[NOISE, "digits"], default=NOISE, help=f"default {NOISE}")
    results = "results/classification_digits.json"
    parser.add_argument("--results", default=results, metavar="FILE", help=f"default {results}; '' for none")
    parser.add_argument("--output-dir", type=Path, default=Path("output/analysis") / EFFICIENCY, metavar="DIR")
    with one_line_errors():
        args = parser.parse_args(arguments)
        try:
            _measure_efficiency(args)
        except RuntimeError as error:
            sys.exit(f"error: {error}")


def _measure_efficiency(args: argparse.Namespace) -> None:
    for option in ("batch_size", "rounds", "steps"):
        if getattr(args, option) < 1:
            raise SetupError(f"--{option.replace('_', '-')} {getattr(args, option)}: give 1 or more.")
    arms = choose_arms(args.methods)
    accuracies = read_accuracies(Path(args.results), args.teacher, args.student) if args.results else {"top1": {}}
    sizes = {"batch_size": args.batch_size, "rounds": args.rounds, "steps": args.steps, "data": args.data}
    measured = compare_steps(arms, teacher=args.teacher, student=args.student, **sizes)
    rows = make_rows(measured, accuracies.pop("top1"))
    machine = hardware("cuda" if torch.cuda.is_available() else "cpu")
    record = {"kind": EFFICIENCY, "teacher": args.teacher, "student": args.student, **sizes}
    record |= {"accuracies_of": accuracies, "rows": rows}
    record |= {"commit": commit(), "versions": versions(), "hardware": machine}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(args.output_dir / f"{EFFICIENCY}.json", record)
    pair = f"{args.teacher} → {args.student}, {args.batch_size} images a step"
    print(f"{pair}, {args.data}; {described(machine)}, torch {torch.__version__}\n\n{efficiency_table(rows)}\n")
    print(f"wrote {args.output_dir / EFFICIENCY}.json")
    save = partial(save_figure, folder=args.output_dir)
    for path in save(draw_costs(rows, f"{pair}, {args.data}"), name=f"{EFFICIENCY}_costs"):
        print(f"wrote {path}")
    if known := points(rows):
        of = f"top-1 of {accuracies['teacher']} → {accuracies['student']} on {accuracies['data']}"
        for path in save(draw_scatter(known, f"{pair}; {of}"), name=EFFICIENCY):
            print(f"wrote {path}")
    else:
        print("no picture of accuracies: none of these methods has one")
