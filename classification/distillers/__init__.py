"""The distillation methods, one to a file. A new one is a file and a name in the import of them all."""

from classification.distillers import (  # noqa: F401
    at,
    dkd,
    dkd_coupled,
    dkd_nckd,
    dkd_tckd,
    fitnet,
    hcd,
    kd,
    mcld,
    nkd,
    none,
    reviewkd,
    rkd,
    sdd,
)
from classification.distillers.base import (
    DISTILLERS,
    Distiller,
    Pair,
    build_distiller,
    distiller_class,
    register_distiller,
)

__all__ = ["DISTILLERS", "Distiller", "Pair", "build_distiller", "distiller_class", "register_distiller"]
