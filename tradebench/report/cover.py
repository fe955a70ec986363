"""How much the front has reached as a whole: its hypervolume, as a share of what could be reached.

One number for a front says whether all of it got better or worse. It needs a corner to be counted
from: the limits of the suite, which stay the same from run to run, and 0 % of a share. Where an
objective has neither, it lies a tenth beyond the worst value of this run, so that the worst counts
as well; the number is this run's alone then, unless the corner of another is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tradebench import pareto
from tradebench.report.fronts import Group, Objective
from tradebench.report.tables import Point
from tradebench.report.units import listed, show, significant, title

MAX_POINTS = 100  # the time that a hypervolume takes grows faster than their number
QUANTILES = (0.025, 0.975)
BEYOND = 1.1  # times the worst value, where nobody sets a limit


@dataclass(frozen=True, kw_only=True)
class Cover:
    """The share of the space from the corner to perfection that the front dominates.

    `low` and `high` hold 95 % of what the noise of the measurements makes of it. `reference` maps
    each objective to its value at the corner. `fixed` says whether no value of it is this run's
    worst, so that the number compares with that of another run.
    """

    share: float
    low: float
    high: float
    reference: Mapping[str, float]
    corner: str
    fixed: bool

    @property
    def text(self) -> str:
        """The number in a sentence."""
        low, share, high = (significant(100 * each) for each in (self.low, self.share, self.high))
        span = "" if low == high else f" ({low} to {high} %)"
        alone = (
            ""
            if self.fixed
            else " (where the suite sets no limit, a tenth beyond the worst of this run)"
        )
        return (
            f"Hypervolume, the share of all that is better than {self.corner}{alone} which the "
            f"front reaches: {share} %{span}."
        )


@dataclass(frozen=True, kw_only=True)
class Axis:
    """From 0, which is perfect, to 1 at the corner: a cost, a share to be high, or a rate."""

    corner: float
    better: Literal["less", "share", "more"]

    def place(self, value: float) -> float:
        """Where a value lies."""
        if self.better == "less":
            return value / self.corner
        if self.better == "share":
            return (1 - value) / (1 - self.corner)
        return self.corner / value

    def slope(self, value: float) -> float:
        """By how much the place moves with the value."""
        if self.better == "less":
            return 1 / self.corner
        if self.better == "share":
            return 1 / (1 - self.corner)
        return self.corner / value**2


def cover(group: Group, reference: Mapping[str, float] | None = None) -> Cover | None:
    """Return the cover of a group's front; None where there is none to speak of.

    It is counted from the `reference` of another cover, if that is given.
    """
    complete = [point for point in group.ok if group.standing(point).probability is not None]
    if len(group.objectives) < 2 or len(complete) < 2:
        return None
    given = {each.name: each.limit for each in group.objectives} | dict(reference or {})
    axes = {
        each.name: axis
        for each in group.objectives
        if (axis := _axis(each, complete, given[each.name]))
    }
    if len(axes) < len(group.objectives):
        return None
    # What has no chance of being on the front adds nothing to what the front covers.
    kept = [point for point in complete if group.standing(point).probability]
    if len(kept) > MAX_POINTS:
        return None
    places, errors = [], []
    for point in kept:
        values = {name: point.estimates[name].value for name in axes}
        places.append([axis.place(values[name]) for name, axis in axes.items()])
        errors.append(
            [axis.slope(values[name]) * group.noise(point, name) for name, axis in axes.items()]
        )
    corner = [1.0] * len(axes)
    share = pareto.hypervolume(places, corner)
    noisy = any(any(row) for row in errors)
    drawn = sorted(pareto.volumes(places, errors, corner)) if noisy else [share]
    low, high = (drawn[round(each * (len(drawn) - 1))] for each in QUANTILES)
    told = (
        f"{title(each.name).lower()} {show(each.name, axes[each.name].corner, each.unit)}"
        for each in group.objectives
    )
    return Cover(
        share=share,
        low=min(low, share),
        high=max(high, share),
        reference={name: axis.corner for name, axis in axes.items()},
        corner=listed(told),
        fixed=all(given[name] is not None or axis.better == "share" for name, axis in axes.items()),
    )


def _axis(objective: Objective, complete: Sequence[Point], corner: float | None) -> Axis | None:
    """Where no corner is given, it lies beyond the worst value, and at 0 of a share."""
    values = [point.estimates[objective.name].value for point in complete]
    if objective.better == "less":
        corner = BEYOND * max(values) if corner is None else corner
        return Axis(corner=corner, better="less") if corner > 0 <= min(values) else None
    if objective.unit == "1" and all(0 <= value <= 1 for value in values):
        corner = corner or 0.0
        return Axis(corner=corner, better="share") if corner < 1 else None
    corner = min(values) / BEYOND if corner is None else corner
    return Axis(corner=corner, better="more") if corner > 0 < min(values) else None
