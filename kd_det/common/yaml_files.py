"""Reading YAML configurations without running code from them.

Detectron2's reader runs code that a YAML file contains, and its model zoo relies on that. This reader never does.

A file with many short configurations has a section for each. "methods.yaml:crd" names the section ``crd`` of
methods.yaml: its content is that of the section, merged over the ``_BASE_`` files of the whole file.
"""

from __future__ import annotations

import os
import re
from typing import Any

import yaml
from fvcore.common.config import BASE_KEY, CfgNode

from kd_det.common.errors import SetupError, did_you_mean, one_line

MAX_CHARACTERS = 2**17  # in a file; all keys of Detectron2 and ours together take 6,000
MAX_VALUES = 20_000  # in a file; an aliased value counts each time
MAX_DEPTH = 30
MAX_FILES = 100  # of a configuration and its bases
# The one expression in Detectron2's model zoo (Base-RetinaNet.yaml).
EVAL = "tag:yaml.org,2002:python/object/apply:eval"
RETINANET_SIZES = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"
TAG = "tag:yaml.org,2002:"
MERGE, TEXT = f"{TAG}merge", f"{TAG}str"
SECTION = re.compile(r"(.*\.ya?ml):([\w+]+)")


def read_config_file(config_file: str, source: str, kind: type[CfgNode] = CfgNode) -> dict[str, Any]:
    """The content of a YAML configuration, merged over that of its ``_BASE_`` files. No code in them is run.

    Args:
        config_file: a path; of one section of a file, its name after a colon.
        source: the option or key that named the file, for errors.
        kind: the configuration class, which opens ``_BASE_`` files by URL.

    Raises:
        SetupError: a file is missing, is not a YAML mapping of keys to plain values, is its own base, or is a Python
            program; or there is no such section.
    """
    refuse_python(config_file, source)
    if not os.path.isfile(split_section(config_file)[0]):
        raise SetupError(f"{source}: no file {config_file!r}. Give the path of a YAML configuration.")
    try:
        return _Reader(kind).read(config_file, ())
    except SetupError as error:
        raise SetupError(f"{source}: {error}") from error


def read_own_content(config_file: str, kind: type[CfgNode] = CfgNode) -> dict[str, Any]:
    """As ``read_config_file``, without the content of the ``_BASE_`` files."""
    return _Reader(kind).read_own(config_file, ())[0]


def split_section(name: str) -> tuple[str, str]:
    """A file's name and the section that is meant, "" for all of it: ("methods.yaml", "crd") for "methods.yaml:crd"."""
    found = SECTION.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")


def refuse_python(config_file: str, source: str) -> None:
    """Raises ``SetupError`` for a ``.py`` file: Detectron2's LazyConfig would run it."""
    if config_file.endswith(".py"):
        raise SetupError(
            f"{source} {config_file!r} is a Python configuration (LazyConfig), which is not supported. Give a YAML "
            "configuration: the model zoo has one for most models, and your own can build on it with _BASE_."
        )


class _Reader:
    """Reads a file and its bases."""

    def __init__(self, kind: type[CfgNode]) -> None:
        self.kind = kind
        self.files = 0

    def read(self, path: str, above: tuple[str, ...]) -> dict[str, Any]:
        """``above``: the files that this one is a base of."""
        if os.path.realpath(path) in map(os.path.realpath, above):
            raise SetupError(f"configuration {path!r} is its own {BASE_KEY}: {' -> '.join([*above, path]):.400}.")
        refuse_python(path, f"{BASE_KEY} of {above[-1]!r}:" if above else "configuration")
        self.files += 1
        if self.files > MAX_FILES:
            raise SetupError(f"configuration {above[0]!r} has more than {MAX_FILES} {BASE_KEY} files; leave some out.")
        content, bases = self.read_own(path, above)
        merged: dict[str, Any] = {}
        for base in bases if isinstance(bases, list) else [bases]:
            if not isinstance(base, str):
                raise SetupError(f"configuration {path!r}: {BASE_KEY} is {base!r:.100}; give the path of a file.")
            merged = _merged(merged, self.read(_base_path(base, path), (*above, path)), path)
        return _merged(merged, content, path)

    def read_own(self, path: str, above: tuple[str, ...]) -> tuple[dict[str, Any], Any]:
        """The content of the file or section itself, and what ``_BASE_`` is in the file."""
        file, section = split_section(path)
        content = _parse(self._text(file, above), file)
        bases = content.pop(BASE_KEY, [])
        return (_section_of(content, section, file) if section else content), bases

    def _text(self, path: str, above: tuple[str, ...]) -> str:
        if above and not _is_url(path) and not os.path.isfile(path):
            raise SetupError(f"configuration {above[-1]!r}: its {BASE_KEY} {path!r} does not exist. Correct the path.")
        try:
            with self.kind._open_cfg(path) as file:
                text: str = file.read(MAX_CHARACTERS + 1)
        except UnicodeDecodeError as error:
            raise SetupError(f"configuration {path!r} is not text ({error.reason}). Give a YAML file.") from error
        except (OSError, ValueError) as error:  # from the file system or the network
            named = f" ({BASE_KEY} of {above[-1]!r})" if above else ""
            raise SetupError(f"configuration {path!r}{named} cannot be read: {one_line(error)}.") from error
        if len(text) > MAX_CHARACTERS:
            raise SetupError(f"configuration {path!r} has over {MAX_CHARACTERS} characters; give a YAML configuration.")
        return text


