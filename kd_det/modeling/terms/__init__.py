"""The KD terms: each turns what both networks say about a batch into named losses. One term a file."""

from kd_det.modeling.terms.base import TERMS, KDTerm, LogitTerm, Maps, build_terms, register_term
from kd_det.modeling.terms.dkd import DKDTerm
from kd_det.modeling.terms.kd import KDLossTerm

__all__ = ["TERMS", "DKDTerm", "KDLossTerm", "KDTerm", "LogitTerm", "Maps", "build_terms", "register_term"]
