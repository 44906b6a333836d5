"""Loss formulas are written in kd_det.losses and nowhere else: by the syntax tree, by identity, and by behaviour."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path

import pytest
import torch

import kd_det.losses
from classification.distillers import DISTILLERS
from kd_det.modeling.terms import TERMS
from tests.classification.distillers.tiny import Case
from tests.conftest import ROOT
from tests.modeling.test_distill_rcnn import Calls
from tests.tiny import batch, build, student_config, teacher_files

# What a loss on distributions is made of, as a function, a method or a module; and torch's other losses.
INGREDIENTS = {
    "softmax", "log_softmax", "softmin", "gumbel_softmax", "logsumexp", "logaddexp", "kl_div", "cross_entropy",
    "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "smooth_l1_loss",
    "huber_loss", "cosine_embedding_loss", "kl_divergence",
    "Softmax", "Softmax2d", "LogSoftmax", "Softmin", "KLDivLoss", "CrossEntropyLoss", "NLLLoss", "BCELoss",
    "BCEWithLogitsLoss", "MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "CosineEmbeddingLoss",
}  # fmt: skip
# Torch's operators without the functions around them: "_softmax", "aten._log_softmax".
INGREDIENTS |= {f"_{name}" for name in INGREDIENTS}

# File, function and ingredient of code that is not distillation.
ALLOWED = {
    # The task's own loss, with the labels.
    ("classification/step.py", "TrainingStep._view", "cross_entropy"),
    # The plain hand-written loop that the training step is timed against.
    ("classification/studies/step_worker.py", "plain_step.step", "cross_entropy"),
    # A linear classifier that is trained to probe the features of a finished student.
    ("classification/studies/linear_probe.py", "probe_by_sgd", "cross_entropy"),
    # Training samples ranked by the teacher's probability of their label.
    ("classification/data/labels.py", "confident_samples", "softmax"),
    # DKD as it is often written, which the benchmark times beside ours.
    ("kd_det/studies/loss_speed.py", "masked_dkd", "softmax"),
    ("kd_det/studies/loss_speed.py", "masked_dkd", "log_softmax"),
    ("kd_det/studies/loss_speed.py", "masked_dkd", "kl_div"),
    # A backbone warmed up by classifying crops, before there is any teacher.
    ("kd_det/studies/warm_up.py", "warm_up_backbone", "cross_entropy"),
    # Stored knowledge is log-probabilities: of a teacher's logits, averaged over views and teachers, the rest's mass.
    ("kd_det/teacher/ensemble.py", "in_student_classes", "log_softmax"),
    ("kd_det/teacher/ensemble.py", "TeacherEnsemble.look", "logsumexp"),
    ("kd_det/data/knowledge_format.py", "encoded_logits", "logsumexp"),
    # The value of import-teacher's option --scores.
    ("kd_det/data/predictions.py", "", "softmax"),
    ("kd_det/data/predictions.py", "full_probabilities", "softmax"),
    # The score vectors of torchvision's detector, for a file of its predictions.
    ("kd_det/studies/torchvision_detector.py", "predict", "softmax"),
    # Probabilities written on a picture.
    ("kd_det/modeling/drawing.py", "draw_teacher_and_student", "softmax"),
}


def uses(source: str) -> set[tuple[str, str]]:
    """(function, ingredient) of every mention in a module: called, passed on, imported under another name."""
    found = set()

    def visit(node: ast.AST, scope: tuple[str, ...]) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            scope = (*scope, node.name)
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name.rsplit(".", 1)[-1] for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]  # getattr(F, "softmax")
        found.update((".".join(scope), name) for name in names if name in INGREDIENTS)
        for child in ast.iter_child_nodes(node):
            visit(child, scope)

    visit(ast.parse(source), ())
    return found


def sources() -> list[Path]:
    files = [file for package in ("kd_det", "classification") for file in (ROOT / package).rglob("*.py")]
    return sorted(file for file in files if not file.is_relative_to(ROOT / "kd_det" / "losses"))


def test_no_other_file_writes_a_loss():
    assert len(sources()) > 60
    found = {
        (file.relative_to(ROOT).as_posix(), function, name)
        for file in sources()
        for function, name in uses(file.read_text(encoding="utf-8"))
    }
    assert found - ALLOWED == set(), "write it in kd_det/losses, or allow it above with the reason"
    assert ALLOWED - found == set(), "no longer there: take it off the list"


@pytest.mark.parametrize(
    "line",
    [
        "F.softmax(s, 1)",
        "logits.softmax(1)",
        "torch.log_softmax(s, 1)",
        "torch.nn.functional.kl_div(a, b)",
        "from torch.nn.functional import cross_entropy as ce",
        "nn.KLDivLoss()",
        "f = F.cross_entropy",
        "getattr(F, 'softmax')(s)",
        "torch.ops.aten._log_softmax(s, 1, False)",
        "s.logsumexp(1)",
    ],
)
def test_the_search_finds(line):
    assert uses(f"def f():\n    {line}") and uses(line)
    assert {function for function, _ in uses(f"class A:\n    def f():\n        {line}")} == {"A.f"}


def test_the_search_leaves_alone():
    assert uses('"""A softmax and its cross_entropy."""\nuses_cross_entropy = True\nkd_loss(s, t)  # softmax') == set()


# Each method's result is what these of kd_det.losses return, times a weight. What is not named here is passed to them.
RESULTS = {
    "none": (),
    "kd": ("kd_loss",),
    "dkd": ("dkd_loss",),
    "nkd": ("nkd_loss",),
    "sdd": ("sdd_loss",),
    "dkd_tckd": ("dkd_loss",),
    "dkd_nckd": ("dkd_loss",),
    "dkd_coupled": ("coupled_dkd_loss",),
    "fitnet": ("fitnet_loss",),
    "at": ("at_loss",),
    "rkd": ("rkd_distance_loss", "rkd_angle_loss"),
    "reviewkd": ("hcl_loss",),
    "mcld": ("MCLDLoss",),
    "hcd": ("HCDLoss",),
    "sp": ("sp_loss",),
    "nst": ("nst_loss",),
    "pkt": ("pkt_loss",),
    "kdsvd": ("kdsvd_loss",),
    "crd": ("CRDLoss",),
    "vid": ("VIDLoss",),
    "ofd": ("ofd_loss",),
    "simkd": ("fitnet_loss",),
    "dist": ("dist_loss",),
    "mlkd": ("mlkd_loss",),
    "ctkd": ("ctkd_loss",),
    "catkd": ("catkd_loss",),
    "fgfi": ("fgfi_loss",),
    "pkd": ("pkd_loss",),
}

METHODS = [pytest.param(cls, name, id=f"classification-{name}") for name, cls in sorted(DISTILLERS.items())]
METHODS += [pytest.param(cls, name, id=f"detection-{name}") for name, cls in sorted(TERMS.items())]


def called_losses(cls: type) -> dict[str, object]:
    """The names that the class and its module call or pass on, of what looks like a loss, with what they stand for."""
    module = importlib.import_module(cls.__module__)
    tree = ast.parse(inspect.getsource(module))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    values = {name: getattr(module, name) for name in names if hasattr(module, name)}
    ours = {name: value for name, value in values.items() if _origin(value).split(".")[:2] == ["kd_det", "losses"]}
    by_name = {name: value for name, value in values.items() if name.endswith(("_loss", "Loss", "_logits", "Fusion"))}
    return ours | by_name


def _origin(value: object) -> str:
    return getattr(value, "__module__", None) or ""


@pytest.mark.parametrize(("cls", "name"), METHODS)
def test_every_loss_a_method_uses_is_the_one_of_kd_det_losses(cls, name):
    used = called_losses(cls)
    public = {key: value for key, value in used.items() if key in kd_det.losses.__all__}
    assert set(RESULTS[name]) <= set(public)
    assert all(value is getattr(kd_det.losses, key) for key, value in public.items())
    # Nothing that looks like a loss comes from elsewhere, under whatever name.
    assert all(_origin(value).startswith("kd_det.losses") for value in used.values()), used


def scaled(value, factor):
    if isinstance(value, dict):
        return {key: factor * each for key, each in value.items()}
    return factor * value


def scale_losses(monkeypatch, names, package, factor):
    """Makes the losses ``names`` return ``factor`` times their value, wherever ``package`` uses them."""
    for name in names:
        real = getattr(kd_det.losses, name)
        if inspect.isclass(real):
            forward = real.forward
            monkeypatch.setattr(
                real, "forward", lambda self, *a, _forward=forward, **k: scaled(_forward(self, *a, **k), factor)
            )
            continue
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith(package) and getattr(module, name, None) is real:
                monkeypatch.setattr(module, name, lambda *a, _real=real, **k: factor * _real(*a, **k))


def assert_scaled(losses, before, factor):
    """Not for all terms 0; MCLD's instance term is, while its queue is empty."""
    assert set(losses) == set(before)
    assert not before or any(value.item() != 0 for value in before.values())
    for key, value in before.items():
        torch.testing.assert_close(losses[key], factor * value, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", sorted(DISTILLERS))
def test_a_distillers_result_is_that_losss_and_nothing_more(name, monkeypatch):
    torch.manual_seed(0)
    case = Case(name)
    before = Case(name).losses()
    assert bool(before) == bool(RESULTS[name])
    scale_losses(monkeypatch, RESULTS[name], "classification.distillers", 3.0)
    assert_scaled(case.losses(), before, 3.0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def event_storage():
    from detectron2.utils.events import EventStorage

    with EventStorage(0) as storage:
        yield storage


@pytest.mark.parametrize("name", sorted(TERMS))
def test_a_detection_terms_result_is_that_losss_and_nothing_more(name, teacher, event_storage, monkeypatch):
    model = build(student_config(teacher, terms=(name,)))
    model.load_teacher()
    term = model.terms[name]
    seen = Calls(term)
    model(batch())
    inputs = seen.inputs[0][0]
    before = term(inputs)
    scale_losses(monkeypatch, RESULTS[name], "kd_det.modeling.terms", 3.0)
    assert_scaled(term(inputs), before, 3.0)


@pytest.mark.parametrize(
    ("cls", "step"),
    [
        (DISTILLERS["sdd"], "multi_scale_logits"),
        (DISTILLERS["sdd"], "standardize_logits"),
        (DISTILLERS["reviewkd"], "ReviewKDFusion"),
        (TERMS["reviewkd"], "ReviewKDFusion"),
    ],
)
def test_what_a_loss_is_given_comes_from_there_too(cls, step):
    found = [used[step] for used in map(called_losses, cls.__mro__[:2]) if step in used]
    assert found and all(value is getattr(kd_det.losses, step) for value in found)


def test_a_formula_of_ones_own_would_be_found(monkeypatch):
    """The tests above on a distiller that adds something to its loss, and on one that brings its own loss."""
    case = Case("kd")
    honest = case.distiller.losses
    monkeypatch.setattr(case.distiller, "losses", lambda *a: {key: value + 1 for key, value in honest(*a).items()})
    before = case.losses()
    scale_losses(monkeypatch, ["kd_loss"], "classification.distillers", 3.0)
    with pytest.raises(AssertionError):
        assert_scaled(case.losses(), before, 3.0)
    monkeypatch.undo()

    def own_loss(s, t, temperature):
        return (s - t).square().mean() / temperature

    module = sys.modules["classification.distillers.kd"]
    monkeypatch.setattr(module, "kd_loss", own_loss)
    with pytest.raises(AssertionError):
        test_every_loss_a_method_uses_is_the_one_of_kd_det_losses(DISTILLERS["kd"], "kd")
