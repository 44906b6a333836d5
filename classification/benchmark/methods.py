"""What tables call methods and models, and in which order."""

from __future__ import annotations

# The start of a configuration's name to what tables call the method. Only the papers have those without one.
METHODS = {"vanilla": "alone", "fitnet": "FitNet", "at": "AT", "rkd": "RKD"}
METHODS |= {name: name for name in ("SP", "PKT", "OFD", "CRD", "WCoRD", "SemCKD", "MGD", "OFA-KD")}
METHODS |= {"reviewkd": "ReviewKD", "": "KD (rerun by Zhao et al.)", "kd": "KD"}
METHODS |= {"dkd_tckd": "TCKD alone", "dkd_nckd": "NCKD alone", "dkd_coupled": "TCKD + NCKD, coupled", "dkd": "DKD"}
METHODS |= {"nkd": "NKD", "sdd_kd": "SDD-KD", "sdd_dkd": "SDD-DKD", "sdd_nkd": "SDD-NKD", "mcld": "MCLD", "hcd": "HCD"}
ORDER = list(METHODS.values())
ALONE = "alone"


def split_name(config: str) -> tuple[str, str]:
    """Method and networks in a configuration's name: "cifar100/sdd_kd_vgg13_vgg8" is "SDD-KD" and "vgg13_vgg8".

    The method is "" where it is none of ``METHODS``.
    """
    leaf = config.split("/")[-1]
    start = max((start for start in METHODS if start and leaf.startswith(f"{start}_")), key=len, default="")
    return (METHODS[start], leaf.removeprefix(f"{start}_")) if start else ("", leaf)


def place(method: str) -> tuple[bool, int]:
    """Where a method comes: as in ``ORDER``, unknown ones last."""
    return method not in ORDER, ORDER.index(method) if method in ORDER else 0


def shown(model: str) -> str:
    """A model's name in a table: a library's without its tag of pretrained weights."""
    return model.split(".")[0]
