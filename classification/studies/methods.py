"""What tables call methods and models, and in which order."""

from __future__ import annotations

# The name of a method, that of its file in configs/*/methods, to what tables call it. Those without a file of ours are
# the papers'.
METHODS = {"none": "alone", "fitnet": "FitNet", "at": "AT", "rkd": "RKD"}
METHODS |= {name: name for name in ("SP", "PKT", "OFD", "CRD", "WCoRD", "SemCKD", "MGD", "OFA-KD")}
METHODS |= {"reviewkd": "ReviewKD", "": "KD (rerun by Zhao et al.)", "kd": "KD"}
METHODS |= {"dkd_tckd": "TCKD alone", "dkd_nckd": "NCKD alone", "dkd_coupled": "TCKD + NCKD, coupled", "dkd": "DKD"}
METHODS |= {"nkd": "NKD", "sdd_kd": "SDD-KD", "sdd_dkd": "SDD-DKD", "sdd_nkd": "SDD-NKD", "mcld": "MCLD", "hcd": "HCD"}
ORDER = list(METHODS.values())
ALONE = "alone"


def place(method: str) -> tuple[bool, int]:
    """Where a method comes: as in ``ORDER``, unknown ones last."""
    return method not in ORDER, ORDER.index(method) if method in ORDER else 0


def shown(model: str) -> str:
    """A model's name in a table: a library's without its tag of pretrained weights."""
    return model.split(".")[0]
