"""The points of a run: repeats pooled, names that tell them apart, and what may be compared.

A point is one trial of one kind of evidence. Every repeat counts as one value, whatever number of
steps or test items lies behind it: samples of different runs are never thrown together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tradebench.errors import UserError
from tradebench.published.held import sharded_error
from tradebench.report.units import clean, listed, title
from tradebench.result import PHASES, Fit, Kind, Measurement, Result, Status, Verdict
from tradebench.trial import Trial, sequences

if TYPE_CHECKING:
    import pandas as pd


KINDS: tuple[Kind, ...] = ("measured", "predicted", "published")
MEMORY = ("peak_tensor_bytes", "peak_reserved_bytes", "peak_allocated_bytes", "peak_process_bytes")

# Slots that leave fewer numbers to say the same with, and not only fewer bits of each.
TAKING = ("pruning", "low_rank")
# What a reader of a point must hear first when its repeats ended differently.
SEVERITY: tuple[Status, ...] = (
    "failed",
    "oom",
    "diverged",
    "timeout",
    "skipped",
    "ok",
    "killed",
)
STATUS_WORDS: Mapping[str, str] = {
    "ok": "ok",
    "oom": "out of memory",
    "failed": "failed",
    "timeout": "timed out",
    "killed": "killed",
    "diverged": "diverged",
    "skipped": "skipped",
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One quantity of a point: the mean over its repeats, one value per repeat.

    `interval` is the 95 % interval from the sampling inside one run (steps or test items), its two
    ends averaged over the repeats: repeats on the same items do not narrow it. That of a
    `predicted` value is what nobody can know without the device; it moves all points alike.
    """

    value: float
    unit: str
    better: str
    values: tuple[float, ...]
    interval: tuple[float, float] | None = None
    predicted: bool = False

    @property
    def spread(self) -> tuple[float, float] | None:
        """Lowest and highest repeat, where there is more than one."""
        return (min(self.values), max(self.values)) if len(self.values) > 1 else None

    @property
    def cost(self) -> float:
        """The value with its sign turned where more is better."""
        return -self.value if self.better == "more" else self.value

    def turned(self, times: float) -> Estimate:
        """Return `times` over the quantity: of a rate, what a unit takes."""
        ends = None if self.interval is None else sorted(times / each for each in self.interval)
        return replace(
            self,
            value=times / self.value,
            unit="s",
            better="less",
            values=tuple(times / each for each in self.values),
            interval=None if ends is None else (ends[0], ends[1]),
        )


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trial of one kind, its repeats pooled; `name` is unique within the run."""

    kind: Kind
    name: str
    results: tuple[Result, ...]

    @property
    def trial(self) -> str:
        """The trial's id."""
        return self.results[0].trial

    @cached_property
    def asked(self) -> Trial | None:
        """The trial itself; None where another tool made the point or a technique is gone."""
        try:
            return Trial.from_payload(self.results[0].payload())
        except (LookupError, ValidationError, TypeError, ValueError):
            return None

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Slot to the fields of its technique."""
        return self.results[0].settings

    @cached_property
    def outcomes(self) -> Counter[Status]:
        """How many repeats ended in which way."""
        return Counter(result.status for result in self.results)

    @property
    def status(self) -> Status:
        """The worst outcome; a killed repeat is only missing if another one went well."""
        return next(status for status in SEVERITY if self.outcomes[status])

    @property
    def fit(self) -> Fit | None:
        """Whether a predicted point fits on the device it was predicted for."""
        return self.results[0].fit

    @property
    def room(self) -> float:
        """The share of a device that a prediction must leave: what such were off by elsewhere."""
        return sharded_error() if self.fit is not None and self.devices > 1 else 0.0

    @property
    def verdict(self) -> Verdict | None:
        """Whether a predicted point fits; tight as well where it leaves too little room."""
        if self.fit is None:
            return None
        bound = (1 - self.room) * self.fit.capacity[0]
        narrow = self.fit.verdict == "fits" and self.room > 0 and self.fit.needed[1] > bound
        return "tight" if narrow else self.fit.verdict

    @property
    def status_text(self) -> str:
        """`ok`, `fits` of a plan, or `out of memory 1 of 3, ok 2 of 3` where repeats disagree."""
        if self.verdict is not None:
            return self.verdict
        if len(self.outcomes) == 1:
            return STATUS_WORDS[self.status]
        total = len(self.results)
        return ", ".join(
            f"{STATUS_WORDS[status]} {self.outcomes[status]} of {total}"
            for status in SEVERITY
            if self.outcomes[status]
        )

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """Every different sentence on why a repeat did not end well."""
        lines = (
            clean(line)
            for result in self.results
            if result.status != "ok"
            for line in (result.reason or "no reason was recorded").splitlines()
        )
        return tuple(dict.fromkeys(line for line in lines if line))

    @cached_property
    def estimates(self) -> Mapping[str, Estimate]:
        """Name to pooled value, over the repeats that ended well.

        Beside what was measured stand the time that all devices together take for a token, and
        what a plan says that each must give.
        """
        found: dict[str, list[Measurement]] = {}
        for result in self.results:
            if result.status == "ok":
                for name, measurement in result.measurements.items():
                    found.setdefault(name, []).append(measurement)
        predicted = self.kind == "predicted"
        pooled = {name: pool(each, predicted=predicted) for name, each in found.items()}
        if rate := pooled.get("tokens_per_second"):
            pooled["device_seconds_per_token"] = rate.turned(self.devices)
        if pooled and self.fit is not None:
            low, high = self.fit.needed
            pooled["needed_bytes"] = Estimate(
                value=high,
                unit="B",
                better="less",
                values=(high,),
                interval=(low, high),
                predicted=True,
            )
        return pooled

    @property
    def devices(self) -> int:
        """How many devices the point runs on."""
        return int(self.settings.get("sharding", {}).get("degree", 1))

    def value(self, name: str) -> float | None:
        """Return the pooled value, or None where the point has none."""
        estimate = self.estimates.get(name)
        return None if estimate is None else estimate.value

    def worst(self, name: str) -> float | None:
        """Return the value of the worst phase: a requirement on memory holds in every phase."""
        names = [name, *(f"{name}.{phase}" for phase in PHASES)] if name in MEMORY else [name]
        values = [self.value(each) for each in names]
        return max((value for value in values if value is not None), default=None)


def pool(measurements: Sequence[Measurement], *, predicted: bool = False) -> Estimate:
    """Return the estimate from one measurement per repeat."""
    first = measurements[0]
    values = tuple(float(each.value) for each in measurements)
    intervals = [each.interval for each in measurements if each.interval is not None]
    return Estimate(
        value=fmean(values),
        unit=first.unit,
        better=first.better,
        values=values,
        interval=(fmean(low for low, _ in intervals), fmean(high for _, high in intervals))
        if intervals
        else None,
        predicted=predicted,
    )


def points(results: Iterable[Result]) -> tuple[Point, ...]:
    """Return one point per kind and trial, in the order of their first Results."""
    grouped: dict[tuple[Kind, str], list[Result]] = {}
    for result in results:
        grouped.setdefault((result.kind, result.trial), []).append(result)
    groups = [tuple(sorted(group, key=lambda each: each.repeat)) for group in grouped.values()]
    names = _names([group[0] for group in groups])
    return tuple(
        Point(kind=group[0].kind, name=name, results=group)
        for group, name in zip(groups, names, strict=True)
    )


def model_title(model: Mapping[str, Any]) -> str:
    """Return the model's name and, where its weights are random, that they are."""
    name = clean(str(model.get("name") or "unnamed model"))
    if name == "reference":
        return "the reference model"
    config = model.get("config")
    shape = f" (shape {clean(str(config))})" if config and config != name else ""
    weights = ", random weights" if model.get("weights") == "random" else ""
    return f"{name}{shape}{weights}"


