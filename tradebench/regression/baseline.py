"""Baselines: the file that is committed, one line per metric so that a review shows what moved.

`FILE` is canonical JSON: the same runs give the same bytes on every machine. Beside it
`FILE.items.gz` holds how every test item was answered, which accuracy is paired by.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tradebench.errors import NothingToCompareError, UserError
from tradebench.regression import outcomes
from tradebench.regression.outcomes import Outcomes
from tradebench.regression.policy import Policy
from tradebench.regression.sample import Point, Sample, Series, Value
from tradebench.store import write_bytes, write_text

SCHEMA = "tradebench.baseline/1"
PER_RUN = ("statuses", "reasons", "environments", "repeats")


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a run is held against: a sample, how to judge, and why it is as it is."""

    sample: Sample
    items: Outcomes
    policy: Policy
    reason: str | None = None


def items_file(file: Path) -> Path:
    """Where a baseline's per-item outcomes are."""
    return file.with_name(f"{file.name}.items.gz")


def save(baseline: Baseline, file: Path) -> None:
    """Write both files, or replace them."""
    packed = outcomes.dump(baseline.items)
    if not file.parent.is_dir():
        raise UserError(f"{file.parent} is no folder: make it first, or name another file")
    write_bytes(items_file(file), packed)
    write_text(file, text(baseline))


def load(file: Path) -> Baseline:
    """Read a baseline.

    Raises:
        NothingToCompareError: there is no such file.
        UserError: it is no baseline, or its items are none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NothingToCompareError(
            f"{file} does not exist: make it with tradebench baseline set RUN -o {file}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not readable JSON: {error}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{file} has schema {schema!r}, but this tradebench reads {SCHEMA}")
    try:
        sample = Sample.model_validate(content)
        _check_lengths(sample)
        policy = Policy.model_validate(content.get("policy", {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file} is damaged: {where}: {first['msg']}") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from None
    return Baseline(
        sample=sample,
        items=outcomes.load(items_file(file)),
        policy=policy,
        reason=content.get("reason"),
    )


def _check_lengths(sample: Sample) -> None:
    """Every tuple of a point has an entry per run; a bad merge of two branches shows here."""
    count = len(sample.runs)
    for point in sample.points:
        rows = {name: getattr(point, name) for name in PER_RUN if getattr(point, name)}
        rows |= {name: series.values for name, series in point.metrics.items()}
        for name, row in rows.items():
            if len(row) != count:
                raise ValueError(f"{point.label}: {name} has {len(row)} entries for {count} runs")


def text(baseline: Baseline) -> str:
    """The file's text: sorted, one line per run, environment and metric."""
    sample = baseline.sample
    parts: dict[str, Any] = {
        "schema": SCHEMA,
        "reason": baseline.reason,
        "policy": baseline.policy.model_dump(mode="json", exclude_defaults=True),
    }
    lines = [f'"{name}": {_line(value)},' for name, value in parts.items()]
    lines += ['"runs": [', *_joined(_line(run.model_dump(mode="json")) for run in sample.runs)]
    named = sorted(sample.environments.items())
    lines += [
        '],\n"environments": {',
        *_joined(f"{_line(name)}: {_line(facts)}" for name, facts in named),
        '},\n"points": [',
        *_joined(_point(point) for point in sorted(sample.points, key=lambda each: each.key)),
        "]",
    ]
    return "{\n" + "\n".join(lines) + "\n}\n"


def _point(point: Point) -> str:
    fields = point.model_dump(mode="json")
    metrics = fields.pop("metrics")
    # A line each for what says which point this is, how it ended, and every metric.
    ended = {name: fields.pop(name) for name in PER_RUN}
    head = _line(fields)[1:-1]
    rows = _joined(f"{_line(name)}: {_line(series)}" for name, series in sorted(metrics.items()))
    return "\n".join([f"{{{head},", f"{_line(ended)[1:-1]},", '"metrics": {', *rows, "}}"])


def _joined(lines: Iterator[str]) -> list[str]:
    """The lines, with a comma behind all but the last."""
    found = list(lines)
    return [*(f"{line}," for line in found[:-1]), *found[-1:]]


