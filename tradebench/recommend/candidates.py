"""What may be recommended: points of one model, and what is known of each, by kind of evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tradebench import store
from tradebench.errors import NothingToCompareError, UserError
from tradebench.report.fronts import Z95, Group
from tradebench.report.tables import MEMORY, Point, model_title
from tradebench.report.units import listed
from tradebench.result import PHASES, Kind, canonical_json
from tradebench.store import Run
from tradebench.trial import Trial

HOUR = 3600.0
# What follows from the model and its data alone; everything else depends on the device as well.
QUALITIES = ("accuracy", "accuracy_before", "answer_nll", "answer_nll_before", "train_loss")
# What is computed for every point, with its unit: less of each is better.
DERIVED = {"hours": "h", "gpu_hours": "h", "money": "", "gpus": ""}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One quantity of a candidate with its 95 % interval, in the store's units.

    `error` is the standard error that sets candidates of one kind apart: 0 between predictions,
    whose errors move all of them alike. `kind` is None for what follows from the settings.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    better: str
    kind: Kind | None
    error: float = 0.0

    @property
    def cost(self) -> float:
        """The value with its sign turned where more is better."""
        return -self.value if self.better == "more" else self.value

    def times(self, factor: float, name: str, unit: str) -> Figure:
        """So many times as much, under another name."""
        return replace(
            self,
            name=name,
            value=self.value * factor,
            low=self.low * factor,
            high=self.high * factor,
            error=self.error * factor,
            unit=unit,
            better="less",
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be trained: how many tokens, and what one GPU costs for an hour."""

    tokens: int | None = None
    price: float | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One point and everything that is known of it, `evidence` in the order in which it counts."""

    evidence: tuple[tuple[Group, Point], ...]
    job: Job = field(default_factory=Job)

    @property
    def name(self) -> str:
        """What the point is called."""
        return self.evidence[0][1].name

    @property
    def trial(self) -> str:
        """The trial's id."""
        return self.evidence[0][1].trial

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of evidence that there are, in the order in which they count."""
        return tuple(group.kind for group, _ in self.evidence)

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Slot to the fields of its technique."""
        return self.evidence[0][1].settings

    @property
    def asked(self) -> Trial | None:
        """The trial itself; None where another tool made the point or a technique is gone."""
        return self.evidence[0][1].asked

    @property
    def ranks(self) -> int:
        """How many processes, and on GPUs how many of them, the point takes."""
        return 1 if self.asked is None else self.asked.ranks

    @property
    def ok(self) -> bool:
        """Whether every attempt at it went well."""
        return all(point.status == "ok" for _, point in self.evidence)

    @property
    def planned(self) -> Point | None:
        """The point as it was predicted for a device."""
        return next((p for _, p in self.evidence if p.fit is not None), None)

    def names(self) -> tuple[str, ...]:
        """The measurements that it has."""
        return tuple(dict.fromkeys(name for _, p in self.evidence for name in p.estimates))

    def figure(self, name: str) -> Figure | None:
        """The quantity, from the evidence that counts most for it; None where there is none.

        Memory is that of the worst phase.
        """
        if name in DERIVED:
            return self._derived(name)
        for group, point in self._order(name):
            if name in point.estimates:
                return _figure(group, point, name)
        return None

    def _order(self, name: str) -> Sequence[tuple[Group, Point]]:
        """What was measured counts before what was predicted, where it was measured there.

        Memory and times of another machine say nothing of the device that was planned for.
        """
        there = self.planned
        if there is None or name.partition(".")[0] in QUALITIES:
            return self.evidence
        target = there.results[0].environment.hardware.get("predicted_for")
        elsewhere = [
            each
            for each in self.evidence
            if each[0].kind == "measured" and target not in _gpus(each[1])
        ]
        return [*(each for each in self.evidence if each not in elsewhere), *elsewhere]

    def _derived(self, name: str) -> Figure | None:
        if name == "gpus":
            number = float(self.ranks)
            return Figure(
                name=name, value=number, low=number, high=number, unit="", better="less", kind=None
            )
        seconds, rate = self.figure("step_seconds"), self.figure("tokens_per_second")
        if seconds is None or rate is None or not rate.value or self.job.tokens is None:
            return None
        # The interval is that of the step: the rate belongs to its value.
        hours = seconds.times(
            self.job.tokens / rate.value / seconds.value / HOUR, "hours", DERIVED["hours"]
        )
        if name == "hours":
            return hours
        if name == "gpu_hours":
            return hours.times(self.ranks, name, DERIVED[name])
        if self.job.price is None:
            return None
        return hours.times(self.ranks * self.job.price, name, DERIVED[name])


