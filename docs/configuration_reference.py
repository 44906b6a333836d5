"""MkDocs hook: writes the tables of configuration.md from the commented defaults in the source code.

A line ``<!-- keys: FILE,FILE FOLDER SECTION -->`` in that page becomes one table for each section of keys: those that
the files set on a ``CfgNode``, and those that classes in FOLDER bring to SECTION by their attribute ``keys``. The
source is read, not imported, so the site builds without Detectron2.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARKER = re.compile(r"^<!-- keys: (\S+) (\S+) (\S* ?)-->$", re.MULTILINE)
# Shown as code: ``code`` of a docstring, KD.DKD.BETA, OUTPUT_DIR.
CODE = re.compile(r"``(.+?)``|((?<![/\w])[A-Z][A-Z0-9]*(?:[._][A-Z0-9]+)+\b)")
CONFIG = "cfg"


@dataclass
class Section:
    """The keys of a ``CfgNode`` and the comments beside them.

    Attributes:
        name: "KD.DKD"; empty for keys at the top.
        notes: paragraphs on the whole section.
        keys: (name in full, default as Python source, comment or "").
    """

    name: str
    notes: list[str] = field(default_factory=list)
    keys: list[tuple[str, str, str]] = field(default_factory=list)


def read_sections(path: str | Path) -> list[Section]:
    """The sections that a file sets by assignments such as ``cfg.KD.DKD.BETA = 0.25``, in the file's order.

    A key's comment is in the lines directly above it or at the end of its line. A comment above a section, or one that
    an empty line follows, is a note on the section.
    """
    source = Path(path).read_text()
    lines = source.splitlines()
    sections: dict[str, Section] = {}
    for name, node in _assignments(ast.parse(source)):
        above = _comment_above(lines, node.lineno - 1)
        free = _free_comment(lines, node.lineno - 1)
        if _is_section(node.value):
            section = sections.setdefault(name, Section(name))
            section.notes += [note for note in (free, above) if note]
            continue
        parent = name.rpartition(".")[0]
        section = sections.setdefault(parent, Section(parent))
        section.notes += [free] if free else []
        beside = lines[node.end_lineno - 1][node.end_col_offset :].strip().removeprefix("#").strip()
        comment = " ".join(part for part in (above, beside) if part)
        section.keys.append((name, ast.unparse(node.value), comment))
    return [section for section in sections.values() if section.keys]


def read_class_keys(folder: str | Path, above: str = "") -> list[Section]:
    """The keys that registered classes in the files of a folder bring: ``keys = {"WEIGHT": 1.0}``, with their comments.

    Args:
        folder: a Python package.
        above: the section that theirs are in, such as "KD".
    """
    sections = []
    for path in sorted(Path(folder).glob("*.py")):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                sections += _class_section(node, source.splitlines(), above)
    return sections


def _class_section(node: ast.ClassDef, lines: list[str], above: str) -> list[Section]:
    names = [call.args[0] for call in node.decorator_list if isinstance(call, ast.Call) and call.args]
    values = [
        part.value
        for part in node.body
        if isinstance(part, (ast.Assign, ast.AnnAssign))
        and ast.unparse(part.targets[0] if isinstance(part, ast.Assign) else part.target) == "keys"
    ]
    if not names or not values or not isinstance(values[0], ast.Dict):
        return []
    name = ".".join(part for part in (above, ast.literal_eval(names[0]).upper()) if part)
    section = Section(name, [(ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ")])
    for key, default in zip(values[0].keys, values[0].values, strict=True):
        after = lines[default.end_lineno - 1][default.end_col_offset :]
        comment = after.partition("#")[2].strip() if '"' not in after else ""
        section.keys.append((f"{name}.{ast.literal_eval(key)}", ast.unparse(default), comment))
    return [section]


def render(sections: list[Section]) -> str:
    """The sections as Markdown: a heading, the notes and a table for each."""
    parts = []
    for section in sections:
        parts.append(f"### `{section.name}`" if section.name else "### At the top")
        parts += [_text(note) for note in section.notes]
        rows = [f"| `{name}` | `{default}` | {_text(comment)} |" for name, default, comment in section.keys]
        parts.append("\n".join(["| key | default | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Called by MkDocs for every page."""
    del kwargs
    return MARKER.sub(_tables, markdown)


def _tables(marker: re.Match[str]) -> str:
    files, folder, above = marker.groups()
    own = [section for file in files.split(",") for section in read_sections(ROOT / file)]
    return render([*own, *read_class_keys(ROOT / folder, above.strip())])


def on_serve(server: Any, **kwargs: Any) -> Any:
    """Called by ``mkdocs serve``: rebuilds when a default changes."""
    del kwargs
    for folder in ("kd_det", "classification"):
        server.watch(str(ROOT / folder))
    return server


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.Assign]]:
    """Every ``cfg.A.B = default`` with "A.B", from the top of the file to its end."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    for node in sorted(found, key=lambda node: node.lineno):
        root, _, name = ast.unparse(node.targets[0]).partition(".")
        if root == CONFIG and name and not isinstance(node.value, ast.Name):  # a variable is no default
            yield name, node


def _is_section(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) == "CfgNode"


def _comment_above(lines: list[str], index: int) -> str:
    """The comment that ends in the line before ``lines[index]``."""
    found: list[str] = []
    while index > 0 and lines[index - 1].lstrip().startswith("#"):
        index -= 1
        found.insert(0, lines[index].strip().removeprefix("#").strip())
    return " ".join(found)


def _free_comment(lines: list[str], index: int) -> str:
    """The comment before an empty line, above the comment of ``lines[index]`` or above the line itself."""
    while index > 0 and lines[index - 1].lstrip().startswith("#"):
        index -= 1
    if index > 0 and not lines[index - 1].strip():
        return _comment_above(lines, index - 1)
    return ""


def _text(comment: str) -> str:
    """A comment as Markdown: its keys as code, what Markdown would read as a sign escaped."""
    pieces = []
    end = 0
    for match in CODE.finditer(comment):
        pieces += [_escaped(comment[end : match.start()]), f"`{match[1] or match[2]}`"]
        end = match.end()
    return "".join([*pieces, _escaped(comment[end:])])


def _escaped(text: str) -> str:
    return re.sub(r"([*_\[\]|<`])", r"\\\1", text)
