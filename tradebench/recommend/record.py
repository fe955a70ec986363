"""How far predictions were from what others have measured and published, in numbers and words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tradebench.published.comparison import Comparison, errors, grouped
from tradebench.published.expression import Counter
from tradebench.published.held import held, sharded, timed
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
    steps = errors(one for one in every if timed(one))
    if steps.median is not None:
        yield (
            f"Step times: a median of {in_percent(steps.median)} ({count(steps.count, 'row')}, "
            f"{steps.inside} of them within the interval that was predicted)."
        )


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
