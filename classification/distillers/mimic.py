"""``vid``, ``ofd`` and ``simkd``: imitation of the teacher's maps through learned layers."""

from __future__ import annotations

import math

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from classification.data import Batch
from classification.distillers.base import Distiller, NetworkPair, check_stages, register_distiller
from classification.models import ModelOutput, ReusedClassifier, before_relu
from classification.schema import checked
from kd_det.common.errors import SetupError
from kd_det.losses import VIDLoss, fitnet_loss, ofd_loss, ofd_margin, pool_to_common_size
from kd_det.losses.review_fusion import SafeBatchNorm2d


@register_distiller("vid")
class VID(Distiller):
    """``loss_vid``: the sum of ``VIDLoss`` (Ahn et al. 2019) over the stage maps."""

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        check_stages(cfg, pair)
        self.weight, variance = checked(cfg, "VID.WEIGHT"), checked(cfg, "VID.INIT_VARIANCE")
        channels = ([stage.shape[1] for stage in out.stages] for out in (pair.student_out, pair.teacher_out))
        levels = zip(*channels, strict=True)
        self.levels = nn.ModuleList(VIDLoss(ours, theirs, init_variance=variance) for ours, theirs in levels)

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        levels = zip(self.levels, student_out.stages, teacher_out.stages, strict=True)
        loss: Tensor = sum(level(ours, theirs) for level, ours, theirs in levels)
        return {"loss_vid": self.weight * loss}


@register_distiller("ofd")
class OFD(Distiller):
    """``loss_ofd``: ``ofd_loss`` (Heo et al. 2019) on the last OFD.STAGES stages, before their last ReLU.

    A connector, a 1 x 1 convolution with a batch normalisation, brings a student's map to the teacher's channels. The
    margins come from the teacher's last batch normalisation of each stage. So the teacher must end its stages with
    batch normalisation and ReLU.
    """

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "OFD.WEIGHT")
        ours, theirs = (before_relu(out) for out in (pair.student_out, pair.teacher_out))
        common = min(len(ours), len(theirs))
        self.count = checked(cfg, "OFD.STAGES") or common
        if self.count > common:
            raise SetupError(f"OFD.STAGES {self.count}: both networks have {common} stages or more; take at most that.")
        levels = list(zip(ours[-self.count :], theirs[-self.count :], strict=True))
        self.connectors = nn.ModuleList(_connector(s.shape[1], t.shape[1]) for s, t in levels)
        for number, norm in enumerate(self._norms(cfg, pair, [t.shape[1] for _, t in levels])):
            self.register_buffer(f"margin{number}", ofd_margin(norm.weight, norm.bias), persistent=False)

    def _norms(self, cfg: CfgNode, pair: NetworkPair, channels: list[int]) -> list[nn.BatchNorm2d]:
        norms = list(getattr(pair.teacher, "norms_before_relu", tuple)())[-self.count :]
        found = [norm for norm in norms if norm is not None and norm.affine]
        if [norm.num_features for norm in found] != channels:
            raise SetupError(
                f"DISTILLER {cfg.DISTILLER!r}: TEACHER.NAME {cfg.TEACHER.NAME!r} does not end each stage with batch "
                "normalisation and ReLU, from which the margins come. Take a ResNet, a WRN or a VGG as the teacher, or "
                "another DISTILLER."
            )
        return found

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        ours, theirs = (before_relu(out)[-self.count :] for out in (student_out, teacher_out))
        connected = [connector(level) for connector, level in zip(self.connectors, ours, strict=True)]
        margins = [self.get_buffer(f"margin{number}") for number in range(self.count)]
        return {"loss_ofd": self.weight * ofd_loss(connected, theirs, margins)}


def _connector(given: int, wanted: int) -> nn.Sequential:
    convolution = nn.Conv2d(given, wanted, 1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / wanted))  # the authors' start
    return nn.Sequential(convolution, SafeBatchNorm2d(wanted))


@register_distiller("simkd")
class SimKD(Distiller):
    """``loss_simkd``: the mean squared error of the projected map and the teacher's (Chen et al. 2022).

    The student is a ``ReusedClassifier``, which has the projector: its ``map`` is the projected map, and its logits are
    those of the teacher's classifier. The loss is that of ``SimKDLoss``. As published, CE_WEIGHT is 0.
    """

    reuses_classifier = True

    def __init__(self, cfg: CfgNode, pair: NetworkPair) -> None:
        super().__init__(cfg, pair)
        self.weight = checked(cfg, "SIMKD.WEIGHT")
        if not isinstance(pair.student, ReusedClassifier):
            raise SetupError(f"DISTILLER {cfg.DISTILLER!r} needs a student with the teacher's classifier.")

    def losses(self, batch: Batch, student_out: ModelOutput, teacher_out: ModelOutput) -> dict[str, Tensor]:
        projected, target = pool_to_common_size(student_out.map, teacher_out.map)
        return {"loss_simkd": self.weight * fitnet_loss([projected], [target])}
