"""A suite file: its text, its plain values, and the line of each of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tradebench.errors import UserError
from tradebench.suite.problems import Loc, Problem, near, show

PREFIX = "tag:yaml.org,2002:"
MERGE = f"{PREFIX}merge"
# YAML 1.2 knows neither dates nor `=`; ruamel still marks them, and here they are text.
TEXT = {f"{PREFIX}{kind}" for kind in ("str", "timestamp", "value")}
SCALARS = {f"{PREFIX}{kind}" for kind in ("int", "float", "bool", "null")}

LARGEST = 2**63  # beyond it, a number in JSON may come back as infinity


@dataclass(frozen=True)
class Source:
    """A YAML file that was read: plain values, and the line of each key and list item."""

    path: Path
    text: str
    data: dict[str, Any]
    lines: dict[Loc, int]

    def line(self, at: Loc) -> int:
        """The line of a key or list item, or of the nearest thing around it."""
        while at not in self.lines:
            at = at[:-1]
        return self.lines[at]

    def error(self, problem: Problem) -> UserError:
        """The problem as one line: file, line, sentence."""
        return UserError(f"{self.path}:{self.line(problem.at)}: {problem.sentence}")

    @property
    def question(self) -> str:
        """The first paragraph of the comment that opens the file."""
        return next(iter(paragraphs(self.text)), "")


def paragraphs(text: str) -> list[str]:
    """The comment that opens a suite file: the question, and what there is to say about it."""
    found: list[list[str]] = [[]]
    for line in itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()):
        comment = line.removeprefix("#").strip()
        if comment.startswith(("yaml-language-server:", "!")):
            continue
        if comment:
            found[-1].append(comment)
        else:
            found.append([])
    return [" ".join(words) for words in found if words]


def read(path: Path) -> str:
    """The text of a suite file.

    Raises:
        UserError: there is no such file, or it is not text.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        close = near(path.name, _suites(path.parent))
        hint = f", did you mean {str(path.with_name(close))!r}?" if close else ""
        raise UserError(f"{path}: no such file{hint}") from None
    except IsADirectoryError:
        names = ", ".join(sorted(_suites(path)))
        hint = f"; it holds {names}" if names else ""
        raise UserError(f"{path}: a folder, not a suite{hint}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read: {reason}") from None


def parse(text: str, path: Path) -> Source:
    """Read YAML 1.2; `path` only names the file in errors.

    Raises:
        UserError: the text is not one YAML mapping of plain values.
    """
    root = _compose(text, path)
    if root is None:
        raise UserError(f"{path}:1: the file is empty; a suite needs at least model and grid")
    reader = _Reader()
    try:
        data = reader.value(root, ())
    except RecursionError:
        raise UserError(f"{path}: an anchor contains itself") from None
    except Problem as problem:
        raise Source(path, text, {}, reader.lines).error(problem) from None
    if not isinstance(data, dict):
        raise UserError(f"{path}:1: a suite is a mapping of keys, not {show(data)}")
    return Source(path, text, data, reader.lines)


def _compose(text: str, path: Path) -> Node | None:
    """The YAML nodes of a text."""
    try:
        node: Node | None = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise UserError(f"{where}: {_yaml_problem(error)}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except YAMLError as error:
        raise UserError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    return node


class _Reader:
    """Turns nodes into plain values and notes the line of each key and list item."""

    def __init__(self) -> None:
        self.lines: dict[Loc, int] = {}
        self.constructor = YAML(typ="safe", pure=True).constructor

    def value(self, node: Node, at: Loc) -> Any:
        """The plain value of a node."""
        self.lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, MappingNode):
            return self._mapping(node, at)
        if isinstance(node, SequenceNode):
            return [self.value(inner, (*at, index)) for index, inner in enumerate(node.value)]
        return self._scalar(node, at)

    def _mapping(self, node: MappingNode, at: Loc) -> dict[str, Any]:
        """A mapping, with what `<<` merges into it where it has no such key itself."""
        values: dict[str, Any] = {}
        for own, key, inner in self._pairs(node, at):
            if not isinstance(key, ScalarNode) or key.tag not in TEXT:
                shown = key.value if isinstance(key, ScalarNode) else "[...]"
                raise Problem(at, f"the key {shown} must be text; put it in quotes")
            name = key.value
            if name in values and not own:
                continue
            self.lines[*at, name] = key.start_mark.line + 1
            if name in values:
                raise Problem((*at, name), f"the key {show(name)} stands here a second time")
            values[name] = self.value(inner, (*at, name))
        return values

    def _pairs(self, node: MappingNode, at: Loc) -> Iterator[tuple[bool, Node, Node]]:
        """The mapping's own keys and values, then those that are merged into it."""
        merged: list[Node] = []
        for key, value in node.value:
            if key.tag != MERGE:
                yield True, key, value
            else:
                merged += value.value if isinstance(value, SequenceNode) else [value]
        for source in merged:
            if not isinstance(source, MappingNode):
                raise Problem(at, "<< merges a mapping, or a list of mappings")
            for _, key, value in self._pairs(source, at):
                yield False, key, value

    def _scalar(self, node: Node, at: Loc) -> Any:
        """Text, true, false, nothing or a number; a whole number is an int, however written."""
        if node.tag in TEXT:
            return node.value
        if node.tag not in SCALARS:
            raise Problem(at, f"the tag {node.tag} means nothing in a suite")
        try:
            value = self.constructor.construct_object(node)
        except (ValueError, KeyError):
            raise Problem(at, f"{show(node.value)} is not a value of {node.tag}") from None
        if value is None or isinstance(value, bool):
            return value
        if not abs(value) < LARGEST:  # true of NaN as well
            raise Problem(at, f"{show(node.value)} is not a number below 2^63")
        return int(value) if value == int(value) else value


def _yaml_problem(error: MarkedYAMLError) -> str:
    """The problem that ruamel found, in one line, with the remedy where it is known."""
    problem = " ".join(str(error.problem).split())
    if "'\\t'" in problem:
        return "a tab cannot indent YAML; use spaces"
    if problem == "but found another document":
        return "found a second document (---); one file is one suite"
    return f"not YAML: {problem}"


def _suites(folder: Path) -> Iterable[str]:
    """The names of the suite files in a folder."""
    return [path.name for pattern in ("*.yaml", "*.yml") for path in folder.glob(pattern)]
