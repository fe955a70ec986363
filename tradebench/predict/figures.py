"""What a record says of memory: peaks by phase, part and category, and the course of a step.

Requested bytes only, as the tracker of the real world counts them; what a device's allocator makes
of them is another question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tradebench.predict.record import Integers, Record
from tradebench.predict.recorder import CALL, MarkKind
from tradebench.result import CATEGORIES

MOMENTS = 240  # of a step's course; more than a page can show


class Span(NamedTuple):
    """Events [start, end) between two marks."""

    kind: MarkKind
    name: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The highest level of a span: its bytes, in all and by category, and where it was reached.

    `modules` has the largest holders among the modules, by path with the layers' numbers left open.
    """

    bytes: int
    event: int
    categories: Mapping[str, int]
    modules: Mapping[str, int]


def spans(record: Record, kind: MarkKind) -> Iterator[Span]:
    """The phases, parts or steps of a record, in order."""
    start, name = 0, ""
    for mark in record.marks:
        if mark.kind == kind and mark.name:
            start, name = mark.position, mark.name
        elif mark.kind == kind:
            yield Span(kind, name, start, mark.position)


def levels(record: Record) -> Integers:
    """The bytes that are held after each event."""
    events = record.events
    born, died = (events >= 0) & (events < CALL), events < 0
    changes = np.zeros(len(events), dtype=np.int64)
    changes[born] = record.sizes[events[born]]
    changes[died] = -record.sizes[~events[died]]
    return np.cumsum(changes)


def peak_bytes(level: Integers, span: Span) -> int:
    """The highest level of a span, which is at least what is there when it begins."""
    before = int(level[span.start - 1]) if span.start else 0
    return max(before, int(level[span.start : span.end].max(initial=0)))


def peak(record: Record, level: Integers, span: Span) -> Peak:
    """The peak of a span, and what it consists of."""
    highest = peak_bytes(level, span)
    before = int(level[span.start - 1]) if span.start else 0
    event = span.start - 1
    if before < highest:
        event = span.start + int(np.argmax(level[span.start : span.end]))
    held = alive(record, event)
    by_category = np.bincount(
        record.categories[held], weights=record.sizes[held], minlength=len(CATEGORIES)
    )
    by_path = np.bincount(record.paths[held], weights=record.sizes[held])
    largest = np.argsort(by_path)[::-1][:8]
    return Peak(
        bytes=highest,
        event=event,
        categories={name: int(by_category[i]) for i, name in enumerate(CATEGORIES)},
        modules={record.modules[i]: int(by_path[i]) for i in largest if by_path[i]},
    )


def alive(record: Record, event: int) -> Integers:
    """The blocks that exist once this event has happened."""
    seen = record.events[: event + 1]
    exists = np.zeros(len(record.sizes), dtype=bool)
    exists[seen[(seen >= 0) & (seen < CALL)]] = True
    exists[~seen[seen < 0]] = False
    return np.flatnonzero(exists)


def course(record: Record, span: Span) -> list[dict[str, int | float]]:
    """The levels of a span by category at evenly spread events, the highest one among them.

    Each moment has `at`, its place in the span from 0 to 1, and the bytes of every category.
    """
    events = record.events[span.start : span.end]
    born, died = (events >= 0) & (events < CALL), events < 0
    blocks = np.where(born, events, np.where(died, ~events, 0))
    signs = np.where(born, 1, np.where(died, -1, 0))
    changes = np.zeros((len(events), len(CATEGORIES)), dtype=np.int64)
    changes[np.arange(len(events)), record.categories[blocks]] = signs * record.sizes[blocks]
    held = alive(record, span.start - 1) if span.start else np.empty(0, dtype=np.int64)
    start = np.bincount(
        record.categories[held], weights=record.sizes[held], minlength=len(CATEGORIES)
    ).astype(np.int64)
    level = start + np.cumsum(changes, axis=0)
    if not len(events):
        return []
    chosen = set(np.linspace(0, len(events) - 1, MOMENTS).astype(int).tolist())
    chosen.add(int(level.sum(axis=1).argmax()))
    return [
        {
            "at": round(at / len(events), 5),
            **{name: int(level[at, i]) for i, name in enumerate(CATEGORIES) if level[:, i].any()},
        }
        for at in sorted(chosen)
    ]
