"""What a baseline holds, for people: its runs, its points, and how small a change it notices."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from tradebench.regression.baseline import Baseline, chosen
from tradebench.regression.gate import WORDS, judge
from tradebench.regression.sample import Point
from tradebench.regression.summary import detectable
from tradebench.report.units import count, show, significant, title

SHOWN = ("peak_tensor_bytes", "peak_reserved_bytes", "step_seconds")


def text(baseline: Baseline) -> str:
    """Runs, one line per point, and the detectable changes."""
    sample = baseline.sample
    lines = [baseline.reason] if baseline.reason else []
    lines += [
        f"{count(len(sample.runs), 'run')}, {count(len(sample.environments), 'environment')}:"
    ]
    lines += [f"  {run.run}  {run.started or ''}".rstrip() for run in sample.runs]
    lines += [f"{count(len(sample.points), 'point')}:"]
    lines += [f"  {point.title}: {'; '.join(_said(point))}" for point in sample.points]
    # Held against its own newest run, a baseline says what it would have noticed.
    last = chosen(sample, [len(sample.runs) - 1])
    found = judge(baseline, last, baseline.items)
    lines += ["found nine times in ten:", *(f"  {line}" for line in detectable(found.verdicts))]
    return "\n".join(lines)


def payload(baseline: Baseline) -> dict[str, Any]:
    """The baseline as JSON, without its items."""
    return {
        "reason": baseline.reason,
        "policy": baseline.policy.model_dump(mode="json", exclude_defaults=True),
        **baseline.sample.model_dump(mode="json"),
    }


def _said(point: Point) -> Iterator[str]:
    """How it ended, and its main metrics with the spread over the runs."""
    endings = dict.fromkeys(status for status in point.statuses if status is not None)
    if tuple(endings) != ("ok",):
        yield " or ".join(WORDS[status] for status in endings)
    accuracies = [name for name in point.metrics if name.startswith("accuracy.")]
    for name in (*SHOWN, *accuracies):
        if name not in point.metrics:
            continue
        series = point.metrics[name]
        values = [float(value) for value in series.values if value is not None]
        if values:
            mean = fmean(values)
            spread = (max(values) - min(values)) / mean if mean else 0.0
            width = f" (within {significant(100 * spread, 2)} %)" if spread else ""
            yield f"{title(name).lower()} {show(name, mean, series.unit)}{width}"
