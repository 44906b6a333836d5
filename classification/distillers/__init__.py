"""The distillation methods, one file for each family. A new file is added to the import below."""

from classification.distillers import (  # noqa: F401
    dkd,
    features,
    hcd,
    kd,
    mcld,
    mimic,
    multi_level,
    relations,
    sdd,
)
from classification.distillers.base import DISTILLERS, Distiller, NetworkPair, register_distiller
from classification.distillers.several import build_distiller, distiller_class

__all__ = ["DISTILLERS", "Distiller", "NetworkPair", "build_distiller", "distiller_class", "register_distiller"]
