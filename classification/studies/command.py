"""What the analyses' command lines share."""

from __future__ import annotations

import argparse
from pathlib import Path

from classification.studies.runs import Run, load_run


def parser(description: str, name: str, runs: int | str) -> argparse.ArgumentParser:
    """The options that all have.

    Args:
        description: the command's docstring.
        name: of the analysis, for the default of --output-dir.
        runs: how many it takes, as argparse's ``nargs``.
    """
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=as_written)
    parser.add_argument(
        "runs", nargs=runs, metavar="RUN", help="a finished run's OUTPUT_DIR, or its name below output/"
    )
    folder = Path("output/analysis") / name
    parser.add_argument("--output-dir", type=Path, default=folder, metavar="DIR", help=f"default {folder}")
    overrides = "overrides of every run's configuration, such as DATA.ROOT"
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help=overrides)
    return parser


def load_runs(args: argparse.Namespace) -> list[Run]:
    """The runs that the command line names.

    Raises:
        SetupError: one cannot be loaded.
    """
    return [load_run(name, args.opts) for name in args.runs]