def _line(value: Any) -> str:
    if isinstance(value, Series):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)


def merged(first: Baseline, second: Sample, items: Outcomes) -> Baseline:
    """The baseline with further runs in it.

    Raises:
        UserError: one of the runs is in it already, or predicts for another device.
    """
    old = first.sample
    known = {run.run for run in old.runs}
    again = [run.run for run in second.runs if run.run in known]
    if again:
        raise UserError(f"{again[0]} is in the baseline already: every run counts once")
    keys = dict.fromkeys(point.key for point in (*old.points, *second.points))
    counts = (len(old.runs), len(second.runs))
    points = tuple(_side_by_side((old.find(key), second.find(key)), counts) for key in keys)
    sample = Sample(
        runs=(*old.runs, *second.runs),
        environments={**old.environments, **second.environments},
        points=points,
    )
    return Baseline(
        sample=_in_order(sample),
        items={**first.items, **items},
        policy=first.policy,
        reason=first.reason,
    )


def _side_by_side(pair: tuple[Point | None, Point | None], counts: tuple[int, int]) -> Point:
    """One point from both samples; a sample that lacks it has None for each of its runs."""
    found = [point for point in pair if point is not None]
    if len({point.device for point in found}) > 1:
        devices = " and ".join(sorted(str(point.device) for point in found))
        raise UserError(f"{found[0].label} is predicted for {devices}: keep a baseline for each")
    rows = {
        name: tuple(
            entry
            for point, count in zip(pair, counts, strict=True)
            for entry in ((getattr(point, name) if point else ()) or (None,) * count)
        )
        for name in PER_RUN
    }
    # The newer one says what a metric is.
    series = {name: each for point in found for name, each in point.metrics.items()}
    metrics = {
        name: newest.model_copy(
            update={
                "values": tuple(
                    value
                    for point, count in zip(pair, counts, strict=True)
                    for value in _values(point, name, count)
                )
            }
        )
        for name, newest in sorted(series.items())
    }
    return found[-1].model_copy(update={**rows, "metrics": metrics})


def _values(point: Point | None, metric: str, count: int) -> tuple[Value | None, ...]:
    if point is None or metric not in point.metrics:
        return (None,) * count
    return point.metrics[metric].values


def _in_order(sample: Sample) -> Sample:
    """The same, oldest run first."""
    order = sorted(
        range(len(sample.runs)), key=lambda at: (str(sample.runs[at].started), sample.runs[at].run)
    )
    return chosen(sample, order)


def chosen(sample: Sample, indices: Sequence[int]) -> Sample:
    """Only these runs, in this order; what none of them has is left out."""

    def pick(row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(row[index] for index in indices) if row else ()

    points = []
    for point in sample.points:
        rows = {name: pick(getattr(point, name)) for name in PER_RUN}
        if not any(rows["statuses"]):
            continue
        picked = {name: pick(series.values) for name, series in point.metrics.items()}
        metrics = {
            name: point.metrics[name].model_copy(update={"values": values})
            for name, values in picked.items()
            if any(value is not None for value in values)
        }
        points.append(point.model_copy(update={**rows, "metrics": metrics}))
    used = {name for point in points for name in point.environments}
    return Sample(
        runs=pick(sample.runs),
        environments={name: each for name, each in sample.environments.items() if name in used},
        points=tuple(points),
    )


def pruned(baseline: Baseline, *, keep: int | None, drop: Sequence[str]) -> Baseline:
    """The baseline without the runs named in `drop`, and with the newest `keep` of the others.

    Raises:
        UserError: a run that is to go is not in it, or none would be left.
    """
    names = [run.run for run in baseline.sample.runs]
    for name in drop:
        if name not in names:
            raise UserError(f"{name} is not in the baseline: it has {', '.join(names)}")
    left = [index for index, name in enumerate(names) if name not in drop]
    if keep is not None:
        left = left[-keep:]
    if not left:
        raise UserError("no run would be left: remove the file instead")
    kept = {names[index] for index in left}
    return Baseline(
        sample=chosen(baseline.sample, left),
        items={address: each for address, each in baseline.items.items() if address[0] in kept},
        policy=baseline.policy,
        reason=baseline.reason,
    )
