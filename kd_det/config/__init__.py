"""The keys of a detection configuration, its loading, and the checks of its values."""

from kd_det.config.defaults import (
    PLAIN_ROI_HEADS,
    TERMS,
    TIMM_BACKBONE,
    add_kd_config,
    load_config,
    plain_config,
)

__all__ = ["PLAIN_ROI_HEADS", "TERMS", "TIMM_BACKBONE", "add_kd_config", "load_config", "plain_config"]
