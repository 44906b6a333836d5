"""Distillation losses in pure PyTorch, one to a file. Nothing here needs detectron2."""

from kd_det.losses._maps import pool_to_common_size
from kd_det.losses.at import at_loss
from kd_det.losses.coupled_dkd import coupled_dkd_loss
from kd_det.losses.dkd import dkd_loss
from kd_det.losses.fgfi import fgfi_loss
from kd_det.losses.fitnet import fitnet_loss
from kd_det.losses.hcd import HCDLoss
from kd_det.losses.hcl import hcl_loss
from kd_det.losses.kd import kd_loss
from kd_det.losses.mcld import MCLDLoss
from kd_det.losses.multi_scale import multi_scale_logits
from kd_det.losses.nkd import nkd_loss
from kd_det.losses.pkd import pkd_loss
from kd_det.losses.review_fusion import ReviewKDFusion
from kd_det.losses.rkd import rkd_angle_loss, rkd_distance_loss
from kd_det.losses.sdd import sdd_loss
from kd_det.losses.standardize import standardize_logits

__all__ = [
    "HCDLoss",
    "MCLDLoss",
    "ReviewKDFusion",
    "at_loss",
    "coupled_dkd_loss",
    "dkd_loss",
    "fgfi_loss",
    "fitnet_loss",
    "hcl_loss",
    "kd_loss",
    "multi_scale_logits",
    "nkd_loss",
    "pkd_loss",
    "pool_to_common_size",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "sdd_loss",
    "standardize_logits",
]
