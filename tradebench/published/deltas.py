"""What one knob changes: two rows of one source that differ in it and in nothing else.

A source's own code and counter are in both figures, so that their difference says more about a
prediction than either figure does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tradebench.published.comparison import Comparison
from tradebench.published.expression import Expressed, Reading

OFF = "off"


@dataclass(frozen=True, kw_only=True)
class Delta:
    """The change from one row to another along one knob.

    A knob is `model`, `budget.<field>`, a slot that is on in one row only, or `<slot>.<field>`. Of
    numbers `before` is the smaller, and what one more of it brings is the slope. Changes are in
    bytes or seconds.
    """

    first: Comparison
    second: Comparison
    knob: str
    before: Any
    after: Any

    @property
    def reading(self) -> Reading:
        """What both figures are of."""
        return self.first.published.reading

    @property
    def published(self) -> float:
        """The second figure less the first."""
        return self.second.published.value - self.first.published.value

    @property
    def predicted(self) -> float | None:
        """The second prediction less the first; None where one of them is missing."""
        if self.first.prediction is None or self.second.prediction is None:
            return None
        return self.second.prediction.value - self.first.prediction.value

    @property
    def step(self) -> float | None:
        """How far the knob was turned, where it is a number."""
        if not (_is_number(self.before) and _is_number(self.after)):
            return None
        return float(self.after - self.before)

    def per_unit(self, change: float) -> float | None:
        """A change in bytes or seconds as one of a single token, sequence, rank or GPU."""
        return None if self.step is None else change / self.step


def deltas(comparisons: Iterable[Comparison]) -> tuple[Delta, ...]:
    """Every pair of rows of one source that differ in one knob.

    Of rows that differ in a number only neighbours are paired: 512 with 1,024 and 1,024 with 2,048.
    """
    every = list(comparisons)
    found = [
        delta
        for first, second in combinations(every, 2)
        if (delta := _delta(first, second)) is not None
    ]
    return tuple(delta for delta in found if not _skips(delta, found))


def differing(first: Expressed, second: Expressed) -> dict[str, tuple[Any, Any]]:
    """Each knob in which two trials differ, to what it is in either; an absent slot is `off`.

    Two methods of one slot count as one difference, with every field that differs as another.
    """
    before, after = _knobs(first), _knobs(second)
    found: dict[str, tuple[Any, Any]] = {}
    for slot in {**before, **after}:
        ours, theirs = before.get(slot), after.get(slot)
        if ours is None or theirs is None:
            found[slot] = (_name(ours), _name(theirs))
            continue
        for field in {**ours, **theirs}:
            if ours.get(field) != theirs.get(field):
                name = f"{slot}.{field}" if slot != "model" else slot
                found[name] = (ours.get(field), theirs.get(field))
    return found


def _knobs(found: Expressed) -> dict[str, Mapping[str, Any]]:
    payload = found.trial.payload()
    return {
        "model": {"config": payload["model"]["config"]},
        "budget": payload["budget"],
        **payload["settings"],
    }


def _name(fields: Mapping[str, Any] | None) -> str:
    return OFF if fields is None else str(fields["method"])


def _delta(first: Comparison, second: Comparison) -> Delta | None:
    ours, theirs = first.published, second.published
    if _circumstances(ours) != _circumstances(theirs):
        return None
    found = differing(ours, theirs)
    if len(found) != 1:
        return None
    (knob, (before, after)) = next(iter(found.items()))
    if ours.gpus != theirs.gpus and not knob.startswith("sharding"):
        return None
    turned = _is_number(before) and _is_number(after) and before > after
    if turned or after == OFF or before is True:
        first, second, before, after = second, first, after, before
    return Delta(first=first, second=second, knob=knob, before=before, after=after)


def _circumstances(found: Expressed) -> tuple[object, ...]:
    """What must be equal before two rows are held against each other."""
    return (found.family, found.experiment, found.reading, found.row.gpu, found.beyond)


def _skips(delta: Delta, among: Iterable[Delta]) -> bool:
    """Whether another row lies between the two of this pair."""
    if delta.step is None:
        return False
    return any(
        other.knob == delta.knob
        and other.first is delta.first
        and other.step is not None
        and other.step < delta.step
        for other in among
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
