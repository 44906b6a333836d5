"""--import: a user's own term with its keys, and what is refused."""

from __future__ import annotations

import sys

import pytest

from classification.config import get_config
from classification.config import load_config as load_classification
from classification.distillers import DISTILLERS
from kd_det.common import registry
from kd_det.common.errors import SetupError
from kd_det.common.registry import Registry, import_code, import_options
from kd_det.config import TERMS, load_config, plain_config
from kd_det.teacher.config import teacher_config
from tests.docs.recipes import read_recipes
from tests.tiny import TINY, student_config, teacher_files
from tests.tools.commands import run_here

CODE = read_recipes("extend.md")["A term"].files["my_terms.py"]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Removes what a test has imported."""
    modules, entries = set(sys.modules), [(each, set(each)) for each in (TERMS, DISTILLERS)]
    monkeypatch.setattr(registry, "_imported", [])
    yield
    for each, before in entries:
        for name in set(each) - before:
            del each[name]
    for name in set(sys.modules) - modules:
        if name.startswith(("kd_det_imported_", "own_")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_files(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The path of the documentation's term ``p3``."""
    path = tmp_path_factory.mktemp("recipe") / "my_terms.py"
    path.write_text(CODE)
    return str(path)


@pytest.fixture
def refused(teacher, recipe, tmp_path):
    """``refused(*overrides)`` is the one error line of a training with the term ``p3``."""

    def run(*overrides: object, imported: bool = True) -> str:
        settings = [
            *TINY, "MODEL.META_ARCHITECTURE", "DistillRCNN", "MODEL.ROI_HEADS.NAME", "DistillROIHeads",
            "KD.TERMS", "('p3',)", "KD.TEACHER.CONFIG_FILE", teacher[0], "KD.TEACHER.WEIGHTS", teacher[1],
            "KD.TEACHER.DTYPE", "float32",
            "OUTPUT_DIR", tmp_path / "output",
        ]  # fmt: skip
        ended = run_here("train", *(["--import", recipe] if imported else []), *settings, *overrides)
        lines = ended.stderr.splitlines()
        assert ended.returncode == 2 and lines[-1].startswith("error: "), ended.stderr[-2000:]
        return lines[-1]

    return run


def test_keys_of_a_term(teacher, recipe, tmp_path):
    import_code(recipe)
    import_code(recipe)  # the second time does nothing
    assert import_options() == ["--import", recipe]
    (tmp_path / "own.yaml").write_text("KD: {TERMS: [p3], P3: {WEIGHT: 0.5}}")
    assert load_config("").KD.P3.WEIGHT == 1.0
    assert load_config(str(tmp_path / "own.yaml")).KD.P3.WEIGHT == 0.5
    cfg = student_config(teacher, "KD.P3.WEIGHT", 2.0, terms=("p3",))
    assert cfg.KD.P3.WEIGHT == 2.0 and "KD" not in plain_config(cfg)
    assert "KD" not in teacher_config(cfg)
    # A distilled student, its keys and all, is the next one's teacher.
    (tmp_path / "teacher.yaml").write_text(cfg.dump())
    cfg.KD.TEACHER.CONFIG_FILE = str(tmp_path / "teacher.yaml")
    assert teacher_config(cfg).MODEL.META_ARCHITECTURE == "GeneralizedRCNN"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["KD.P3.WEIGHT", -1.0], "KD.P3.WEIGHT is -1.0; it must be a finite number, 0 or more."),
        (["KD.P3.WEIGHT", "'much'"], "KD.P3.WEIGHT"),
        (["KD.P3.WEIGHT", "None"], "KD.P3.WEIGHT is None; it must be a number"),
        (["KD.P3.WIEGHT", 1.0], "there is no key 'KD.P3.WIEGHT'. Did you mean 'KD.P3.WEIGHT'?"),
        (["KD.TERMS", "('p33',)"], "there is no KD term 'p33'. Did you mean 'p3'?"),
    ],
)
def test_wrong_values_are_one_line(refused, overrides, expected):
    assert expected in refused(*overrides)