def accuracy_note(model: Mapping[str, Any]) -> str:
    """Return the sentence that belongs beside every accuracy of this model."""
    if model.get("name") == "reference":
        return (
            "Accuracy is that of tradebench's small reference model; "
            "it is not the accuracy of a larger model."
        )
    return f"Accuracy is that of {model_title(model)}."


def training_note(budgets: Iterable[Mapping[str, Any]]) -> str:
    """Return in what amounts points are trained, where they differ; empty where they do not."""
    found = list(budgets)
    lengths = sorted({int(each["sequence"]) for each in found if "sequence" in each})
    counts = sorted({sequences(each) for each in found})
    parts = []
    if len(lengths) > 1:
        parts.append(f"on sequences of at most {listed(map(str, lengths))} tokens")
    if len(counts) > 1:
        parts.append(f"on {listed(map(str, counts))} sequences a step")
    return f"Points train {' and '.join(parts)}." if parts else ""


# What follows from it for a reader.
TRAINING = (
    "Compare throughput, not step time; loss and accuracy come of more or less training, too."
)


def tasks(found: Iterable[Point]) -> tuple[str, ...]:
    """Return the tasks that any point has a headline accuracy for, before or after training."""
    names: dict[str, None] = {}
    for point in found:
        for name in point.estimates:
            head, _, task = name.partition(".")
            if head in {"accuracy", "accuracy_before"} and task and "." not in task:
                names[task] = None
    return tuple(names)


