"""A suite file: its text, its plain values, and the line of each of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from tradebench.errors import UserError
from tradebench.suite.problems import Loc, Problem, near, show


@dataclass(frozen=True)
class Source:
    """A YAML file that was read: `data` holds plain values, `tree` their positions."""

    path: Path
    text: str
    tree: CommentedMap
    data: dict[str, Any]

    def line(self, at: Loc) -> int:
        """The line of a key or of a list's item, or of the nearest thing around it."""
        line: int = self.tree.lc.line
        here: Any = self.tree
        for part in at:
            if not isinstance(here, CommentedMap | CommentedSeq) or here.lc.data is None:
                break
            # A key that came in through a merge (<<) has its line where it was written.
            position = here.lc.data.get(part)
            line = position[0] if position else line
            try:
                here = here[part]
            except (KeyError, IndexError):
                break
        return line + 1

    def error(self, problem: Problem) -> UserError:
        """The problem as one line: file, line, sentence."""
        return UserError(f"{self.path}:{self.line(problem.at)}: {problem.sentence}")

    @property
    def question(self) -> str:
        """The first paragraph of the comment that opens the file."""
        words: list[str] = []
        for line in self.text.splitlines():
            comment = line.strip().removeprefix("#").strip()
            if not line.startswith("#") or (words and not comment):
                break
            if not comment.startswith(("yaml-language-server:", "!")):
                words.append(comment)
        return " ".join(words).strip()


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
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise UserError(f"{where}: {_yaml_problem(error)}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except (YAMLError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not YAML: {first}") from None
    if tree is None:
        raise UserError(f"{path}:1: the file is empty; a suite needs at least model and grid")
    if not isinstance(tree, CommentedMap):
        raise UserError(f"{path}:1: a suite is a mapping of keys, not {show(tree)}")
    source = Source(path=path, text=text, tree=tree, data={})
    try:
        return Source(path=path, text=text, tree=tree, data=_plain(tree, ()))
    except Problem as problem:
        raise source.error(problem) from None
    except RecursionError:
        raise UserError(f"{path}: an anchor contains itself") from None


def _plain(value: object, at: Loc) -> Any:
    """The value without ruamel's types; a whole number is an int, however it was written."""
    if isinstance(value, CommentedMap):
        for key in value:
            if not isinstance(key, str):
                raise Problem(at, f"the key {show(key)} must be text; put it in quotes")
        return {str(key): _plain(inner, (*at, key)) for key, inner in value.items()}
    if isinstance(value, CommentedSeq):
        return [_plain(inner, (*at, index)) for index, inner in enumerate(value)]
    if isinstance(value, bool | ScalarBoolean):
        return bool(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else float(value)
    if value is None:
        return None
    kind = "numbers must be finite" if isinstance(value, float) else "put it in quotes"
    raise Problem(at, f"{show(str(value))} is neither text nor a number nor a list; {kind}")


def _yaml_problem(error: MarkedYAMLError) -> str:
    """The problem that ruamel found, in one line, with the remedy where it is known."""
    problem = " ".join(str(error.problem).split())
    if "'\\t'" in problem:
        return "a tab cannot indent YAML; use spaces"
    if problem.startswith("found duplicate key"):
        return f"{problem.split(' with value')[0]}; each key may stand once"
    if problem == "but found another document":
        return "found a second document (---); one file is one suite"
    return f"not YAML: {problem}"


def _suites(folder: Path) -> Iterable[str]:
    """The names of the suite files in a folder."""
    return [path.name for pattern in ("*.yaml", "*.yml") for path in folder.glob(pattern)]
