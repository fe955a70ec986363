"""What runs or items say about a change: how large it is, how sure, and what would have been found.

Changes are counted so that positive is worse. Nothing here knows of runs, points or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

Call = Literal["ok", "improved", "regressed", "inconclusive"]

# One-sided: how sure it has to be that there is a change, and that it stays within the margin.
CHANGED = 0.995
WITHIN = 0.95
# A change of the least detectable size is found in so many checks.
POWER = 0.9
# How often a whole check may raise a false alarm where nothing was run again.
FAMILY = 0.01
# Fewer baseline runs than this do not show their own spread.
ENOUGH = 5
# A declared noise weighs as much as this many degrees of freedom.
DECLARED = 4


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A change in the metric's unit, positive where worse.

    `low` and `high` bound it by the 99 % interval, `upper` from above with 95 %. `worse` and
    `better` are one-sided p-values of there being no change. `each` is the change of every new run
    by itself; `detectable` is the smallest change that would be found in nine checks of ten; `rule`
    is the sentence that says how all this was found. `tested` is false where no outcome of a test
    could have been called a change, so that it is none of the many (Tarone 1990,
    https://doi.org/10.2307/2531456).
    """

    change: float
    low: float
    high: float
    upper: float
    worse: float
    better: float
    each: tuple[float, ...]
    detectable: float
    rule: str
    tested: bool = True


def decide(evidence: Evidence, margin: float) -> Call:
    """Call a change by its size, by how sure it is, and by every new run agreeing."""
    if min(evidence.each) > margin and evidence.worse <= 1 - CHANGED:
        return "regressed"
    if max(evidence.each) < -margin and evidence.better <= 1 - CHANGED:
        return "improved"
    return "ok" if evidence.upper <= margin else "inconclusive"


def exact(base: Sequence[float], new: Sequence[float], margin: float, *, more: bool) -> Evidence:
    """Values without noise: a change lies beyond every baseline run."""
    sign = -1.0 if more else 1.0
    best, worst = min(sign * value for value in base), max(sign * value for value in base)
    each = tuple(_beyond(sign * value, best, worst) for value in new)
    change = sum(each) / len(each)
    return Evidence(
        change=change,
        low=min(each),
        high=max(each),
        upper=max(each),
        worse=0.0 if change > 0 else 1.0,
        better=0.0 if change < 0 else 1.0,
        each=each,
        detectable=margin,
        rule=f"margin alone, against {_runs(len(base))}",
        tested=False,
    )


def runs(
    base: Sequence[float], new: Sequence[float], margin: float, noise: float, *, more: bool
) -> Evidence:
    """One value per run: the new runs against what a further baseline run would be.

    From five baseline runs on, their own spread is Student's. Below, the declared `noise` (a
    standard deviation) joins in as so many degrees of freedom, as in Smyth's moderated t (2004,
    https://doi.org/10.2202/1544-6115.1027): two runs alone would need a change of 78 times their
    spread.
    """
    sign = -1.0 if more else 1.0
    center = math.fsum(base) / len(base)
    each = tuple(sign * (value - center) for value in new)
    deviation, freedom = spread(base, noise)
    error = deviation * math.sqrt(1 / len(new) + 1 / len(base))
    enough = len(base) >= ENOUGH
    source = "their own spread" if enough else f"a declared noise of {_share(noise, center)}"
    if 1 < len(base) < ENOUGH:
        source = f"their spread and {source}"
    return _student(
        math.fsum(each) / len(each),
        error,
        freedom,
        margin,
        each=each,
        rule=f"{_runs(len(base))}, {source}",
    )


def pairs(
    base: Sequence[float], new: Sequence[float], margin: float, noise: float, *, more: bool
) -> Evidence:
    """Runs made in turn on one machine, the first of one side beside the first of the other.

    Differences of logarithms are tested, so that a drift which both runs of a pair share is gone.
    """
    sign = -1.0 if more else 1.0
    center = math.fsum(base) / len(base)
    if min(*base, *new) <= 0:
        raise ValueError("only positive values have a ratio")
    logs = [sign * math.log(b / a) for a, b in zip(base, new, strict=True)]
    deviation, freedom = spread(logs, math.sqrt(2) * noise / center)
    mean = math.fsum(logs) / len(logs)
    return _student(
        center * mean,
        center * deviation / math.sqrt(len(logs)),
        freedom,
        margin,
        # The mean speaks for the pairs: one slow pair is noise, and tested as such.
        each=(center * mean,),
        rule=f"{len(logs)} pairs of runs in turn",
    )


