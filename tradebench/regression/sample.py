"""A sample: some runs of a suite reduced to one value per run, point and metric.

Both sides of a comparison are samples: what a baseline file holds, and the runs that are held
against it. A sample names no host, no home and no secret, and folders only by their last part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from pydantic import BaseModel, ConfigDict

from tradebench.environment import scrub
from tradebench.errors import NothingToCompareError, UserError
from tradebench.regression import outcomes
from tradebench.regression.outcomes import Outcomes
from tradebench.result import Kind, Measurement, Result, Status, digest
from tradebench.store import Run

Value = int | float
Key = tuple[Kind, str]

# How a point ended where its repeats disagree: the first of these that any of them has.
SEVERITY: tuple[Status, ...] = (
    "oom",
    "diverged",
    "timeout",
    "failed",
    "killed",
    "skipped",
    "ok",
)
# How a measured point may end for a baseline to expect that it ends so again.
EXPECTED = frozenset({"ok", "oom", "diverged", "skipped"})

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_PRIVATE = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD)(?:_|$)", re.IGNORECASE)


class Frozen(BaseModel):
    """A frozen value that keeps keys which a later version added."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Head(Frozen):
    """One run: its name, when it began, and the versions of the code that its points used."""

    run: str
    started: str | None = None
    code: Mapping[str, str | None] = {}


class Series(Frozen):
    """One metric of a point: a value per run of the sample, None where a run has none."""

    unit: str
    better: str
    values: tuple[Value | None, ...]


class Point(Frozen):
    """One point of one kind over all runs of the sample; every tuple has an entry per run.

    `environments` names entries of the sample's; `repeats` are the repeats that ended well, whose
    values are pooled. `device` is what a prediction was made for.
    """

    kind: Kind
    trial: str
    label: str
    suite: str
    device: str | None = None
    model: Mapping[str, Any] = {}
    budget: Mapping[str, Any] = {}
    evaluate: Mapping[str, Any] = {}
    settings: Mapping[str, Mapping[str, Any]] = {}
    statuses: tuple[Status | None, ...]
    reasons: tuple[str | None, ...] = ()
    environments: tuple[str | None, ...]
    repeats: tuple[tuple[int, ...] | None, ...]
    metrics: Mapping[str, Series] = {}

    @property
    def key(self) -> Key:
        """What makes two points the same."""
        return (self.kind, self.trial)

    @property
    def title(self) -> str:
        """What people read."""
        return self.label if self.kind == "measured" else f"{self.label} ({self.kind})"


class Sample(Frozen):
    """Points over runs; `environments` maps a name to software, hardware and variables."""

    runs: tuple[Head, ...]
    environments: Mapping[str, Mapping[str, Any]] = {}
    points: tuple[Point, ...]

    def find(self, key: Key) -> Point | None:
        """The point of that kind and trial, if there is one."""
        return next((point for point in self.points if point.key == key), None)


def of_runs(
    runs: Sequence[Run], kinds: Iterable[Kind] | None = None, *, expected: bool = False
) -> tuple[Sample, Outcomes]:
    """Runs as a sample, oldest first, with their per-item outcomes.

    `kinds` are the kinds of evidence to take: what was measured where any of it was, and otherwise
    what was predicted. With `expected`, points that died of something else are left out.

    Raises:
        UserError: a run is given twice, or two runs predict for different devices.
        NothingToCompareError: they hold no Result of these kinds.
    """
    ordered = sorted(runs, key=lambda run: (str(run.header.get("started")), run.directory.name))
    names = [run.directory.resolve().name for run in ordered]
    if len(set(names)) < len(names):
        raise UserError(f"the same run is given twice: {', '.join(names)}")
    wanted = frozenset(kinds or _kinds(ordered))
    grouped: dict[Key, list[list[Result]]] = {}
    for index, run in enumerate(ordered):
        for result in run.results:
            if result.kind in wanted:
                rows = grouped.setdefault((result.kind, result.trial), [[] for _ in ordered])
                rows[index].append(result)
    environments: dict[str, Mapping[str, Any]] = {}
    points = tuple(
        point
        for rows in grouped.values()
        if (point := _point(rows, environments, expected=expected)) is not None
    )
    if not points:
        raise NothingToCompareError(
            f"{', '.join(names)}: there is no {' or '.join(sorted(wanted))} point to compare"
        )
    heads = tuple(
        Head(run=name, started=run.header.get("started"), code=_code(run, wanted))
        for name, run in zip(names, ordered, strict=True)
    )
    kept = {point.key for point in points}
    found = outcomes.of_runs(ordered, kept)
    return Sample(runs=heads, environments=environments, points=points), found


