"""What a technique changes: two points that differ in it, and whether in nothing else.

Memory and time change by a share of what they were, accuracy by percentage points. Where both
points answered the same test items, the answers are compared item by item: most items are answered
alike, and what two models share says nothing about their difference.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tradebench.report.fronts import Z95, Group, noise_unit
from tradebench.report.tables import Point
from tradebench.report.units import clean, listed, significant
from tradebench.result import Result, flat
from tradebench.techniques import Technique, catalogue
from tradebench.trial import BUDGET, changed, reshaped

OFF = "off"
CIRCUMSTANCES = ("model", "budget", "evaluate")
EXACT = 1e-9


@dataclass(frozen=True, kw_only=True)
class Change:
    """From one point to another: a share of the first, or percentage points where `points`.

    `error` is the half-width of the 95 % interval, 0 where nothing moved between repeats and None
    where it is not known. `paired` says that the same test items were compared one by one.
    """

    value: float
    error: float | None = None
    points: bool = False
    paired: bool = False

    @property
    def text(self) -> str:
        """`-18.0 %`, `+1.2 ± 0.8 points`."""
        unit = "points" if self.points else "%"
        # Rounded first, so that 9.9999999 is 10; of a small change two digits say enough.
        value = round(100 * self.value, 6)
        number = f"{'+' if value > 0 else ''}{significant(value, 3 if abs(value) >= 1 else 2)}"
        if not self.error:
            return f"{number} {unit}"
        return f"{number} ± {significant(100 * self.error, 2)} {unit}"

    @property
    def bounds(self) -> tuple[float, float]:
        """The 95 % interval, as far as it is known."""
        error = self.error or 0.0
        return self.value - error, self.value + error


def change(group: Group, run: Path, before: Point, after: Point, name: str) -> Change | None:
    """Return how a measurement changes between two points of a group; None where it cannot be said.

    `run` is the run directory, where the answers to test items lie.
    """
    ours, theirs = before.estimates.get(name), after.estimates.get(name)
    if ours is None or theirs is None:
        return None
    if name.startswith("accuracy"):
        return _difference(group, run, before, after, name)
    if ours.value == 0:
        return None
    ratio = theirs.value / ours.value
    # What is not known about a predicted device moves both points alike.
    error = None
    if group.kind == "measured":
        shares = (
            group.error(point, name) / point.estimates[name].value if point.value(name) else 0.0
            for point in (before, after)
        )
        error = Z95 * ratio * math.hypot(*shares)
    return Change(value=ratio - 1, error=error)


def _difference(group: Group, run: Path, before: Point, after: Point, name: str) -> Change:
    """Return the difference of two accuracies, item by item where the items are there."""
    value = after.estimates[name].value - before.estimates[name].value
    spread = group.relative[name]
    between = [
        spread * noise_unit(point.estimates[name]) / math.sqrt(len(point.estimates[name].values))
        for point in (before, after)
    ]
    differences = _paired(run, before, after, name)
    if len(differences) < 2:
        apart = (group.error(point, name) for point in (before, after))
        return Change(value=value, error=Z95 * math.hypot(*apart), points=True)
    within = stdev(differences) / math.sqrt(len(differences))
    if within == 0:
        # Where no item of n differs, up to three of n may: the rule of three.
        within = 3 / len(differences) / Z95
    return Change(value=value, error=Z95 * math.hypot(within, *between), points=True, paired=True)


def _paired(run: Path, before: Point, after: Point, name: str) -> list[float]:
    """Return, for each test item, how much better it was answered: the mean over shared repeats."""
    theirs = {result.repeat: result for result in after.results if result.status == "ok"}
    found: dict[tuple[str, ...], list[float]] = {}
    for result in before.results:
        other = theirs.get(result.repeat)
        if result.status == "ok" and other is not None:
            ones, others = _answers(run, result, name), _answers(run, other, name)
            if ones.keys() != others.keys():
                return []
            for item, score in ones.items():
                found.setdefault(item, []).append(others[item] - score)
    return [fmean(each) for each in found.values()]


def _answers(run: Path, result: Result, name: str) -> Mapping[tuple[str, ...], float]:
    """Return each item's score of a headline accuracy; empty where the items are not there."""
    moment = "before" if name.startswith("accuracy_before.") else "after"
    path = run / result.artifacts.get(f"items_{moment}", "")
    reported = result.measurements.get(name)
    if reported is None or not path.is_file():
        return {}
    task = name.partition(".")[2]
    scores = _scores(path)
    # The file does not say which metric is the headline: it is the one with the reported mean.
    return next(
        (
            items
            for (owner, _), items in scores.items()
            if owner == task and abs(fmean(items.values()) - reported.value) < EXACT
        ),
        {},
    )


@lru_cache(maxsize=256)
def _scores(path: Path) -> Mapping[tuple[str, str], Mapping[tuple[str, ...], float]]:
    """Return task and metric to the score of each item, an item being named by what it asks."""
    found: dict[tuple[str, str], dict[tuple[str, ...], float]] = {}
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        item = json.loads(line)
        key = tuple(str(item.get(part)) for part in ("doc_id", "doc_hash", "target_hash"))
        for metric, score in item["metrics"].items():
            found.setdefault((item["task"], metric), {})[key] = score
    return found


