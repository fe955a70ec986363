"""Noise: how far runs of the same code differ, and the policy that follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from tradebench.regression.evidence import WITHIN, quantile
from tradebench.regression.policy import Policy, Rule
from tradebench.regression.sample import Point, Sample
from tradebench.regression.summary import GROUPS
from tradebench.report.units import significant, title

# A step of the margins that are proposed: 1, 1.5, 2, 3, 5, 7 and ten times as much.
STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far the runs of a metric differ: standard deviations by point, as shares or in points.

    `pooled` is the root of their mean square, `largest` that of the noisiest point, `margin` the
    smallest one under which unchanged code is `ok` in 19 checks of 20.
    """

    metric: str
    points: int
    runs: int
    pooled: float
    largest: float
    noisiest: str
    margin: float
    absolute: bool

    def text(self, value: float) -> str:
        """As a policy spells it."""
        return f"{significant(100 * value, 2)}{'pt' if self.absolute else '%'}"


def measure(sample: Sample, policy: Policy) -> list[Spread]:
    """The spread of every judged metric, the noisiest of its phases or tasks speaking for it."""
    grouped: dict[str, list[tuple[Point, str]]] = {}
    for point in sample.points:
        for metric in point.metrics:
            if policy.rule(metric, point.settings, point.kind) is not None:
                grouped.setdefault(metric.partition(".")[0], []).append((point, metric))
    return [found for name, each in grouped.items() if (found := _spread(name, each)) is not None]


def _spread(name: str, rows: Iterable[tuple[Point, str]]) -> Spread | None:
    absolute = name.startswith("accuracy")
    deviations: list[tuple[float, str]] = []
    counts = []
    for point, metric in rows:
        values = [float(value) for value in point.metrics[metric].values if value is not None]
        mean = fmean(values) if values else 0.0
        if len(values) > 1 and (absolute or mean):
            share = 1.0 if absolute else abs(mean)
            deviations.append((stdev(values) / share, f"{point.title}, {title(metric).lower()}"))
            counts.append(len(values))
    if not deviations:
        return None
    pooled = math.sqrt(fmean(deviation**2 for deviation, _ in deviations))
    largest, noisiest = max(deviations)
    runs = min(counts)
    error = pooled * math.sqrt(1 + 1 / runs)
    needed = (quantile(runs - 1, WITHIN) + quantile(math.inf, WITHIN)) * error
    return Spread(
        metric=name,
        points=len({id(point) for point, _ in rows}),
        runs=runs,
        pooled=pooled,
        largest=largest,
        noisiest=noisiest,
        margin=_rounded_up(needed),
        absolute=absolute,
    )


def _rounded_up(value: float) -> float:
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in STEPS if step * power >= value * (1 - 1e-9))


def text(spreads: Iterable[Spread]) -> str:
    """What was found, a line per metric."""
    lines = []
    for each in spreads:
        name = GROUPS.get(each.metric, title(each.metric))
        if each.pooled == 0.0:
            lines.append(f"{name}: the same in all {each.runs} runs, to the digit")
            continue
        lines.append(
            f"{name}: {each.text(each.pooled)} between {each.runs} runs (one standard deviation), "
            f"at most {each.text(each.largest)} ({each.noisiest})"
        )
    return "\n".join(lines)


def proposal(spreads: Iterable[Spread], policy: Policy) -> str:
    """A policy in TOML: the measured noise, and margins under which unchanged code is ok."""
    lines = ["[metrics]"]
    for each in spreads:
        # Tasks come behind a dot, and so do the phases of a peak, which is a metric itself too.
        tasks, phases = each.metric in GROUPS, each.metric.startswith("peak_")
        pattern = f"{each.metric}{'.*' if tasks else '*' if phases else ''}"
        rule = policy.rule(pattern.replace(".*", ".any").rstrip("*"), {}, "measured") or Rule()
        fields: dict[str, str] = {"margin": each.text(each.margin)}
        if each.pooled == 0.0:
            fields = {"margin": "0"} if rule.test == "exact" else {}
        elif rule.test != "exact":
            fields["noise"] = each.text(each.pooled)
        if fields:
            said = ", ".join(f'{name} = "{value}"' for name, value in fields.items())
            lines.append(f'"{pattern}" = {{{said}}}')
    return "\n".join(lines)


def payload(spreads: Iterable[Spread]) -> list[Mapping[str, object]]:
    """The same as JSON."""
    return [
        {
            "metric": each.metric,
            "points": each.points,
            "runs": each.runs,
            "pooled": each.pooled,
            "largest": each.largest,
            "noisiest": each.noisiest,
            "margin": each.margin,
            "unit": "1" if each.absolute else "relative",
        }
        for each in spreads
    ]
