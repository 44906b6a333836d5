"""Trains a student.

python -m classification.train --config-file cifar100/methods/dkd.yaml digits/pairs/resnet20_resnet8.yaml
python -m classification.train --config-file cifar100/base.yaml STUDENT.NAME resnet32x4       # a model alone

Trailing KEY VALUE pairs override the configuration. Several processes: accelerate launch -m classification.train ...
SIGINT (Ctrl-C) and SIGTERM end training between two steps, with all of it saved for --resume.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence

from kd_det.common.command_line import add_config_file, parse_arguments
from kd_det.common.errors import one_line_errors
from kd_det.common.signals import StopRequested, noting_signals


def parser(description: str | None = __doc__) -> argparse.ArgumentParser:
    """The options, Detectron2's where there are such."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=as_written)
    add_config_file(parser)
    used = parser.add_mutually_exclusive_group()
    used.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR's last state, if it has a run")
    used.add_argument("--overwrite", action="store_true", help="delete the run that OUTPUT_DIR has, and start anew")
    parser.add_argument("--eval-only", action="store_true", help="evaluate OUTPUT_DIR's model.pth or STUDENT.WEIGHTS")
    parser.add_argument("--check-data", action="store_true", help="first read every image; stop at unreadable ones")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configuration")
    return parser


class StartUp:
    """What the first signal does before training has begun: it ends the process at once, nothing being lost."""

    def __init__(self) -> None:
        self._number, self._over = 0, False

    def on_signal(self, number: int) -> None:
        """For ``noting_signals``."""
        self._number = number
        if not self._over:
            self._stop()

    def end(self) -> None:
        """From now on the training loop looks at the signals.

        Raises:
            KeyboardInterrupt, StopRequested: one came before, and a library kept the exception to itself.
        """
        self._over = True
        if self._number:
            self._stop()

    def _stop(self) -> None:
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        raise StopRequested(self._number)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; user errors are one line."""
    with one_line_errors():
        start_up = StartUp()
        with noting_signals(start_up.on_signal) as received:
            args = parse_arguments(parser(), arguments)  # with --import it imports the user's own code
            from classification.run import run  # takes seconds, in which a Ctrl-C is to be one line as well

            run(args, received, start_up.end)


if __name__ == "__main__":
    main()
