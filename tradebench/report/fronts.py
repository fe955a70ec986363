"""What a group of comparable points is judged by, and where each of them stands."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tradebench import pareto
from tradebench.report.tables import (
    KINDS,
    SEVERITY,
    Estimate,
    Point,
    accuracy_note,
    memory_name,
    model_title,
    points,
    tasks,
    training_note,
)
from tradebench.report.units import listed, scale, title
from tradebench.result import Fit, Kind, canonical_json

if TYPE_CHECKING:
    from tradebench.store import Run

Label = Literal["front", "possible", "dominated", "incomplete"]

SURE, RULED_OUT = 0.9, 0.1
MARKS: Mapping[Label, str] = {"front": "●", "possible": "◐", "dominated": "○", "incomplete": "·"}
Z95 = 1.959964
DEVICE_LIMIT = "peak_process_bytes"  # by which a plan keeps what its device has


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One measurement that points are compared by, and the bound that the suite asks for."""

    name: str
    unit: str
    better: str
    limit: float | None = None

    @property
    def limit_text(self) -> str:
        """The bound as a condition: `≤ 24 GiB`."""
        if self.limit is None:
            return ""
        sign = "≥" if self.better == "more" else "≤"
        unit = scale(self.name, [self.limit], self.unit)
        return f"{sign} {self.limit / unit.factor:.4g} {unit.unit}".strip()


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a point stands: its `probability` of being on the front, or why it has none."""

    label: Label
    probability: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Points that may be compared: one kind of evidence, one model.

    `objectives` are those that some point has a value for, `absent` the names that none has.
    `relative` maps a measurement to its spread between repeats, relative to the mean. `alike` maps
    a trial to those that no objective tells from it.
    """

    kind: Kind
    model: Mapping[str, Any]
    points: tuple[Point, ...]
    objectives: tuple[Objective, ...]
    limits: tuple[Objective, ...]
    absent: tuple[str, ...]
    standings: Mapping[str, Standing]
    relative: Mapping[str, float]
    alike: Mapping[str, tuple[str, ...]]

    @property
    def title(self) -> str:
        """Kind and model, for headings."""
        word = "on" if self.kind == "measured" else "for"
        return f"{self.kind} {word} {model_title(self.model)}"

    @property
    def ok(self) -> tuple[Point, ...]:
        """The points that have values: at least one repeat ended well."""
        return tuple(point for point in self.points if point.estimates)

    @property
    def memory(self) -> str | None:
        """The memory that this report speaks of."""
        return memory_name(self.points, (objective.name for objective in self.objectives))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks with accuracies."""
        return tasks(self.points)

    @property
    def training_note(self) -> str:
        """In what amounts the points are trained, where they differ."""
        return training_note(point.results[0].budget for point in self.points)

    @property
    def accuracy_notes(self) -> tuple[str, ...]:
        """The sentences that belong beside every accuracy of these points."""
        notes = (accuracy_note(self.model), self.training_note)
        return tuple(each for each in notes if each)

    def standing(self, point: Point) -> Standing:
        """Return where the point stands."""
        return self.standings[point.trial]

    def noise(self, point: Point, name: str) -> float:
        """Return the error that may set the point before another: none between predictions."""
        return _noise(point.estimates[name], self.relative[name])

    def labelled(self, *labels: Label) -> tuple[Point, ...]:
        """Return the points with one of these labels, in the order of the table."""
        return tuple(point for point in self.ordered if self.standing(point).label in labels)

    @cached_property
    def ordered(self) -> tuple[Point, ...]:
        """The points as tables list and number them: by standing, then by the first objective."""
        return tuple(sorted(self.points, key=self._place))

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Trial to its number in tables and figures."""
        return {point.trial: number for number, point in enumerate(self.ordered, start=1)}

    def _place(self, point: Point) -> tuple[int, int, float]:
        first = self.objectives[0].name if self.objectives else ""
        estimate = point.estimates.get(first)
        cost = math.inf if estimate is None else estimate.cost
        return (
            list(MARKS).index(self.standing(point).label),
            SEVERITY.index(point.status) if point.status != "ok" else -1,
            cost,
        )

    @property
    def fit(self) -> Fit | None:
        """Whether one of its points fits: the device that a plan is for; None without a plan."""
        return next((point.fit for point in self.points if point.fit is not None), None)

    def interval(self, point: Point, name: str) -> tuple[float, float] | None:
        """Return the ends of a value's interval: a prediction's own, or the 95 % of a measurement.

        None where the value is exact.
        """
        estimate = point.estimates[name]
        if estimate.predicted:
            return estimate.interval
        error = Z95 * self.error(point, name)
        return (estimate.value - error, estimate.value + error) if error else None

    def error(self, point: Point, name: str) -> float:
        """Return the standard error of the point's value."""
        return standard_error(point.estimates[name], self.relative[name])

    def meets_limits(self, point: Point) -> bool:
        """Whether the point has every limited quantity and each keeps its bound in every phase."""
        return all(_meets(point, limit) for limit in self.limits)

    def within(self, found: Sequence[Point]) -> str:
        """Return how many of these points can be used: `9 of them within the limits`.

        That is whether they keep the suite's limits and, if predicted, fit on the device; empty
        where there is neither limit nor device.
        """
        device = None if self.fit is None else self.fit.device
        # What a device has is its own limit, and its verdict says more than that.
        asked = [each for each in self.limits if device is None or each.name != DEVICE_LIMIT]
        if not found or (device is None and not asked):
            return ""
        kept = [point for point in found if all(_meets(point, limit) for limit in asked)]
        verdicts = Counter(point.verdict for point in kept)
        number = len(kept) if device is None else verdicts["fits"]
        share = "all" if number == len(found) else str(number or "none")
        if device is None:
            return f"{share} of them within the limits"
        verb = "fits" if number == 1 < len(found) else "fit"
        text = f"{share} of them {verb} on {device}{' within the limits' if asked else ''}"
        return f"{text}, {verdicts['tight']} tightly" if verdicts["tight"] else text


