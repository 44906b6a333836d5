"""The KD terms: each turns what both networks say about a batch into named losses. One term a file."""

from kd_det.modeling.terms.base import TERMS, KDTerm, LogitTerm, Maps, build_terms, register_term
from kd_det.modeling.terms.dkd import DKDTerm
from kd_det.modeling.terms.features import FeatureTerm
from kd_det.modeling.terms.fgfi import FGFITerm
from kd_det.modeling.terms.fitnet import FitNetTerm
from kd_det.modeling.terms.kd import KDLossTerm
from kd_det.modeling.terms.nkd import NKDTerm
from kd_det.modeling.terms.pkd import PKDTerm
from kd_det.modeling.terms.reviewkd import ReviewKDTerm
from kd_det.modeling.terms.sdd import SDDTerm

__all__ = [
    "TERMS",
    "DKDTerm",
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
    "build_terms",
    "register_term",
]
