"""What the command lines share that write into a folder and take overrides of the configuration last."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kd_det.common.errors import SetupError


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


def parse_with_overrides(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed ``arguments`` (None: the process's), with the KEY VALUE pairs behind the options as ``opts``."""
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the configuration, last of all")
    args = parser.parse_args(arguments)
    args.opts = [*getattr(args, "behind_options", ()), *args.opts]
    return args


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
    return value.split(".")[0] in _sections() and not os.path.exists(value)


@cache
def _sections() -> frozenset[str]:
    # Only here: a classifier's command lines do without Detectron2.
    from detectron2.config import get_cfg

    from kd_det.config import add_kd_config

    cfg = get_cfg()
    add_kd_config(cfg)
    return frozenset(cfg)
