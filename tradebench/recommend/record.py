"""How far predictions were from what others have measured and published, in numbers and words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tradebench.published.comparison import Comparison, errors, grouped
from tradebench.published.expression import Counter
from tradebench.published.held import held, sharded, sharded_error, timed
from tradebench.recommend.choice import Choice, Judged
from tradebench.report.units import count, listed


def record(*, several: bool) -> Iterator[str]:
    """What the published rows say of predictions; of sharded ones where `several` GPUs are used."""
    every = held()
    promised = [one for one in every if one.promised]
    yield (
        f"How far predictions were off where others have published: on one GPU, medians of "
        f"{_medians(promised)}."
    )
    if several:
        yield f"Sharded, by programs that shard otherwise than this one: {_medians(sharded())}."


def steps_record() -> str:
    """How sure times, and the costs that follow from them, are; empty where nothing is known."""
    steps = errors(one for one in held() if timed(one))
    if steps.median is None:
        return ""
    return (
        f"Costs are less sure than memory: of {count(steps.count, 'step time')} that others have "
        f"published, {steps.inside} lay within the interval that was predicted, and the median "
        f"error was {in_percent(steps.median)}."
    )


def doubt(choice: Choice) -> str | None:
    """What to hear of a sharded prediction that leaves less than such predictions were off by."""
    best, off = choice.best, sharded_error()
    if best is None or best.candidate.ranks == 1 or _room(best) >= off:
        return None
    left = f"leaves {in_percent(_room(best))}" if _room(best) > 0 else "leaves nothing"
    text = (
        f"It {left} of the memory that it may take, and sharded memory was off by "
        f"{in_percent(off)} where others measured it"
    )
    roomy = next((e for e in choice.pool if e.candidate.ranks == 1 or _room(e) >= off), None)
    if roomy is None:
        return f"{text}."
    return f"{text}. The best that leaves as much, or is on one GPU, is {roomy.candidate.name}."


def _room(each: Judged) -> float:
    """The share of its memory that it leaves; all of it where that is not bounded or measured."""
    shares = (
        1 - figure.high / need.bound
        for need, figure, _ in each.verdicts
        if need.at_most and need.name.endswith("_bytes") and figure.kind == "predicted"
    )
    return min(shares, default=1.0)


def in_percent(share: float) -> str:
    """A share of a cost, or of what was measured: `4.0 %`."""
    return f"{100 * share:.1f} %"


def _medians(found: Iterable[Comparison]) -> str:
    """`0.1 % of allocated memory (12 rows)` for every counter."""
    by_counter: dict[Counter, tuple[Comparison, ...]] = grouped(
        found, lambda one: one.published.reading.counter
    )
    told = []
    for counter, rows in by_counter.items():
        each = errors(rows)
        if each.median is not None:
            told.append(
                f"{in_percent(each.median)} of {counter} memory ({count(each.count, 'row')})"
            )
    return listed(told)