def test_without_the_import(refused):
    line = refused(imported=False)
    assert "there is no KD term 'p3'" in line and "--import FILE_OR_MODULE" in line
    assert "exist once its code is imported with --import" in refused("KD.P3.WEIGHT", 1.0, imported=False)
    with pytest.raises(SetupError, match=r"there is no key 'MINE\.WEIGHT'.* with --import"):
        load_classification((), ["MINE.WEIGHT", "1.0"])
    with pytest.raises(SetupError) as raised:
        load_config("", ["SOLVER.MAX_ITR", "1"])
    assert "--import" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\ny = x / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("x = 1\n\ny = = 2\n", "line 3: SyntaxError: invalid syntax"),
        ("import torch\n\ntorch.zeros(2).view(3)\n", "line 3: RuntimeError: shape"),
        ("import own_missing\n", "line 1: ModuleNotFoundError: No module named 'own_missing'"),
        (CODE.replace('"p3"', '"dkd"'), "line 8: ValueError: there is already a KD term 'dkd'"),
        (CODE.replace('"WEIGHT": 1.0', '"WIDTH": 1.0'), "checks has 'KD.P3.WEIGHT', which is not in"),
        (CODE.replace('"WEIGHT": 1.0', '"weight": 1.0'), "the key 'weight' must be capital letters"),
        (CODE.replace('"WEIGHT": 1.0', '"WEIGHT": object()'), "must be one of bool, int, float, str"),
        (CODE.replace('"p3"', '"p-3"'), "so its name must be letters, digits and underscores"),
    ],
)
def test_code_that_raises_is_named_with_its_line(tmp_path, text, expected):
    (tmp_path / "own_terms.py").write_text(text)
    with pytest.raises(SetupError, match=r"^--import ") as raised:
        import_code(str(tmp_path / "own_terms.py"))
    message = str(raised.value)
    assert f"{tmp_path / 'own_terms.py'}, line " in message and expected in message and "\n" not in message


def test_a_file_or_module_that_is_not_there(tmp_path, monkeypatch):
    for name, expected in {"own_terms.py": "no file 'own_terms.py'", "own_terms": "no module 'own_terms'"}.items():
        with pytest.raises(SetupError, match=f"^--import: there is {expected}"):
            import_code(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_terms.py").write_text(CODE)
    monkeypatch.syspath_prepend("")
    import_code("own_terms")
    assert "p3" in TERMS and import_options() == ["--import", "own_terms"]


def test_a_section_that_exists_is_refused(tmp_path):
    (tmp_path / "own_terms.py").write_text(CODE.replace('"p3"', '"teacher"').replace("P3", "TEACHER"))
    import_code(str(tmp_path / "own_terms.py"))
    with pytest.raises(SetupError, match=r"'teacher' has keys, but the key KD\.TEACHER exists already"):
        load_config("")


def test_keys_may_be_of_every_kind_of_value():
    found: Registry[type] = Registry("thing", "THINGS")

    @found.register("mine")
    class Mine:
        keys = {"A": 1.0, "B": (1, 2), "C": "text", "D": True}  # noqa: RUF012

    cfg = get_config()
    found.add_sections(cfg)
    assert (cfg.MINE.A, cfg.MINE.B, cfg.MINE.C, cfg.MINE.D) == (1.0, (1, 2), "text", True)
    found.check_sections(cfg)
    for key, value in {"A": float("inf"), "B": None, "C": 1, "D": 0}.items():
        wrong = cfg.clone()
        wrong.MINE[key] = value
        with pytest.raises(SetupError, match=f"MINE.{key} is "):
            found.check_sections(wrong)


def test_the_list_shows_them(recipe):
    listed = run_here("list", "methods", "p3", "--import", recipe)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.splitlines()[1].split(maxsplit=2)[:2] == ["KD.TERMS", "p3"]
