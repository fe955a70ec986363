"""What is wrong with a suite: a sentence and the place it is about."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Loc = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

# pydantic's words for what it expects, in the words of someone who writes YAML.
PHRASES = {
    "Input should be ": "",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "a valid tuple": "a list",
    "a valid list": "a list",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
}


class Problem(Exception):  # noqa: N818  # it never leaves this package: a UserError does
    """Something the suite's author must mend, at a path of keys and positions in the file."""

    def __init__(self, at: Loc, sentence: str) -> None:
        super().__init__(sentence)
        self.at = at
        self.sentence = sentence


def show(value: object) -> str:
    """A value as its author would recognise it, in a few words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def choices(words: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def near(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` is most probably a slip of, if one is near enough."""
    lowered = {choice.lower(): choice for choice in known}
    found = difflib.get_close_matches(word.lower()[:80], list(lowered), n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def unknown(
    what: str, word: object, known: Iterable[str], offered: Iterable[str] | None = None
) -> str:
    """`unknown <what> 'wrod', did you mean 'word'?`, or what there is to choose from.

    `offered` replaces a list of known words that is too long to read.
    """
    known = list(known)
    close = near(word, known) if isinstance(word, str) else None
    if close is not None:
        return f"unknown {what} {show(word)}, did you mean {close!r}?"
    return f"unknown {what} {show(word)}; choose {choices(offered or known)}"


def mapping(value: object, at: Loc, noun: str) -> dict[str, Any]:
    """`value`, which must be a mapping."""
    if not isinstance(value, dict):
        raise Problem(at, f"{noun} must be a mapping, not {show(value)}")
    return value


def sequence(value: object, at: Loc, noun: str) -> list[Any]:
    """`value`, which must be a list."""
    if not isinstance(value, list):
        raise Problem(at, f"{noun} must be a list, not {show(value)}")
    return value


def check_keys(value: Mapping[str, object], known: Iterable[str], at: Loc, what: str) -> None:
    """Refuse the first key that is not known, naming the one that was probably meant."""
    known = list(known)
    for key in value:
        if key not in known:
            raise Problem((*at, key), unknown(what, key, known))


def build(kind: type[M], value: object, at: Loc, noun: str) -> M:
    """An instance of `kind` from plain values.

    JSON in strict mode is the strictest reading that pydantic has: it takes no bool and no text
    for a number, and still takes a list for a tuple.

    Raises:
        Problem: the first thing that is wrong with `value`.
    """
    fields = mapping(value, at, noun)
    check_keys(fields, kind.model_fields, at, f"setting of {noun}:")
    try:
        return kind.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        raise _explain(error, fields, at, noun) from None


def _explain(error: ValidationError, fields: Mapping[str, Any], at: Loc, noun: str) -> Problem:
    """The first field that failed, with everything that it might have been."""
    first, *rest = error.errors()
    if first["type"] == "missing":
        return Problem(at, f"{noun} needs {first['loc'][-1]!r}")
    if not first["loc"] or first["type"] in {"value_error", "assertion_error"}:
        text = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return Problem((*at, *_path(fields, first["loc"])), f"{noun}: {text}")
    # A union reports one error for each of its members; together they say what is accepted.
    same = [first, *(other for other in rest if other["loc"][:1] == first["loc"][:1])]
    path = max((_path(fields, each["loc"]) for each in same), key=len)
    there = [each for each in same if _path(fields, each["loc"]) == path]
    expected = choices(dict.fromkeys(_expected(each["msg"]) for each in there))
    found: Any = fields
    for part in path:
        found = found[part]
    sentence = f"{noun}: {_spell(path)} must be {expected}, not {show(found)}"
    close = near(found, re.findall(r"'(.+?)'", expected)) if isinstance(found, str) else None
    return Problem((*at, *path), f"{sentence}; did you mean {close!r}?" if close else sentence)


def _expected(message: str) -> str:
    """What pydantic expected: its message without its opening and without what it got."""
    text = re.split(r", (?:got|unable)\b", message)[0]
    for theirs, ours in PHRASES.items():
        text = text.replace(theirs, ours)
    return text


def _path(fields: Mapping[str, Any], loc: Loc) -> Loc:
    """The part of pydantic's location that exists in `fields`: unions add names of their own."""
    path: list[str | int] = []
    here: Any = fields
    for part in loc:
        inside_mapping = isinstance(here, dict) and part in here
        if inside_mapping or (isinstance(here, list) and isinstance(part, int)):
            path.append(part)
            here = here[part]
    return tuple(path)


def _spell(path: Loc) -> str:
    """`tasks[0]` or `data.file`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
