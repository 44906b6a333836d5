"""``--config-file A.yaml B.yaml ... KEY VALUE ...`` for every command line: several files, then overrides.

argparse has no such option: one that takes several values takes the overrides too, and an ``opts`` argument that
should get them back is set to an empty list afterwards. So the files are told apart before argparse reads the rest.
``UpToOverrides`` does the same for other options of several values.
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

OPTION = "--config-file"
SUFFIXES = (".yaml", ".yml", ".py")  # .py is refused later, by name; here it must not be taken for a key
# What configuration keys look like, with dots or without: OUTPUT_DIR, MODEL.DEVICE.
KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)*")
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
    if getattr(args, "behind_options", None):
        args.opts = [*args.behind_options, *args.opts]
    args.config_file = files or [args.config_file] * bool(args.config_file)
    return args


class UpToOverrides(argparse.Action):
    """For an option of one or more values, which may be given several times: a configuration key ends its values.

    argparse itself would take the KEY VALUE pairs behind ``--image a.png b.png`` for images.
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
    """The folder, made if it is not there.

    Raises:
        SetupError: it cannot be made or written to; the message names ``option``.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{option} {str(path)!r} cannot be made: {error.strerror}. Give another folder.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SetupError(
            f"{option} {str(path)!r} cannot be written to. Change its permissions, or give another folder."
        )
    return folder


def _is_key(value: str) -> bool:
    return bool(KEY.fullmatch(value)) and not os.path.exists(value)


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