@dataclass(frozen=True, kw_only=True)
class Step:
    """What lies between two points: the one thing that was added, and what else differs.

    With `also` empty, the step is that of one technique or of one of its settings.
    """

    added: str
    also: tuple[str, ...] = ()

    @property
    def refusal(self) -> str:
        """Why the points make no comparison; empty where they do."""
        if not self.also:
            return ""
        return f"not compared, because more than one technique differs: {listed(self.also)}."


def step(before: Point, after: Point) -> Step:
    """Return the step between two points, judged by their settings and by their effects.

    A budget of another shape is a step like any other.
    """
    first, second = before.results[0], after.results[0]
    slots = [
        slot
        for slot in {**first.settings, **second.settings}
        if first.settings.get(slot) != second.settings.get(slot)
    ]
    shaped = reshaped(first.budget, second.budget)
    words = [_words(first, second, slot) for slot in slots]
    words += [_shape(first, second, fields) for fields in shaped]
    told = {(BUDGET, field) for fields in shaped for field in fields}
    also = [
        f"{part}.{field} is {clean(str(ours))} in one and {clean(str(theirs))} in the other"
        for part in CIRCUMSTANCES
        for field, ours, theirs in _unequal(getattr(first, part), getattr(second, part))
        if (part, field) not in told
    ]
    if len(words) > 1:
        also += words
    elif slots:
        also += _settings(first, second, slots[0])
    also += _effects(before, after)
    return Step(added=listed(words) or "nothing", also=tuple(dict.fromkeys(also)))


def _words(first: Result, second: Result, slot: str) -> str:
    """Return what happens to a slot, in the words of its technique's label."""
    ours, theirs = first.settings.get(slot), second.settings.get(slot)
    if theirs is None:
        return f"without {label(slot, ours or {})}"
    if ours is None:
        return label(slot, theirs)
    return f"{label(slot, theirs)} instead of {label(slot, ours)}"


def _shape(first: Result, second: Result, fields: Sequence[str]) -> str:
    """Return what happens to these fields of the budget: `sequence 32 instead of 64`."""
    ours, theirs = (
        " x ".join(clean(f"{field} {result.budget.get(field, OFF)}") for field in fields)
        for result in (first, second)
    )
    return f"{theirs} instead of {ours}"


def label(slot: str, fields: Mapping[str, Any]) -> str:
    """Return a technique's own label; slot and method where the catalogue has it no longer."""
    part = _technique(slot, fields)
    return clean(f"{slot} {fields.get('method')}" if part is None else part.label)


def _technique(slot: str, fields: Mapping[str, Any]) -> Technique | None:
    kind = catalogue().get(slot, {}).get(str(fields.get("method")))
    return None if kind is None else kind.model_validate(dict(fields))


def _settings(first: Result, second: Result, slot: str) -> list[str]:
    """Return the settings of a slot that differ, where it is more than one."""
    ours, theirs = first.settings.get(slot), second.settings.get(slot)
    if ours is None or theirs is None:
        return []
    parts = _technique(slot, ours), _technique(slot, theirs)
    names = {name for name, _, _ in _unequal(ours, theirs)}
    if parts[0] is not None and parts[1] is not None:
        names &= set(changed(parts[0], parts[1]))
    if len(names) < 2:
        return []
    return [
        f"{slot}.{name} is {clean(str(one))} in one and {clean(str(other))} in the other"
        for name, one, other in _unequal(ours, theirs)
        if name in names
    ]


def _effects(before: Point, after: Point) -> Iterator[str]:
    """Return what the techniques proved that contradicts the settings or the other point.

    A prediction proves nothing and is judged by its settings alone. What a technique counts may
    follow from what another does to weights and batches; the layers that it covers, its words and
    its shares may not, and nothing may disappear.
    """
    theirs = {result.repeat: result for result in _proven(after)}
    for result in (*_proven(before), *_proven(after)):
        yield from _unproven(result)
    for result in _proven(before):
        other = theirs.get(result.repeat)
        for slot, fields in result.settings.items() if other is not None else ():
            if other is not None and other.settings.get(slot) == fields:
                found = _unequal(
                    flat(result.effects.get(slot, {})), flat(other.effects.get(slot, {}))
                )
                for name, one, another in found:
                    if not (_may_follow(name, one) and _may_follow(name, another)):
                        yield (
                            f"the effect {slot}.{name} is {clean(str(one))} in one and "
                            f"{clean(str(another))} in the other"
                        )


def _proven(point: Point) -> Iterable[Result]:
    return [each for each in point.results if each.status == "ok" and each.kind == "measured"]


def _unproven(result: Result) -> Iterator[str]:
    """Return what a Result's settings and its effects say against each other."""
    name = clean(result.label)
    proven = {slot for slot, effect in result.effects.items() if effect}
    for slot in sorted(result.settings.keys() - proven):
        yield f"{name} has {slot} in its settings and shows no effect of it"
    for slot in sorted(proven - result.settings.keys()):
        yield f"{name} shows an effect of {slot}, which is not in its settings"


def _unequal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the fields in which two mappings differ, with both values."""
    return [
        (field, ours.get(field, OFF), theirs.get(field, OFF))
        for field in {**ours, **theirs}
        if ours.get(field, OFF) != theirs.get(field, OFF)
    ]


def _may_follow(name: str, value: object) -> bool:
    """Whether an effect is a count of something that is there, and not of layers."""
    counts = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return counts and name.rpartition(".")[2] != "layers"
