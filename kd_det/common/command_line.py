"""``--config-file A.yaml B.yaml ... KEY VALUE ...`` for every command line: several files, then overrides.

argparse has no such option: one that takes several values takes the overrides too, and an ``opts`` argument that
should get them back is set to an empty list afterwards. So the files are told apart before argparse reads the rest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

OPTION = "--config-file"
SUFFIXES = (".yaml", ".yml", ".py")  # .py is refused later, by name; here it must not be taken for a key
HELP = "YAML configurations, paths or shipped names, merged from left to right; the later wins"


def add_config_file(parser: argparse.ArgumentParser, *, required: bool = False, help: str = HELP) -> None:
    """Adds ``--config-file`` to a parser that does not have it, to be read with :func:`parse_arguments`."""
    parser.add_argument(OPTION, default="", required=required, metavar="FILE [FILE ...]", help=help)


def parse_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """``parser.parse_args`` for a parser with ``--config-file``, Detectron2's too, which may have several values.

    Args:
        parser: its other arguments keep their meaning; overrides need no separator.
        arguments: None: the process's own.

    Returns:
        What the parser gives, ``config_file`` a list: empty where the option is not given.
    """
    files, rest = _take_files(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(rest)
    args.config_file = files or [args.config_file] * bool(args.config_file)
    return args


def split_values(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """The leading values that name configurations, one at least, and the rest: KEY VALUE ..."""
    count = 1
    while count < len(values) and values[count].endswith(SUFFIXES):
        count += 1
    return list(values[:count]), list(values[count:])


def _take_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of ``--config-file``, and the arguments with the first of them alone, for argparse to see."""
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