def _gpus(point: Point) -> list[str]:
    """The names of the GPUs of the machine that a point was measured on."""
    found = point.results[0].environment.hardware.get("gpus") or ()
    return [str(each.get("name")) for each in found if isinstance(each, Mapping)]


def _figure(group: Group, point: Point, name: str) -> Figure:
    estimate = point.estimates[name]
    every = [name, *(f"{name}.{phase}" for phase in PHASES)] if name in MEMORY else [name]
    ends = [_interval(group, point, each) for each in every if each in point.estimates]
    worst = point.worst(name) if name in MEMORY else estimate.value
    assert worst is not None, "the name itself has an estimate"
    return Figure(
        name=name,
        value=worst,
        low=max(low for low, _ in ends),
        high=max(high for _, high in ends),
        unit=estimate.unit,
        better=estimate.better,
        kind=group.kind,
        error=group.noise(point, name),
    )


def _interval(group: Group, point: Point, name: str) -> tuple[float, float]:
    """The 95 % interval; of measured memory with every repeat inside, since all must fit."""
    estimate = point.estimates[name]
    if estimate.predicted:
        return estimate.interval or (estimate.value, estimate.value)
    reach = Z95 * group.error(point, name)
    low, high = estimate.value - reach, estimate.value + reach
    if name.partition(".")[0] in MEMORY and estimate.spread is not None:
        low, high = min(low, estimate.spread[0]), max(high, estimate.spread[1])
    if estimate.unit == "1" and 0 <= estimate.value <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    return low, high


def together(runs: Sequence[Run]) -> Run:
    """Several runs as one.

    A trial that several have measured counts once, with the Results of one environment: those of
    different machines are no repeats of each other.
    """
    if len(runs) == 1:
        return runs[0]
    parts = {str(number): run.results for number, run in enumerate(runs)}
    names = [name for run in runs for name in run.header.get("objectives") or ()]
    limits: dict[str, float] = {}
    for run in runs:
        for name, bound in dict(run.header.get("limits") or {}).items():
            limits.setdefault(name, bound)
    return replace(
        runs[0],
        header={
            **runs[0].header,
            "objectives": list(dict.fromkeys(names)),
            "limits": limits,
        },
        results=store.standing(parts),
        attempts=tuple(result for run in runs for result in run.attempts),
        problems=tuple(problem for run in runs for problem in run.problems),
        writers=parts,
    )


def candidates(found: Sequence[Group], job: Job) -> tuple[Candidate, ...]:
    """Every point of the one model that these groups are of, measured evidence first.

    Raises:
        NothingToCompareError: there is no point.
        UserError: they are of several models, or planned for several devices.
    """
    kept = [group for group in found if group.kind != "published"]
    if not kept:
        raise NothingToCompareError("there is no measured or predicted point to choose from")
    models = {canonical_json(dict(group.model)): model_title(group.model) for group in kept}
    if len(models) > 1:
        raise UserError(
            f"these points are of different models ({listed(models.values())}): what one of them "
            "scores is not what another does; name runs of one model"
        )
    devices = {p.fit.device for group in kept for p in group.points if p.fit is not None}
    if len(devices) > 1:
        raise UserError(
            f"these plans are for different devices ({listed(sorted(devices))}): name one of them"
        )
    by_trial: dict[str, list[tuple[Group, Point]]] = {}
    for group in kept:
        for point in group.points:
            by_trial.setdefault(point.trial, []).append((group, point))
    return tuple(
        Candidate(evidence=tuple(evidence), job=job)
        for parts in by_trial.values()
        if (evidence := _telling(parts))
    )


def _telling(parts: Iterable[tuple[Group, Point]]) -> list[tuple[Group, Point]]:
    """What says something of a point: a measurement that was killed, or left out, does not."""
    every = list(parts)
    told = [each for each in every if each[1].status not in store.UNMADE]
    return told or every


def known(found: Iterable[Candidate]) -> tuple[str, ...]:
    """Every quantity that some candidate has, in the order in which they come."""
    every = list(found)
    names = dict.fromkeys(name for each in every for name in each.names())
    derived = [name for name in DERIVED if any(each.figure(name) for each in every)]
    return (*names, *derived)


def finite(figure: Figure | None) -> bool:
    """Whether there is a number."""
    return figure is not None and math.isfinite(figure.value)
