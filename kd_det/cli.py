"""The command ``kd-det``: a table of verbs. Each verb's module is imported when the verb is called.

This module imports nothing heavy, so that ``kd-det --help`` is quick and a Ctrl-C during imports ends with one line.
The scripts in tools/ call the same functions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from kd_det import __version__
from kd_det.common.errors import SetupError, did_you_mean, one_line_errors, one_of
from kd_det.common.signals import end_at_once, noting_signals


class Verb(NamedTuple):
    """A verb: its function, as "module:function", and its summary."""

    command: str
    summary: str


VERBS = {
    "train": Verb("kd_det.engine.run:train", "train a detector, distilled or plain"),
    "eval": Verb("kd_det.engine.run:evaluate", "evaluate a detector: train --eval-only"),
    "export": Verb("kd_det.engine.commands:export", "write a trained student for use without kd_det"),
    "check-data": Verb("kd_det.engine.commands:check_data", "report on data sets in COCO format"),
    "visualize": Verb("kd_det.engine.commands:visualize", "draw ground truth, teacher and student side by side"),
    "store-teacher": Verb("kd_det.engine.commands:store_teacher", "store a teacher's boxes and logits of all images"),
    "import-teacher": Verb("kd_det.engine.commands:import_teacher", "store any detector's predictions as a teacher's"),
    "suggest-beta": Verb("kd_det.studies.commands:suggest_beta", "measure a teacher's confidence, suggest DKD's beta"),
    "list": Verb("kd_det.cli:show", "list methods, teachers of the model zoo and shipped configurations"),
    "demo": Verb("kd_det.studies.commands:demo", "train a teacher and its students on digits scenes, in minutes"),
    "bench": Verb("kd_det.cli:bench", "time losses, a training step or classification"),
    "study": Verb("kd_det.cli:study", "run a table over seeds: a paper's, or one of the digits scenes"),
}
BENCHMARKS = {
    "losses": Verb("kd_det.studies.loss_speed:main", "the logit losses against their plain formulas"),
    "step": Verb("kd_det.studies.step_speed:main", "a distilled training step against the plain student's"),
    "classification": Verb("classification.studies.commands:bench", "classification training; only in a clone"),
}

STUDIES = {
    "coco": Verb("kd_det.studies.commands:study_coco", "the COCO table of Zhao et al. 2022, with every method"),
    "converged": Verb(
        "kd_det.studies.digits_commands:study_converged", "digits scenes: distillation of a student trained for long"
    ),
    "labels": Verb("kd_det.studies.digits_commands:study_labels", "digits scenes: few labels, a teacher's knowledge"),
    "foreign": Verb("kd_det.studies.digits_commands:study_foreign", "digits scenes: a teacher of another library"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs ``kd-det VERB ...``; user errors end the process with one line and exit code 2.

    Args:
        arguments: the command line; None takes the process's own.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"kd-det {__version__}")
        return
    _dispatch("kd-det", VERBS, arguments, "kd-det VERB --help describes a verb.")


def bench(arguments: Sequence[str] | None = None) -> None:
    """``kd-det bench {losses,step,classification} ...``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _dispatch("kd-det bench", BENCHMARKS, arguments, "Example:\n  kd-det bench losses --shapes 64x100 --rounds 5")


def study(arguments: Sequence[str] | None = None) -> None:
    """``kd-det study {coco,converged,labels,foreign} ...``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _dispatch("kd-det study", STUDIES, arguments, "Example:\n  kd-det study coco --seeds 3 --num-gpus 8")


def run(command: str, arguments: Sequence[str] | None = None) -> None:
    """Imports a command's function and calls it; for ``main`` and for the scripts in tools/.

    Args:
        command: "module:function".
        arguments: the function's command line; None takes the process's own.
    """
    module, name = command.split(":")
    with one_line_errors():
        with noting_signals(end_at_once):  # imports take seconds
            function = getattr(import_module(module), name)
        function(arguments)
        sys.stdout.flush()  # a closed pipe is noticed here, not when the interpreter ends


def _dispatch(name: str, verbs: dict[str, Verb], arguments: Sequence[str], end: str) -> None:
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        width = max(map(len, verbs)) + 2
        lines = [f"  {each:<{width}}{about.summary}" for each, about in verbs.items()]
        print("\n".join([f"usage: {name} {{{','.join(verbs)}}} ...", "", *lines, "", end]))
        return
    with one_line_errors():
        if verb not in verbs:
            raise SetupError(f"{name}: there is no {verb!r}.{did_you_mean(verb, verbs)} Known: {', '.join(verbs)}.")
    run(verbs[verb].command, rest)


def show(arguments: Sequence[str] | None = None) -> None:
    """``kd-det list``: methods, teachers of the model zoo and shipped configurations, by name."""
    from kd_det.common.command_line import add_import, command_parser, parse_arguments

    parser = command_parser(
        "kd-det list",
        "Lists KD terms and distillers, teachers of Detectron2's model zoo, and shipped configurations, by name.",
        "kd-det list configs dkd",
    )
    parser.add_argument("what", nargs="?", metavar="WHAT", help=f"{', '.join(LISTS)} (default: all three)")
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help="only names that contain it")
    add_import(parser)
    with one_line_errors():
        args = parse_arguments(parser, arguments)
        chosen = LISTS if args.what is None else [one_of("kd-det list: WHAT", args.what, LISTS)]
        found = False
        for name in chosen:
            lines = [line for key, line in LISTS[name]() if args.text.lower() in key.lower()]
            print("\n".join([f"{name}:", *(f"  {line}" for line in lines)]))
            found = found or bool(lines)
        if not found:
            raise SetupError(f"kd-det list: no name contains {args.text!r}. Leave TEXT out to see all.")


def _methods() -> Iterator[tuple[str, str]]:
    from kd_det.modeling.terms import TERMS

    yield from _described(TERMS, "KD.TERMS")
    if find_spec("classification") is not None:  # in a clone
        yield from _described(import_module("classification.distillers").DISTILLERS, "DISTILLER")


def _described(registry: Mapping[str, type], key: str) -> Iterator[tuple[str, str]]:
    for name, entry in registry.items():
        line = (entry.__doc__ or "").strip().split("\n")[0].replace("``", "")
        yield name, f"{key + ' ' + name:<24}{line}".rstrip()


def _teachers() -> Iterator[tuple[str, str]]:
    from kd_det.teacher.frozen import zoo_teachers

    yield from ((name, name) for name in zoo_teachers())


def _configs() -> Iterator[tuple[str, str]]:
    from kd_det.common.config_files import shipped_configs

    yield from ((name, name) for name in shipped_configs() if not name.rpartition("/")[2].startswith("_"))


LISTS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "methods": _methods,
    "teachers": _teachers,
    "configs": _configs,
}
