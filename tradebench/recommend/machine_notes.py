"""What to read before acting on an answer: how sure predictions are, and what others published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tradebench.published.accuracies import Span, named, spans
from tradebench.published.comparison import Comparison, errors, grouped
from tradebench.published.expression import Counter
from tradebench.published.held import held
from tradebench.recommend.machines import Found, Question, idle
from tradebench.recommend.words import span_lines
from tradebench.report.tables import TRAINING
from tradebench.report.units import count, listed


def notes(asked: Question, found: Sequence[Found]) -> Iterator[str]:
    """What holds for all answers, a sentence or more each."""
    group = asked.group
    chosen = [each.run.candidate for each in found if each.run is not None]
    if group.kind == "predicted":
        yield (
            "Everything here is predicted, nothing was measured. Accuracy is never predicted: "
            "which of these points gives the better model, no number here says."
        )
        if asked.device is not None:
            yield (
                f"Step times, and the costs that follow from them, are those of {asked.device.name}"
                " with its links; memory holds for any card. Where a size has several cards, it "
                "fits if it does on the one that reports least. Errors of a prediction move "
                "all points alike: two costs compare better than either of them is known."
            )
        yield from _record(several=any(each.ranks > 1 for each in chosen))
    elif asked.judges:
        yield from group.accuracy_notes
    if group.training_note and not asked.judges:
        yield f"{group.training_note} {TRAINING}"
    if any(map(idle, found)):
        yield "GPU-hours count the GPUs that a point uses; the others of its machine are idle."


def _record(*, several: bool) -> Iterator[str]:
    """How far predictions were from what others have measured and published."""
    every = held()
    promised = [one for one in every if one.promised]
    yield (
        f"How far predictions were off where others have published: on one GPU, medians of "
        f"{_medians(promised)}."
    )
    if several:
        sharded = [one for one in every if one.published.trial.ranks > 1 and not _timed(one)]
        yield f"Sharded, by programs that shard otherwise than this one: {_medians(sharded)}."
    steps = errors(one for one in every if _timed(one))
    if steps.median is not None:
        yield (
            f"Step times: a median of {in_percent(steps.median)} ({count(steps.count, 'row')}, "
            f"{steps.inside} of them within the interval that was predicted)."
        )


def _timed(one: Comparison) -> bool:
    return one.published.reading.counter == "step"


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


def published(asked: Question, found: Sequence[Found]) -> Iterator[str]:
    """What others have published with the techniques that are named, by those techniques."""
    if asked.judges:
        return
    every: dict[str, tuple[Span, ...]] = {}
    for each in found:
        if each.run is not None:
            settings = dict(each.run.candidate.settings)
            dense = {slot: fields for slot, fields in settings.items() if slot != "quantization"}
            for techniques in (settings, dense):
                every.setdefault(named(techniques), spans(techniques))
    yield from span_lines((name, told) for name, told in every.items() if told)


def in_percent(share: float) -> str:
    """A share of a cost, or of what was measured: `4.0 %`."""
    return f"{100 * share:.1f} %"
