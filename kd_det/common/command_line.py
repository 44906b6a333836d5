"""``--config-file A.yaml B.yaml ... --import FILE_OR_MODULE KEY VALUE ...`` for every command line.

argparse cannot read several files followed by overrides: an option with several values takes the overrides too, and
leaves an ``opts`` argument after it empty. So the files are separated before argparse reads the rest. ``UpToOverrides``
does the same for other options with several values.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_det.common.errors import SetupError
from kd_det.common.registry import IMPORT, import_code
from kd_det.common.yaml_files import split_section

OPTION = "--config-file"
SUFFIXES = (".yaml", ".yml", ".py")  # .py is refused later, with a message; here it must not count as a key
# What configuration keys look like, with dots or without: OUTPUT_DIR, MODEL.DEVICE.
KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)*")
HELP = "YAML configurations, paths or shipped names, merged from left to right; the later wins"
IMPORT_HELP = "Python code of your own with terms or distillers, imported first; may be given several times"


def command_parser(name: str, description: str, *examples: str) -> argparse.ArgumentParser:
    """A parser whose help begins with a description and ends with examples.

    Args:
        name: the command: "kd-det export".
        description: what it does; shown unchanged.
        examples: command lines.
    """
    title = "example:" if len(examples) == 1 else "examples:"
    return argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog="\n  ".join([title, *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_file(parser: argparse.ArgumentParser, *, required: bool = False, help: str = HELP) -> None:
    """Adds ``--config-file`` and ``--import`` to a parser that has neither. Read it with :func:`parse_arguments`."""
    parser.add_argument(OPTION, default="", required=required, metavar="FILE [FILE ...]", help=help)
    add_import(parser)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds ``--import`` alone: for Detectron2's parser, and for commands that read no configuration themselves."""
    parser.add_argument(
        IMPORT, action="append", default=[], dest="imports", metavar="FILE_OR_MODULE", help=IMPORT_HELP
    )


def parse_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """``parser.parse_args`` for a parser with ``--config-file``, which may have several values, and ``--import``.

    The code that ``--import`` names is imported here, so that nothing can be built before it.

    Args:
        parser: Detectron2's, or one with ``add_config_file``. Overrides need no separator.
        arguments: the command line; None takes the process's own.

    Returns:
        The parsed arguments. ``config_file`` is a list, empty if the option is not given.

    Raises:
        SetupError: see ``import_code``.
    """
    files: list[str] = []
    rest = list(sys.argv[1:] if arguments is None else arguments)
    if parser.get_default("config_file") is not None:
        files, rest = _take_files(rest)
    args = parser.parse_args(rest)
    if getattr(args, "behind_options", None):
        args.opts = [*args.behind_options, *args.opts]
    if hasattr(args, "config_file"):
        args.config_file = files or [args.config_file] * bool(args.config_file)
    for name in getattr(args, "imports", ()):
        import_code(name)
    return args


class UpToOverrides(argparse.Action):
    """For an option with one or more values that may be given several times. A configuration key ends its values.

    argparse itself would take the KEY VALUE pairs after ``--image a.png b.png`` as images.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        end = next((place for place, value in enumerate(values) if _is_key(value)), len(values))
        if end == 0:
            parser.error(f"argument {option_string}: expected at least one argument before {values[0]}")
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), *values[:end]])
        namespace.behind_options = [*getattr(namespace, "behind_options", ()), *values[end:]]


def output_folder(option: str, path: str | os.PathLike[str]) -> Path:
    """The folder, created if it does not exist.

    Raises:
        SetupError: it cannot be created or written to; the message names ``option``.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{option} {str(path)!r} cannot be created: {error.strerror}. Give another folder.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SetupError(
            f"{option} {str(path)!r} cannot be written to. Change its permissions, or give another folder."
        )
    return folder


def _is_key(value: str) -> bool:
    return bool(KEY.fullmatch(value)) and not os.path.exists(value)


def split_values(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """The leading values that name configurations, at least one, and the rest: KEY VALUE ..."""
    count = 1
    while count < len(values) and split_section(values[count])[0].endswith(SUFFIXES):
        count += 1
    return list(values[:count]), list(values[count:])


def _take_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of ``--config-file``, and the arguments for argparse, in which only the first of them is left."""
    files: list[str] = []
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument, *left = left
        if argument.startswith(f"{OPTION}="):
            argument, left = OPTION, [argument.removeprefix(f"{OPTION}="), *left]
        rest.append(argument)
        if argument == OPTION and left and not left[0].startswith("-"):
            named, left = split_values(left)
            files += named
            rest.append(named[0])
    return files, rest
