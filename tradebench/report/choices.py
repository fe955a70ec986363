"""The settings that vary over a group's points: the axes of its grid, whatever suite made it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tradebench.report.fronts import Group
from tradebench.report.series import AXES
from tradebench.report.tables import Point
from tradebench.report.units import clean
from tradebench.trial import BUDGET, SHAPE

OFF = "off"
MAX_VALUES = 12  # columns that still fit a page
MAX_MAPS = 4
MIN_CELLS = 6  # fewer are read off the table
FULL = 0.75  # of the cells of two settings must hold a point, or a map of them is mostly holes
# What people ask first: fewer bits or a smaller adapter, recomputing more or shorter sequences.
ASKED_FIRST = (("quantization", "adapters"), ("checkpointing", "sequence"))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A slot, or a field of the budget, that not all points have alike.

    `values` are its settings as people read them, off before those of the suite; `places` maps a
    trial to where its own stands among them.
    """

    name: str
    title: str
    values: tuple[str, ...]
    places: Mapping[str, int]


def choices(group: Group) -> tuple[Choice, ...]:
    """Return every setting that takes from two to a dozen values over the points that ended."""
    settings = {point.trial: _settings(point) for point in group.ok}
    found = []
    for name in dict.fromkeys(name for each in settings.values() for name in each):
        taken = {trial: each.get(name, OFF) for trial, each in settings.items()}
        # What is off comes first, wherever the suite has it.
        values = tuple(sorted(dict.fromkeys(taken.values()), key=lambda value: value != OFF))
        if 1 < len(values) <= MAX_VALUES:
            places = {trial: values.index(value) for trial, value in taken.items()}
            found.append(Choice(name=name, title=_title(name), values=values, places=places))
    return tuple(found)


def crossed(found: Sequence[Choice]) -> tuple[Choice, ...]:
    """Return the two settings to map first, and a third that still leaves the maps full.

    Empty where no two of them were tried together.
    """
    by_name = {choice.name: choice for choice in found}
    asked = [(by_name[a], by_name[b]) for a, b in ASKED_FIRST if a in by_name and b in by_name]
    widest = sorted(combinations(found, 2), key=lambda pair: -_cells(pair))
    wide = (pair for pair in (*asked, *widest) if _cells(pair) >= MIN_CELLS)
    pair = next((pair for pair in wide if _filled(pair) >= FULL), None)
    if pair is None:
        return ()
    thirds = (
        choice
        for choice in found
        if choice not in pair
        and len(choice.values) <= MAX_MAPS
        and _filled((*pair, choice)) >= FULL
    )
    return (*pair, *([third] if (third := next(thirds, None)) else []))


def _cells(choices: Sequence[Choice]) -> int:
    return math.prod(len(choice.values) for choice in choices)


def _filled(choices: Sequence[Choice]) -> float:
    trials = choices[0].places
    held = {tuple(choice.places[trial] for choice in choices) for trial in trials}
    return len(held) / _cells(choices)


def _settings(point: Point) -> dict[str, str]:
    """Return every slot that is on and every number of the budget, as text."""
    asked = point.asked
    if asked is not None:
        found = {part.slot: clean(part.label) for part in asked.techniques}
    else:
        found = {
            slot: clean(str(each.get("method", "on"))) for slot, each in point.settings.items()
        }
    budget = point.results[0].budget
    return found | {name: f"{budget[name]:,}" for name in SHAPE if name in budget}


def _title(name: str) -> str:
    of_budget = {axis.field: axis.title for axis in AXES if axis.slot == BUDGET}
    return of_budget.get(name) or clean(name.replace("_", " ")).capitalize()