def _kinds(runs: Sequence[Run]) -> frozenset[Kind]:
    measured = any(result.kind == "measured" for run in runs for result in run.results)
    return frozenset({"measured"}) if measured else frozenset({"predicted"})


def _code(run: Run, kinds: frozenset[Kind]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for result in run.results:
        if result.kind in kinds:
            found |= result.environment.code
    return dict(sorted(found.items()))


def _point(
    rows: Sequence[Sequence[Result]],
    environments: dict[str, Mapping[str, Any]],
    *,
    expected: bool,
) -> Point | None:
    rows = [
        [] if expected and _status(row) not in EXPECTED else sorted(row, key=lambda r: r.repeat)
        for row in rows
    ]
    first = next((row[0] for row in rows if row), None)
    if first is None:
        return None
    devices = {row[0].fit.device for row in rows if row and row[0].fit is not None}
    if len(devices) > 1:
        raise UserError(
            f"{first.label} is predicted for {' and '.join(sorted(devices))}: compare one device"
        )
    well = [[result for result in row if result.status == "ok"] for row in rows]
    return Point(
        kind=first.kind,
        trial=first.trial,
        label=scrub(first.label),
        suite=first.suite,
        device=next(iter(devices), None),
        **{
            part: presentable(getattr(first, part))
            for part in ("model", "budget", "evaluate", "settings")
        },
        statuses=tuple(_status(row) if row else None for row in rows),
        reasons=tuple(_reason(row) for row in rows),
        environments=tuple(_environment(row, environments) if row else None for row in rows),
        repeats=tuple(tuple(each.repeat for each in row) if row else None for row in well),
        metrics=_metrics(well),
    )


def _status(row: Sequence[Result]) -> Status | None:
    found = {result.status for result in row}
    return next((status for status in SEVERITY if status in found), None)


def _reason(row: Sequence[Result]) -> str | None:
    status = _status(row)
    if status in (None, "ok"):
        return None
    told = next((each.reason for each in row if each.status == status and each.reason), None)
    return None if told is None else scrub(told).splitlines()[0]


def _environment(row: Sequence[Result], known: dict[str, Mapping[str, Any]]) -> str:
    """The name of the environment in which a run measured a point, noted where it is new."""
    environment = row[0].environment
    facts = presentable(
        {
            "software": environment.software,
            "hardware": environment.hardware,
            "variables": environment.variables,
        }
    )
    name = digest(facts)
    known[name] = facts
    return name


def _metrics(rows: Sequence[Sequence[Result]]) -> dict[str, Series]:
    firsts: dict[str, Measurement] = {}
    for row in rows:
        for result in row:
            for name, measurement in result.measurements.items():
                firsts.setdefault(name, measurement)
    return {
        name: Series(
            unit=first.unit,
            better=first.better,
            values=tuple(_value(name, row) for row in rows),
        )
        for name, first in sorted(firsts.items())
    }


def _value(name: str, row: Sequence[Result]) -> Value | None:
    """One value for a run: a peak is the highest, anything else the mean over the repeats.

    A time is the median of its steps, so that one interrupted step is not the run's.
    """
    found = [each.measurements[name] for each in row if name in each.measurements]
    if not found:
        return None
    if found[0].unit == "B":
        return max(each.value for each in found)
    timed = found[0].unit == "s"
    values = [median(each.samples) if timed and each.samples else each.value for each in found]
    if all(isinstance(value, int) and value == values[0] for value in values):
        return values[0]
    # As many digits as a baseline keeps, so that what is read back is equal to what was measured.
    return float(f"{fmean(values):.{outcomes.DIGITS}g}")


def presentable(value: Any) -> Any:
    """A JSON value without what belongs to one machine: paths, hosts, credentials."""
    if isinstance(value, Mapping):
        return {
            str(name): presentable(each)
            for name, each in value.items()
            if not _PRIVATE.search(str(name))
        }
    if isinstance(value, list | tuple):
        return [presentable(each) for each in value]
    if not isinstance(value, str):
        return value
    local = value.startswith(("/", "~", "./", "../")) and "/" in value
    text = value.rstrip("/").rpartition("/")[2] if local else value
    return scrub(_CREDENTIALS.sub("", text))
