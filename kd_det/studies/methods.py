"""The methods that the benchmarks compare, by the names that the configuration files have."""

from __future__ import annotations

# Name to KD.TERMS; everything else is at its default.
METHODS = {
    "kd": ("kd",),
    "dkd": ("dkd",),
    "nkd": ("nkd",),
    "sdd_dkd": ("sdd",),
    "fitnet": ("fitnet",),
    "fgfi": ("fgfi",),
    "pkd": ("pkd",),
    "reviewkd": ("reviewkd",),
    "dkd_reviewkd": ("dkd", "reviewkd"),
}
TITLES = {
    "kd": "KD",
    "dkd": "DKD",
    "nkd": "NKD",
    "sdd_dkd": "SDD-DKD",
    "fitnet": "FitNet",
    "fgfi": "FGFI",
    "pkd": "PKD",
    "reviewkd": "ReviewKD",
    "dkd_reviewkd": "DKD + ReviewKD",
}