def memory_name(found: Sequence[Point], objectives: Iterable[str]) -> str | None:
    """Return the memory that a report speaks of: an objective, or the first one there is."""
    wanted = [name for name in objectives if name in MEMORY]
    return next(
        (name for name in (*wanted, *MEMORY) if any(name in point.estimates for point in found)),
        None,
    )


def frame(results: Iterable[Result]) -> pd.DataFrame:
    """Return Results as a tidy table: one row per Result and measurement.

    A Result without measurements has one row, so that no point of the suite goes missing.
    """
    import pandas as pd

    rows = []
    for result in results:
        head = {
            "suite": result.suite,
            "kind": result.kind,
            "trial": result.trial,
            "repeat": result.repeat,
            "attempt": result.attempt,
            "label": result.label,
            "model": model_title(result.model),
            "status": result.status,
            "phase": result.phase,
            "reason": result.reason,
        }
        rows += [head | _summary(name, each) for name, each in result.measurements.items()] or [
            head
        ]
    # Whole numbers of bytes stay whole: pandas would turn them into floats.
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def write_parquet(table: pd.DataFrame, file: Path) -> None:
    """Write what `frame` makes; numbers are 64-bit floats, which hold bytes up to 8 petabytes.

    Raises:
        UserError: The library that writes it is missing.
    """
    typed = table.astype(dict.fromkeys(WHOLE, "Int64") | dict.fromkeys(REAL, "float64"))
    try:
        typed.to_parquet(file, index=False)
    except ImportError:
        raise UserError("Parquet needs pyarrow: pip install pyarrow") from None


WHOLE = ("repeat", "attempt", "samples")
REAL = ("value", "interval_95_low", "interval_95_high", "samples_min", "samples_max")
COLUMNS = (
    *("suite", "kind", "trial", "repeat", "attempt", "label", "model", "status", "phase"),
    *("reason", "measurement", "title", "value", "unit", "better", "interval_95_low"),
    *("interval_95_high", "samples", "samples_min", "samples_max"),
)


def _summary(name: str, measurement: Measurement) -> dict[str, Any]:
    low, high = measurement.interval or (None, None)
    samples = measurement.samples
    return {
        "measurement": name,
        "title": title(name),
        "value": measurement.value,
        "unit": measurement.unit,
        "better": measurement.better,
        "interval_95_low": low,
        "interval_95_high": high,
        "samples": len(samples),
        "samples_min": min(samples, default=None),
        "samples_max": max(samples, default=None),
    }


def _names(firsts: Sequence[Result]) -> list[str]:
    """Return a name for each trial: its label and, where labels collide, what tells them apart."""
    by_label: dict[tuple[Kind, str], list[Result]] = {}
    for result in firsts:
        by_label.setdefault((result.kind, clean(result.label)), []).append(result)
    names = []
    for result in firsts:
        label = clean(result.label) or "unnamed"
        group = by_label[result.kind, clean(result.label)]
        if len(group) > 1:
            knobs = ", ".join(differing(result, group)) or result.trial
            label = f"{label} ({knobs})"
        names.append(label)
    return names


def differing(result: Result, group: Sequence[Result]) -> list[str]:
    """Return what sets this Result apart from the rest of the group, as `slot.field=value`."""
    flat = {id(each): _flat(each) for each in group}
    keys = dict.fromkeys(key for fields in flat.values() for key in fields)
    return [
        f"{key}={clean(str(flat[id(result)].get(key, 'off')))}"
        for key in keys
        if len({repr(fields.get(key)) for fields in flat.values()}) > 1
    ]


def _flat(result: Result) -> dict[str, Any]:
    parts = {
        **result.settings,
        "model": result.model,
        "budget": result.budget,
        "evaluate": result.evaluate,
    }
    return {
        f"{part}.{name}": value for part, fields in parts.items() for name, value in fields.items()
    }
