"""Distillation losses in pure PyTorch. Nothing here needs Detectron2 or another part of ``kd_det``.

``textbook`` has the plain formulas of the losses on logits, for reading next to the papers. The losses below give the
same values, but they are safe for any finite input and faster. They have these properties in common:

- **Shapes.** B samples (images, or boxes), C classes, N regions. Maps are lists with one (B, C, H, W) per level, where
  C, H and W are the map's channels, height and width.
- **Precision.** Inputs are float16, bfloat16, float32 or float64. A loss is computed and returned in the widest of its
  inputs' dtypes, and in float32 at least, under autocast too. A gradient has the dtype of its input.
- **Teacher.** It gets no gradient.
- **Range.** Finite logits and features give a finite loss. Values are clamped, even infinite ones: logits to ±1e18 (in
  float64 ±1e150), and to ±1e15 where they are standardised, normalised or compared by distances. nan gives nan. The
  mean squared error of maps overflows where a squared difference does, in float32 from 1.8e19.
- **Labels** are int64 class indices (B,), from 0 to C − 1. On the CPU, other values raise ``ValueError``. On an
  accelerator its own assertion stops the run: a check here would synchronise host and device in every step.
- **Reduction** is "none" (a loss for each sample), "mean" or "sum", as in torch.
- **Empty batches** give a 0 that keeps the graph.
- **Derivatives.** KD, DKD, coupled DKD, NKD and the losses built on them (SDD, MLKD, HCD) compute their gradient in
  closed form. They can be differentiated once; a second derivative (``create_graph=True``) raises ``RuntimeError``. The
  same holds for KDSVD, CRD and the instance term of MCLD. Autograd differentiates all others, among them ``dist_loss``
  and ``ctkd_loss``, as usual.
- **Errors.** ``ValueError`` names the argument whose shape, dtype, device or value is wrong.
"""

from kd_det.losses import textbook
from kd_det.losses.contrast import CRDLoss
from kd_det.losses.dkd import coupled_dkd_loss, dkd_loss
from kd_det.losses.hcd import HCDLoss
from kd_det.losses.kd import kd_loss
from kd_det.losses.maps import at_loss, fgfi_loss, fitnet_loss, hcl_loss, pkd_loss, pool_to_common_size
from kd_det.losses.mcld import MCLDLoss
from kd_det.losses.mimic import SimKDLoss, VIDLoss, ofd_loss, ofd_margin
from kd_det.losses.multi_level import (
    catkd_loss,
    class_activation_maps,
    ctkd_loss,
    ctkd_reversal,
    dist_loss,
    mlkd_loss,
)
from kd_det.losses.nkd import nkd_loss
from kd_det.losses.normalize import standardize_logits
from kd_det.losses.relations import kdsvd_loss, nst_loss, pkt_loss, sp_loss
from kd_det.losses.review_fusion import ReviewKDFusion
from kd_det.losses.rkd import rkd_angle_loss, rkd_distance_loss
from kd_det.losses.sdd import multi_scale_logits, sdd_loss

__all__ = [
    "CRDLoss",
    "HCDLoss",
    "MCLDLoss",
    "ReviewKDFusion",
    "SimKDLoss",
    "VIDLoss",
    "at_loss",
    "catkd_loss",
    "class_activation_maps",
    "coupled_dkd_loss",
    "ctkd_loss",
    "ctkd_reversal",
    "dist_loss",
    "dkd_loss",
    "fgfi_loss",
    "fitnet_loss",
    "hcl_loss",
    "kd_loss",
    "kdsvd_loss",
    "mlkd_loss",
    "multi_scale_logits",
    "nkd_loss",
    "nst_loss",
    "ofd_loss",
    "ofd_margin",
    "pkd_loss",
    "pkt_loss",
    "pool_to_common_size",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "sdd_loss",
    "sp_loss",
    "standardize_logits",
    "textbook",
]
