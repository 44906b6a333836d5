"""kd-det train with a witness, which writes the number of the last finished step to the file that FINISHED names.

The witness is a hook right after the step of the learning rate, so it never names a step that is not finished.
"""

from __future__ import annotations

import os

from kd_det.common.errors import one_line_errors
from kd_det.common.signals import end_at_once, noting_signals


def add_witness() -> None:
    from detectron2.engine import HookBase
    from detectron2.utils import comm

    from kd_det.engine import DistillTrainer
    from kd_det.engine.stopping import StopOnSignal

    class Witness(HookBase):
        def after_step(self) -> None:
            if comm.is_main_process():
                file = os.open(os.environ["FINISHED"], os.O_WRONLY | os.O_CREAT)
                os.pwrite(file, f"{self.trainer.iter:07d}".encode(), 0)
                os.close(file)

    build_hooks = DistillTrainer.build_hooks

    def with_witness(self: DistillTrainer) -> list[HookBase]:
        built = build_hooks(self)
        position = next(number for number, hook in enumerate(built) if isinstance(hook, StopOnSignal))
        return [*built[:position], Witness(), *built[position:]]

    DistillTrainer.build_hooks = with_witness


if __name__ == "__main__":
    with one_line_errors(), noting_signals(end_at_once):
        add_witness()
        from kd_det.engine.run import train

        train()
elif __name__ == "__mp_main__":  # one of several processes
    add_witness()
