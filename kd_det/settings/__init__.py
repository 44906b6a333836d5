"""What a configuration of detection may say: every key's own check, and the rules about several keys together."""

from kd_det.settings.check import check_keys, check_model_settings, check_settings
from kd_det.settings.maps import check_maps
from kd_det.settings.model import check_model
from kd_det.settings.training import check_proposal_files, check_training

__all__ = [
    "check_keys",
    "check_maps",
    "check_model",
    "check_model_settings",
    "check_proposal_files",
    "check_settings",
    "check_training",
]