def _section_of(content: dict[str, Any], section: str, file: str) -> dict[str, Any]:
    found = content.get(section)
    if not isinstance(found, dict):
        known = [name for name, value in content.items() if isinstance(value, dict)]
        near = did_you_mean(section, known)
        raise SetupError(f"{file!r} has no section {section!r}.{near} Known: {', '.join(known)}.")
    return found


def _base_path(base: str, path: str) -> str:
    base = os.path.expanduser(base)
    return base if os.path.isabs(base) or _is_url(base) else os.path.join(os.path.dirname(path), base)


def _is_url(path: str) -> bool:
    return path.startswith(("https://", "http://"))


def _merged(base: dict[str, Any], content: dict[str, Any], path: str) -> dict[str, Any]:
    """``base`` with ``content`` written over it, key by key."""
    merged = dict(base)  # a copy: two keys can share a section by an alias
    for key, value in content.items():
        if isinstance(value, dict) and key in base:
            if not isinstance(base[key], dict):
                raise SetupError(f"configuration {path!r}: {key!r} is a section here and a value in its {BASE_KEY}.")
            value = _merged(base[key], value, path)
        merged[key] = value
    return merged


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Plain values, and the one expression that the model zoo uses."""


def _construct_sizes(loader: yaml.SafeLoader, node: yaml.Node) -> list[list[float]]:
    return [[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in (32, 64, 128, 256, 512)]


_Loader.add_constructor(EVAL, _construct_sizes)


def _parse(text: str, path: str) -> dict[str, Any]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise SetupError(_no_yaml(error, path)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SetupError(f"configuration {path!r}, line {line}: this is not valid YAML: {error.reason}.") from error
    except RecursionError as error:
        raise SetupError(f"configuration {path!r} is nested too deeply; give a YAML configuration.") from error
    _check_root(node, path)
    _NodeCheck(path).visit(node, 1)
    try:
        content: dict[str, Any] = loader.construct_document(node)
        return content
    except yaml.MarkedYAMLError as error:
        raise SetupError(_no_yaml(error, path)) from error
    except (ValueError, OverflowError) as error:  # an invalid date or number
        raise SetupError(f"configuration {path!r} has a value that cannot be read: {one_line(error)}.") from error


def _no_yaml(error: yaml.MarkedYAMLError, path: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = f", line {mark.line + 1}" if mark else ""
    return f"configuration {path!r}{line}: this is not valid YAML: {one_line(error.problem or error.context)}."


def _check_root(node: yaml.Node | None, path: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        what = {type(None): "is empty", yaml.SequenceNode: "is a list"}.get(type(node), "is plain text")
        raise SetupError(f"configuration {path!r} {what}; give a YAML file of keys and values.")


class _NodeCheck:
    """Refuses nodes that do not belong in a plain configuration, before any value is constructed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.values = 0

    def visit(self, node: yaml.Node, depth: int) -> None:
        self.values += 1
        if self.values > MAX_VALUES:  # aliases of aliases can make millions of values from a few lines
            self._refuse(node, f"more than {MAX_VALUES} values; give a YAML configuration")
        if depth > MAX_DEPTH:
            self._refuse(node, "nested too deeply; give a YAML configuration")
        if node.tag not in yaml.SafeLoader.yaml_constructors and not _is_retinanet(node):
            tag = f"!!{node.tag.removeprefix(TAG)}" if node.tag.startswith(TAG) else node.tag
            self._refuse(
                node,
                f"the tag {tag!r:.200} is refused, as it could run code. Write the value itself: text, a number, "
                "True, a list or keys",
            )
        if isinstance(node, yaml.MappingNode):
            self._visit_mapping(node, depth)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self.visit(item, depth + 1)

    def _visit_mapping(self, node: yaml.MappingNode, depth: int) -> None:
        seen: set[str] = set()
        for key, value in node.value:
            if key.tag != MERGE:
                if key.tag != TEXT or not isinstance(key, yaml.ScalarNode):
                    self._refuse(key, f"the key {str(key.value)!r:.100} is not text. Put it in quotes")
                if key.value in seen:
                    self._refuse(key, f"the key {key.value!r:.100} is listed twice. Remove one")
                seen.add(key.value)
            self.visit(value, depth + 1)

    def _refuse(self, node: yaml.Node, what: str) -> None:
        raise SetupError(f"configuration {self.path!r}, line {node.start_mark.line + 1}: {what}.")


def _is_retinanet(node: yaml.Node) -> bool:
    return (
        node.tag == EVAL
        and isinstance(node, yaml.SequenceNode)
        and [getattr(item, "value", None) for item in node.value] == [RETINANET_SIZES]
    )
