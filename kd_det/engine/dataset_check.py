"""The report of ``kd-det check-data``: every data set of a training, and its classes compared with the teacher's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode

from kd_det.common.errors import SetupError
from kd_det.data.checks import checked_records, known_metadata, missing_for_model
from kd_det.data.image_sets import IMAGES_ALONE
from kd_det.data.report import (
    CocoReport,
    Finding,
    compare_sets,
    examine,
    examine_unlabeled,
    format_findings,
    format_report,
)
from kd_det.modeling.terms import TERMS
from kd_det.teacher.classes import CLASS_MAP, class_names, compare_classes, shared_classes, unpaired_classes
from kd_det.teacher.config import live_terms, teacher_config
from kd_det.teacher.stored import distilled_stored_classes, open_stored


def check_sets(cfg: CfgNode, names: Sequence[str], *, sizes: bool, with_model: bool) -> tuple[str, bool]:
    """Reports on data sets, and compares their classes with the teacher's.

    Args:
        cfg: with the sets registered; if its ``KD.TEACHER`` names a teacher or stored knowledge, the classes are
            compared.
        names: of registered sets with a COCO JSON, or of images without annotations.
        sizes: decode every image, and compare its size with the JSON's.
        with_model: check also what ``cfg.MODEL`` needs: its number of classes, masks, keypoints.

    Returns:
        the text, and whether a fault in it would stop training.

    Raises:
        SetupError: a set is unknown, not in COCO format or damaged; or the teacher's configuration is not valid.
    """
    if not names:
        raise SetupError("there is no data set to check: give names, --dataset, or a --config-file with DATASETS.")
    reports = [_report(cfg, name, sizes) for name in dict.fromkeys(names)]
    labeled = [report for report in reports if report.classes]
    findings = compare_sets(reports)
    if with_model:
        findings += _model_findings(cfg, labeled)
    if cfg.KD.TEACHER.STORED:
        findings.append(_stored_finding(cfg))
    if cfg.KD.TEACHER.CONFIG_FILE and (not cfg.KD.TEACHER.STORED or live_terms(cfg)) and labeled:
        findings += _teacher_findings(cfg, labeled[0])
    texts = [format_report(report) for report in reports]
    if findings:
        texts.append("\n".join(["together:", *format_findings(findings)]))
    stops = any(finding.stops for part in (findings, *(report.findings for report in reports)) for finding in part)
    return "\n\n".join(texts), stops


def _report(cfg: CfgNode, name: str, sizes: bool) -> CocoReport:
    metadata = known_metadata("data set", name)
    if name in cfg.DATASETS.UNLABELED or metadata.get(IMAGES_ALONE):
        return examine_unlabeled(name, checked_records("data set", name), sizes=sizes)
    if metadata.get("json_file") is None:
        raise SetupError(f"data set {name!r} has no COCO JSON; only sets in COCO format can be checked.")
    return examine(name, metadata.json_file, metadata.image_root, sizes=sizes)


def _model_findings(cfg: CfgNode, reports: Sequence[CocoReport]) -> Iterator[Finding]:
    for report in reports:
        evaluates = report.name in cfg.DATASETS.TEST
        trains = report.name in cfg.DATASETS.TRAIN or not evaluates
        for missing in missing_for_model(cfg, report.name, report.coco, trains=trains, evaluates=evaluates):
            yield Finding(missing, stops=True)


def _stored_finding(cfg: CfgNode) -> Finding:
    try:
        return Finding(distilled_stored_classes(open_stored(cfg)), stops=False)
    except SetupError as error:
        return Finding(str(error), stops=True)


def _teacher_findings(cfg: CfgNode, report: CocoReport) -> list[Finding]:
    teacher_cfg = teacher_config(cfg)
    theirs = class_names(teacher_cfg)
    terms = live_terms(cfg)
    if cfg.KD.TERMS and not any(TERMS[name].needs_logits for name in terms if name in TERMS):
        return [Finding(unpaired_classes(cfg, teacher_cfg, terms), stops=False)]
    if cfg.KD.TEACHER.CLASS_MAP:
        return [_map_finding(cfg, teacher_cfg)]
    if theirs is None:
        count, ours = teacher_cfg.MODEL.ROI_HEADS.NUM_CLASSES, len(report.classes)
        text = f"the teacher's class names are not known; it has {count} classes, {report.name} {ours}"
        return [Finding(text, stops=count != ours)]
    comparison = compare_classes(list(report.classes), theirs)
    text = comparison.verdict
    if comparison.suggestion:
        text += f". Set {CLASS_MAP} to {comparison.suggestion}"
    return [Finding(text, stops=not comparison.fits)]


def _map_finding(cfg: CfgNode, teacher_cfg: CfgNode) -> Finding:
    try:
        classes = shared_classes(cfg, teacher_cfg)
    except SetupError as error:
        return Finding(str(error), stops=True)
    assert classes is not None  # there is a class map
    return Finding(f"{CLASS_MAP} pairs {len(classes.student)} of the {classes.student_classes} classes", stops=False)
