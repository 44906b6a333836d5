"""The distillation methods, one file for each family. A new file is added to the import below."""

from classification.distillers import (  # noqa: F401
    dkd,
    features,
    hcd,
    kd,
    mcld,
    sdd,
)
from classification.distillers.base import (
    DISTILLERS,
    Distiller,
    NetworkPair,
    build_distiller,
    distiller_class,
    register_distiller,
)

__all__ = ["DISTILLERS", "Distiller", "NetworkPair", "build_distiller", "distiller_class", "register_distiller"]
