"""MkDocs hook: writes the tables of configuration.md from the commented defaults in the source code.

A line ``<!-- keys: PATH -->`` in that page becomes one table for each section of the ``CfgNode`` keys that PATH sets.
The source is read, not imported, so the site builds without Detectron2.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARKER = re.compile(r"^<!-- keys: (\S+) -->$", re.MULTILINE)
# KD.DKD.BETA, OUTPUT_DIR: shown as code.
KEY = re.compile(r"(?<![/\w])[A-Z][A-Z0-9]*(?:[._][A-Z0-9]+)+\b")
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
    return MARKER.sub(lambda match: render(read_sections(ROOT / match[1])), markdown)


def on_serve(server: Any, **kwargs: Any) -> Any:
    """Called by ``mkdocs serve``: rebuilds when a default changes."""
    del kwargs
    for folder in ("kd_det", "classification"):
        server.watch(str(ROOT / folder))
    return server


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.Assign]]:
    """Every ``cfg.A.B = value`` with "A.B", from the top of the file to its end."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    for node in sorted(found, key=lambda node: node.lineno):
        root, _, name = ast.unparse(node.targets[0]).partition(".")
        if root == CONFIG and name and name == name.upper():
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
    for match in KEY.finditer(comment):
        pieces += [_escaped(comment[end : match.start()]), f"`{match[0]}`"]
        end = match.end()
    return "".join([*pieces, _escaped(comment[end:])])


def _escaped(text: str) -> str:
    return re.sub(r"([*_\[\]|<`])", r"\\\1", text)
