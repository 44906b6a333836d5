"""The KD terms: each turns what both networks compute from a batch into named losses."""

from kd_det.modeling.regions import DistillationInputs, SharedRegions
from kd_det.modeling.terms.base import TERMS, KDTerm, Maps, build_terms, register_term
from kd_det.modeling.terms.features import Adapters, FeatureTerm, FitNetTerm, PKDTerm, ReviewKDTerm, feature_pairs
from kd_det.modeling.terms.fgfi import FGFITerm
from kd_det.modeling.terms.logits import DKDTerm, KDLossTerm, LogitTerm, NKDTerm
from kd_det.modeling.terms.sdd import SDDTerm

__all__ = [
    "TERMS",
    "Adapters",
    "DKDTerm",
    "DistillationInputs",
    "FGFITerm",
    "FeatureTerm",
    "FitNetTerm",
    "KDLossTerm",
    "KDTerm",
    "LogitTerm",
    "Maps",
    "NKDTerm",
    "PKDTerm",
    "ReviewKDTerm",
    "SDDTerm",
    "SharedRegions",
    "build_terms",
    "feature_pairs",
    "register_term",
]
