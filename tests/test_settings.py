from __future__ import annotations

import pytest
from detectron2.config import CfgNode

from kd_det.common.errors import SetupError
from kd_det.config import load_config
from kd_det.config.check import check_settings, leaves
from kd_det.config.model_keys import MODEL
from kd_det.config.other_keys import OTHER
from kd_det.modeling.terms import TERMS

# Keys whose values are free, or are checked where they are used.
UNCHECKED = {"GLOBAL.HACK", "DATASETS.COCO_JSON"}


def test_every_number_and_list_has_a_check():
    table = {**MODEL, **OTHER}
    for term in TERMS.values():
        table |= term.checks
    values = dict(leaves(load_config("")))
    for key, value in values.items():
        assert isinstance(value, (bool, str)) or key in table or key in UNCHECKED, key
    for term in TERMS.values():
        assert set(term.checks) <= set(values), term.name


def test_keys_of_other_projects_pass():
    cfg = load_config("")
    cfg.MODEL.MINE = CfgNode({"NAME": "x", "LISTS": [[None]], "NOTHING": None, "SHARE": 0.5})
    check_settings(cfg)
    cfg.MODEL.MINE.SHARE = float("nan")
    with pytest.raises(SetupError, match=r"MODEL\.MINE\.SHARE is nan; it must be a finite number"):
        check_settings(cfg)


def test_a_section_that_was_replaced():
    cfg = load_config("")
    cfg.SOLVER.AMP = CfgNode()
    with pytest.raises(SetupError, match=r"SOLVER\.AMP\.ENABLED is missing: a whole section was replaced"):
        check_settings(cfg)


def test_floats_may_be_whole_numbers():
    cfg = load_config("")
    cfg.SOLVER.BASE_LR = 1
    check_settings(cfg)


def test_a_section_of_a_file_is_for_classification():
    with pytest.raises(SetupError, match=r"dkd_r101_r18\.yaml:KD': only classification reads sections of files"):
        load_config("coco/dkd_r101_r18.yaml:KD")