def groups(run: Run) -> tuple[Group, ...]:
    """Return the run's points in groups that may be compared, measured ones first."""
    found: dict[tuple[Kind, str], list[Point]] = {}
    for point in points(run.results):
        found.setdefault((point.kind, canonical_json(dict(_model(point)))), []).append(point)
    names = [str(name) for name in run.header.get("objectives") or ()]
    limits = dict(run.header.get("limits") or {})
    ordered = sorted(found.items(), key=lambda item: KINDS.index(item[0][0]))
    return tuple(_group(kind, members, names, limits) for (kind, _), members in ordered)


def _model(point: Point) -> Mapping[str, Any]:
    return point.results[0].model


def _group(
    kind: Kind, members: Sequence[Point], named: Sequence[str], limits: Mapping[str, float]
) -> Group:
    wanted = named or _default_objectives(members)
    objectives = tuple(
        objective for name in wanted if (objective := _objective(name, members, limits))
    )
    names = dict.fromkeys(name for point in members for name in point.estimates)
    relative = {name: relative_sd(_estimates(members, name)) for name in names}
    return Group(
        kind=kind,
        model=_model(members[0]),
        points=tuple(members),
        objectives=objectives,
        limits=tuple(
            objective for name in limits if (objective := _objective(name, members, limits))
        ),
        absent=tuple(
            name for name in dict.fromkeys([*wanted, *limits]) if not _estimates(members, name)
        ),
        standings=_standings(members, objectives, relative),
        relative=relative,
        alike=_alike(members, objectives, relative),
    )


def _default_objectives(members: Sequence[Point]) -> list[str]:
    """Return memory, step time and the first accuracy, for a run that names no objectives."""
    memory = memory_name(members, ())
    accuracies = [f"accuracy.{task}" for task in tasks(members)[:1]]
    return [name for name in (memory, "step_seconds", *accuracies) if name]


def _estimates(members: Sequence[Point], name: str) -> list[Estimate]:
    return [point.estimates[name] for point in members if name in point.estimates]


