"""Which two techniques go together: every pair of methods, asked what stands against it.

The answers come from the techniques' own `conflicts`, the same sentences that refuse a point of a
suite, and need no torch. Nothing here is written down by hand, so that nothing can drift.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tradebench.techniques import Technique, catalogue, techniques
from tradebench.trial import Model, Trial

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

T = TypeVar("T")
Verdict = Literal["works", "works beside lora", "works beside nf4", "refused"]

MARKS: Mapping[Verdict, str] = {
    "works": "+",
    "works beside lora": "L",
    "works beside nf4": "N",
    "refused": "x",
}
MOST_COLUMNS = 10_000
KEY = (
    "+ works · L works beside lora · N works beside nf4 · x refused, for the numbered reason · "
    "blank: one slot"
)


@dataclass(frozen=True, order=True)
class Name:
    """A method of a slot."""

    slot: str
    method: str

    def __str__(self) -> str:
        return f"{self.slot} {self.method}"


# What lets weights train that take no gradient themselves, and what adapters may start from.
HELPERS: Mapping[Verdict, Name] = {
    "works beside lora": Name("adapters", "lora"),
    "works beside nf4": Name("quantization", "nf4"),
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two methods of different slots at their defaults, and whether they go together.

    `reasons` say why not, `cautions` what a reader of such a point must know.
    """

    first: Name
    second: Name
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """The pair as JSON."""
        return {
            "first": vars(self.first),
            "second": vars(self.second),
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "cautions": list(self.cautions),
        }


def names() -> tuple[Name, ...]:
    """Every method in the order of the catalogue."""
    return tuple(Name(kind.slot, method) for kind in techniques() for method in kind.methods())


@lru_cache
def pairs() -> tuple[Pair, ...]:
    """Every two methods of different slots, in the order of the catalogue."""
    return tuple(
        _pair(first, second)
        for first, second in itertools.combinations(names(), 2)
        if first.slot != second.slot
    )


def refused(name: Name) -> tuple[Pair, ...]:
    """The pairs of a method that are refused."""
    return tuple(
        pair for pair in pairs() if name in (pair.first, pair.second) and pair.verdict == "refused"
    )


def markdown() -> str:
    """The matrix as a Markdown table, with its reasons below."""
    rows, reasons = _matrix()
    heads = ["", *(str(number) for number in range(1, len(rows) + 1))]
    lines = [_line(heads), _line(["---"] * len(heads))]
    lines += [_line([f"{number} {head}", *cells]) for number, (head, cells) in _numbered(rows)]
    notes = [f"{number}. {reason}" for number, reason in _numbered(reasons)]
    return "\n".join([*lines, "", KEY, "", *notes])


def draw(console: Console) -> RenderableType:
    """The matrix for a terminal with its reasons below; without it, where there is no room."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows, reasons = _matrix()
    table = Table("", *(str(number) for number, _ in _numbered(rows)), box=None, padding=(0, 1))
    for number, (head, cells) in _numbered(rows):
        table.add_row(Text(f"{number} {head}"), *cells)
    unbounded = console.options.update(width=MOST_COLUMNS)
    if console.measure(table, options=unbounded).maximum > console.width:
        return Group(*(Text(line) for line in _listed(reasons)))
    notes = [Text(f"{number}. {reason}") for number, reason in _numbered(reasons)]
    return Group(table, Text(f"\n{KEY}\n"), *notes)


def _listed(reasons: Iterable[str]) -> Iterator[str]:
    """The counts, and every reason with the pairs that it keeps apart."""
    counts = Counter(pair.verdict for pair in pairs())
    yield ", ".join(f"{counts[verdict]} {verdict}" for verdict in MARKS) + "."
    for reason in reasons:
        yield f"\n{reason}"
        yield from (
            f"    {pair.first} + {pair.second}" for pair in pairs() if reason in pair.reasons
        )


def _pair(first: Name, second: Name) -> Pair:
    parts = (_made(first), _made(second))
    alone = _trial(parts)
    against = alone.conflicts()
    if not against:
        return Pair(first=first, second=second, verdict="works", cautions=alone.cautions())
    standing = []
    for verdict, helper in HELPERS.items():
        if (
            helper.slot in (first.slot, second.slot)
            or helper.method not in catalogue()[helper.slot]
        ):
            continue
        beside = _trial((*parts, _made(helper)))
        still = beside.conflicts()
        if not still:
            return Pair(first=first, second=second, verdict=verdict, cautions=beside.cautions())
        standing.append(still)
    if not standing:
        return Pair(first=first, second=second, verdict="refused", reasons=against)
    still = standing[0]
    # What stands against the two with and without help is what keeps them apart. Where nothing
    # does, it is what stands against neither alone, and else each way has a reason of its own.
    own = {reason for part in parts for reason in _trial((part,)).conflicts()}
    both = [reason for reason in against if reason in still]
    apart = [reason for reason in against if reason not in own]
    reasons = both or apart or [*against, *still]
    return Pair(
        first=first, second=second, verdict="refused", reasons=tuple(dict.fromkeys(reasons))
    )


def _made(name: Name) -> Technique:
    return catalogue()[name.slot][name.method].model_validate({"method": name.method})


def _trial(parts: Sequence[Technique]) -> Trial:
    return Trial(model=Model(name="reference"), techniques=tuple(parts))


def _matrix() -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Rows of a heading and cells, and the reasons that the cells number.

    Methods of one slot that go with the same others, for the same reasons, share a row.
    """
    by_names = {frozenset((pair.first, pair.second)): pair for pair in pairs()}
    reasons = list(dict.fromkeys(reason for pair in pairs() for reason in pair.reasons))

    def cell(one: Name, other: Name) -> str:
        pair = by_names.get(frozenset((one, other)))
        if pair is None:
            return ""
        numbers = ",".join(str(reasons.index(reason) + 1) for reason in pair.reasons)
        return MARKS[pair.verdict] + numbers

    groups: dict[tuple[str, ...], list[Name]] = {}
    for name in names():
        key = (name.slot, *(cell(name, other) for other in names()))
        groups.setdefault(key, []).append(name)
    shared = list(groups.values())
    rows = [
        (_heading(members), [cell(members[0], others[0]) for others in shared])
        for members in shared
    ]
    return rows, reasons


def _heading(members: Sequence[Name]) -> str:
    return f"{members[0].slot} {', '.join(name.method for name in members)}"


def _numbered(items: Iterable[T]) -> Iterable[tuple[int, T]]:
    return enumerate(items, start=1)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
