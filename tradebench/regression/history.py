"""History: one series per point, metric and hardware over many runs, with where it changed.

A change that stays for a few runs is marked as advice: a baseline that moves with every merge hides
a slow drift, and this shows it. The gate never rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from tradebench.regression import comparability
from tradebench.regression.sample import Point, Sample
from tradebench.report.units import count, show, title
from tradebench.result import Kind, digest

SHORTEST = 3  # runs that a level has to last
REACH = 4.0  # scaled deviations beyond which a single run is an outlier and pulls nothing
PENALTY = 4.0  # what another level has to save in squared error, in variances, per log of the runs
SURE = 0.005  # Welch's test at a boundary
HEIGHTS = "▁▂▃▄▅▆▇█"
DEVIATION = 1.4826  # from a median absolute deviation to a normal distribution's standard one


@dataclass(frozen=True, kw_only=True)
class Change:
    """A new level: the run that it begins with, and how much higher it is than the one before."""

    run: str
    before: float
    after: float

    @property
    def share(self) -> float:
        """Relative to the level before."""
        return (self.after - self.before) / abs(self.before) if self.before else math.inf


@dataclass(frozen=True, kw_only=True)
class Series:
    """A metric of a point on one hardware, oldest run first."""

    kind: Kind
    trial: str
    point: str
    metric: str
    unit: str
    better: str
    hardware: str
    runs: tuple[str, ...]
    started: tuple[str | None, ...]
    values: tuple[float, ...]
    changes: tuple[Change, ...]


def series(
    sample: Sample, metric: str, *, least: float = 0.0, change_points: bool = True
) -> list[Series]:
    """The history of a metric, a series for each point and hardware.

    Changes smaller than `least`, a share, are not marked.
    """
    found = []
    for point in sample.points:
        if metric in point.metrics:
            for hardware, indices in _by_hardware(sample, point, metric).items():
                found.append(
                    _series(sample, point, metric, hardware, indices, least, change_points)
                )
    return found


def _by_hardware(sample: Sample, point: Point, metric: str) -> dict[str, list[int]]:
    """The runs that may stand in one series: what may not be compared may not be joined."""
    family = comparability.family(metric, point.metrics[metric].unit)
    grouped: dict[str, list[int]] = {}
    for at, value in enumerate(point.metrics[metric].values):
        name = point.environments[at]
        if value is None or name is None:
            continue
        facts = comparability.facts(sample.environments.get(name, {}), sample.runs[at].code)
        hard = comparability.identity(family, facts) if point.kind == "measured" else {}
        grouped.setdefault(digest(hard), []).append(at)
    return grouped


def _series(
    sample: Sample,
    point: Point,
    metric: str,
    hardware: str,
    indices: Sequence[int],
    least: float,
    change_points: bool,
) -> Series:
    held = point.metrics[metric]
    values = tuple(float(held.values[at] or 0.0) for at in indices)
    names = tuple(sample.runs[at].run for at in indices)
    return Series(
        kind=point.kind,
        trial=point.trial,
        point=point.title,
        metric=metric,
        unit=held.unit,
        better=held.better,
        hardware=hardware,
        runs=names,
        started=tuple(sample.runs[at].started for at in indices),
        values=values,
        changes=changes(names, values, least) if change_points else (),
    )


def changes(runs: Sequence[str], values: Sequence[float], least: float) -> tuple[Change, ...]:
    """Where the level of a series, a value for each run, moved by more than the share `least`."""
    levels = segments(values)
    means = [fmean(values[start:stop]) for start, stop in pairwise(levels)]
    found = (
        Change(run=runs[start], before=before, after=after)
        for start, (before, after) in zip(levels[1:-1], pairwise(means), strict=True)
    )
    return tuple(change for change in found if abs(change.share) > least)


def segments(values: Sequence[float]) -> list[int]:
    """Where levels begin, with 0 and the length at the ends.

    Least squares with a penalty for every level, by dynamic programming (Jackson et al. 2005,
    https://doi.org/10.1109/LSP.2001.838216), on values whose outliers were clipped; a boundary
    stays only if Welch's test is sure of it.
    """
    count = len(values)
    if count < 2 * SHORTEST:
        return [0, count]
    clipped = _clipped(values)
    moves = [abs(b - a) for a, b in pairwise(clipped) if a != b]
    if not moves:
        return [0, count]
    # Where most neighbours are equal there is no noise, and the smallest move is a step.
    variance = _variance(clipped) or (min(moves) / 100) ** 2
    penalty = PENALTY * variance * math.log(count)
    sums, squares = [0.0], [0.0]
    # Taken from their mean, squares of large values keep their digits.
    center = fmean(clipped)
    for value in clipped:
        sums.append(sums[-1] + value - center)
        squares.append(squares[-1] + (value - center) ** 2)

    def cost(start: int, stop: int) -> float:
        total = sums[stop] - sums[start]
        return max(0.0, squares[stop] - squares[start] - total * total / (stop - start))

    best = [-penalty] + [math.inf] * count
    came = [0] * (count + 1)
    for stop in range(SHORTEST, count + 1):
        for start in (0, *range(SHORTEST, stop - SHORTEST + 1)):
            total = best[start] + cost(start, stop) + penalty
            if total < best[stop]:
                best[stop], came[stop] = total, start
    levels = [count]
    while levels[-1] > 0:
        levels.append(came[levels[-1]])
    return _sure(clipped, levels[::-1])


def _sure(values: Sequence[float], levels: Sequence[int]) -> list[int]:
    """Without the boundaries that two levels beside each other do not bear out."""
    kept = list(levels)
    while len(kept) > 2:
        odds = [
            _welch(values[first:second], values[second:third])
            for first, second, third in zip(kept, kept[1:], kept[2:], strict=False)
        ]
        worst = max(range(len(odds)), key=odds.__getitem__)
        if odds[worst] <= SURE:
            break
        del kept[worst + 1]
    return kept


def _clipped(values: Sequence[float]) -> list[float]:
    """Every value brought to within reach of its neighbours' median."""
    found = []
    noise = math.sqrt(_variance(values))
    for at, value in enumerate(values):
        near = median(values[max(0, at - 2) : at + 3])
        found.append(min(max(value, near - REACH * noise), near + REACH * noise))
    return found


def _variance(values: Sequence[float]) -> float:
    """Of the noise alone: from differences of neighbours, which a few steps do not move."""
    differences = [abs(b - a) for a, b in pairwise(values)]
    return (DEVIATION * median(differences)) ** 2 / 2


def _welch(one: Sequence[float], other: Sequence[float]) -> float:
    """The two-sided p-value of two means being one, with variances of their own."""
    from scipy import special

    change = fmean(one) - fmean(other)
    errors = [_sample_variance(each) / len(each) for each in (one, other)]
    total = sum(errors)
    if total == 0.0:
        return 0.0 if change else 1.0
    freedom = total**2 / sum(
        error**2 / (len(each) - 1) for error, each in zip(errors, (one, other), strict=True)
    )
    return float(2 * special.stdtr(freedom, -abs(change) / math.sqrt(total)))


def _sample_variance(values: Sequence[float]) -> float:
    mean = fmean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def text(suite: str, found: Sequence[Series]) -> str:
    """A line per series with its course drawn in eight heights, and its changes below."""
    lines = [f"{title(found[0].metric)} of {suite}:"]
    for each in found:
        newest = show(each.metric, each.values[-1], each.unit)
        runs = count(len(each.values), "run")
        lines.append(f"  {each.point}: {course(each.values)} {newest} ({runs})")
        lines += [
            f"    from {change.run} on: {show(each.metric, change.before, each.unit)} -> "
            f"{show(each.metric, change.after, each.unit)} ({100 * change.share:+.1f} %), advice"
            for change in each.changes
        ]
    return "\n".join(lines)


def course(values: Sequence[float]) -> str:
    """The values drawn in eight heights."""
    low, high = min(values), max(values)
    if low == high:
        return HEIGHTS[3] * len(values)
    top = len(HEIGHTS) - 1
    return "".join(HEIGHTS[round(top * (value - low) / (high - low))] for value in values)