def _objective(
    name: str, members: Sequence[Point], limits: Mapping[str, float]
) -> Objective | None:
    found = _estimates(members, name)
    if not found:
        return None
    return Objective(name=name, unit=found[0].unit, better=found[0].better, limit=limits.get(name))


def _meets(point: Point, limit: Objective) -> bool:
    value = point.worst(limit.name)
    if value is None or limit.limit is None:
        return False
    return value >= limit.limit if limit.better == "more" else value <= limit.limit


def relative_sd(estimates: Sequence[Estimate]) -> float:
    """Return the spread between repeats relative to what it grows with, pooled over all points.

    Two or three repeats say little about their own point's spread; all points together say more.
    """
    squares, freedom = 0.0, 0
    for estimate in estimates:
        unit = noise_unit(estimate)
        if len(estimate.values) > 1 and unit:
            squares += sum(((value - estimate.value) / unit) ** 2 for value in estimate.values)
            freedom += len(estimate.values) - 1
    return math.sqrt(squares / freedom) if freedom else 0.0


def noise_unit(estimate: Estimate) -> float:
    """Return what the noise of a quantity grows with.

    That is the quantity itself, but for a share the standard deviation of one yes or no: at 99 %
    there is no room for the noise that 50 % has.
    """
    if estimate.unit == "1" and 0 <= estimate.value <= 1:
        return math.sqrt(estimate.value * (1 - estimate.value))
    return abs(estimate.value)


def standard_error(estimate: Estimate, relative: float) -> float:
    """Return the standard error of a point's mean: between runs, and the evaluator's own.

    The second does not shrink with repeats, which answer the same test items.
    """
    between = relative * noise_unit(estimate) / math.sqrt(len(estimate.values))
    low, high = estimate.interval or (0.0, 0.0)
    return math.hypot(between, (high - low) / (2 * Z95))


def _standings(
    members: Sequence[Point],
    objectives: Sequence[Objective],
    relative: Mapping[str, float],
) -> dict[str, Standing]:
    reasons = {point.trial: _incomplete(point, objectives) for point in members}
    complete = [point for point in members if not reasons[point.trial]]
    chances = pareto.probability(*_drawn(complete, objectives, relative))
    standings = {
        trial: Standing(label="incomplete", reason=reason)
        for trial, reason in reasons.items()
        if reason
    }
    for point, chance in zip(complete, chances, strict=True):
        standings[point.trial] = Standing(label=_label(chance), probability=chance)
    return standings


def _alike(
    members: Sequence[Point],
    objectives: Sequence[Objective],
    relative: Mapping[str, float],
) -> dict[str, tuple[str, ...]]:
    complete = [point for point in members if not _incomplete(point, objectives)]
    found = pareto.alike(*_drawn(complete, objectives, relative), Z95)
    return {
        point.trial: tuple(complete[index].trial for index in others)
        for point, others in zip(complete, found, strict=True)
        if others
    }


def _drawn(
    complete: Sequence[Point],
    objectives: Sequence[Objective],
    relative: Mapping[str, float],
) -> tuple[list[list[float]], list[list[float]]]:
    """Return the costs of points and their standard errors, a row for each."""
    costs = [[point.estimates[each.name].cost for each in objectives] for point in complete]
    errors = [
        [_noise(point.estimates[each.name], relative[each.name]) for each in objectives]
        for point in complete
    ]
    return costs, errors


def _noise(estimate: Estimate, relative: float) -> float:
    """Return the error that may set one point before another: none between predictions."""
    return 0.0 if estimate.predicted else standard_error(estimate, relative)


def _label(chance: float) -> Label:
    if chance >= SURE:
        return "front"
    return "possible" if chance >= RULED_OUT else "dominated"


def _incomplete(point: Point, objectives: Sequence[Objective]) -> str:
    """Return why the point cannot be compared, or nothing where it can."""
    if point.status != "ok":
        return point.status_text
    if not objectives:
        return "no objective has a value"
    missing = [
        title(each.name)
        for each in objectives
        if not math.isfinite(point.value(each.name) or 0.0) or each.name not in point.estimates
    ]
    return f"no value for {listed(missing)}" if missing else ""