def items(base: Sequence[float], new: Sequence[float], margin: float, *, more: bool) -> Evidence:
    """The same items answered before and now, one value per item.

    Right or wrong: McNemar's exact test, and the interval of Agresti and Min (2005,
    https://doi.org/10.1002/sim.1781), which adds half an item to every cell and so stands an
    empty one. Anything else: Student's t of the differences.
    """
    sign = -1.0 if more else 1.0
    changes = [sign * (b - a) for a, b in zip(base, new, strict=True)]
    count = len(changes)
    if {*base, *new} <= {0.0, 1.0}:
        return _mcnemar(changes.count(1.0), changes.count(-1.0), count, margin)
    mean = math.fsum(changes) / count
    if count < 2:
        raise ValueError("a single item says nothing of the others")
    made = _student(
        mean,
        _deviation(changes) / math.sqrt(count),
        count - 1,
        margin,
        each=(mean,),
        rule=f"paired over {count} items",
    )
    if not any(changes):
        rule = f"paired over {count} items, none of which changed"
        made = replace(made, rule=rule, tested=False)
    return made


def joined(of_items: Evidence, of_runs: Evidence) -> Evidence:
    """Items that also differ from run to run: both have to say so, and both errors add up.

    The items tell what these two models answer differently, the runs how much training alone
    changes that.
    """

    def reach(name: Literal["low", "high", "upper"]) -> float:
        from_items = getattr(of_items, name) - of_items.change
        from_runs = getattr(of_runs, name) - of_runs.change
        return math.copysign(math.hypot(from_items, from_runs), from_items)

    return replace(
        of_items,
        low=of_items.change + reach("low"),
        high=of_items.change + reach("high"),
        upper=of_items.change + reach("upper"),
        worse=max(of_items.worse, of_runs.worse),
        better=max(of_items.better, of_runs.better),
        each=of_runs.each,
        detectable=max(of_items.detectable, of_runs.detectable),
        rule=f"{of_items.rule}; {of_runs.rule}",
    )


def spread(values: Sequence[float], noise: float) -> tuple[float, float]:
    """Standard deviation and degrees of freedom of runs, the declared noise included if few."""
    own = _deviation(values) if len(values) > 1 else 0.0
    freedom = len(values) - 1
    if len(values) >= ENOUGH:
        return own, freedom
    pooled = (DECLARED * noise**2 + freedom * own**2) / (DECLARED + freedom)
    return math.sqrt(pooled), DECLARED + freedom


def holm(values: Sequence[float]) -> list[float]:
    """P-values adjusted for there being many (Holm 1979), in the order given."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, values[index] * (len(values) - rank)))
        adjusted[index] = largest
    return adjusted


def _student(
    change: float,
    error: float,
    freedom: float,
    margin: float,
    *,
    each: tuple[float, ...],
    rule: str,
) -> Evidence:
    half = quantile(freedom, CHANGED) * error
    return Evidence(
        change=change,
        low=change - half,
        high=change + half,
        upper=change + quantile(freedom, WITHIN) * error,
        worse=_tail(change, error, freedom),
        better=_tail(-change, error, freedom),
        each=each,
        detectable=max(margin, half) + quantile(math.inf, POWER) * error,
        rule=rule,
    )


def _mcnemar(lost: int, won: int, count: int, margin: float) -> Evidence:
    changed = lost + won
    change = (lost - won) / count
    # Half an item in each of the four cells.
    center = (lost - won) / (count + 2)
    error = math.sqrt(changed + 1 - (lost - won) ** 2 / (count + 2)) / (count + 2)
    half = quantile(math.inf, CHANGED) * error
    rule = f"paired over {count} items, {lost} lost and {won} won"
    return Evidence(
        change=change,
        low=center - half,
        high=center + half,
        # Where no item changed there is nothing to test; how little a few items can show is what
        # the detectable change says.
        upper=center + quantile(math.inf, WITHIN) * error if changed else 0.0,
        worse=at_least(lost, changed),
        better=at_least(won, changed),
        each=(change,),
        detectable=max(margin, half) + quantile(math.inf, POWER) * error,
        rule=rule if changed else f"paired over {count} items, none of which changed",
        tested=changed > 0,
    )


@cache
def quantile(freedom: float, level: float) -> float:
    """Student's t; the normal distribution's where the degrees of freedom are infinite."""
    from scipy import special

    found = special.ndtri(level) if math.isinf(freedom) else special.stdtrit(freedom, level)
    return float(found)


def at_least(successes: int, trials: int) -> float:
    """How likely so many heads or more are in so many tosses of a fair coin."""
    from scipy import special

    return 1.0 if successes == 0 else float(special.bdtrc(successes - 1, trials, 0.5))


def _tail(change: float, error: float, freedom: float) -> float:
    """How likely so large a change is where there is none."""
    from scipy import special

    if error == 0.0:
        return 0.0 if change > 0 else 1.0
    return float(special.stdtr(freedom, -change / error))


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _beyond(value: float, best: float, worst: float) -> float:
    """How far a value lies outside a range; 0 inside."""
    return value - worst if value > worst else min(0.0, value - best)


def _runs(count: int) -> str:
    return "1 baseline run" if count == 1 else f"{count} baseline runs"


def _share(noise: float, center: float) -> str:
    return f"{100 * noise / abs(center):.3g} %" if center else f"{noise:.3g}"
