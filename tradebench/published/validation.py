"""The validation of predictions against published figures, as a page of Markdown.

Differences between two rows of one source come first: the source's own code is in both, so they say
what a prediction is worth when two techniques are compared, which is what predictions are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from tradebench.published.comparison import (
    Comparison,
    Errors,
    Predictions,
    compare,
    errors,
    grouped,
)
from tradebench.published.deltas import Delta, deltas
from tradebench.published.expression import Counter, Reading, Unexpressed, unexpressed
from tradebench.published.promise import promise

T = TypeVar("T")

GIB = 2**30
COUNTERS: tuple[Counter, ...] = ("allocated", "active", "reserved", "device", "step")
TITLES: dict[Counter, str] = {
    "allocated": "Allocated memory",
    "active": "Active memory",
    "reserved": "Reserved memory",
    "device": "Memory as the driver reports it",
    "step": "Time of a step",
}
MOMENTS = {
    "training": "",
    "load": ", once loaded",
    "after_forward": ", alive after the first forward pass",
    "forward_backward": ", first forward and backward pass",
}
ERROR_COLUMNS = ("Predicted", "Refused", "Median error", "Largest error", "Inside the interval")
NOTHING = "–"  # noqa: RUF001  # a dash in a table, not a minus


def render(predictions: Predictions) -> str:
    """The whole page: the promise, what single knobs change, every figure, and who differs why.

    Raises:
        ValueError: there is a prediction for something that is no expressed row.
    """
    comparisons = compare(predictions)
    left_out = unexpressed()
    blocks = [
        "# Predictions against published measurements",
        f"{len(comparisons)} published figures are said as trials of this program, "
        f"{len(left_out)} are not. Every figure was measured by others, on their code and their "
        "machines; every prediction was made without a GPU. A ratio is predicted over published, "
        "an error its distance from 1. GB are converted to GiB.",
        *_promise(comparisons),
        *_deltas(deltas(comparisons)),
        "## Medians of errors",
        _medians(comparisons),
    ]
    for counter in COUNTERS:
        blocks += _counter(counter, comparisons)
    blocks += _families(comparisons)
    blocks += _refusals(left_out)
    return "\n\n".join(blocks) + "\n"


def _promise(comparisons: Sequence[Comparison]) -> list[str]:
    said = promise()
    promised = [one for one in comparisons if one.promised]
    rows = [
        (
            TITLES[counter],
            _share(said.at_most[counter]),
            _kept(errors(found), said.at_most[counter]),
            *_errors(errors(found)),
        )
        for counter, found in _ordered(grouped(promised, _counter_of))
    ]
    return [
        "## What is promised",
        f"A median error is promised for {len(said.included)} rows, which were fixed before any "
        f"was predicted. {said.rule}",
        *_hindsight(promised),
        _table(("", "Promised", "Kept", *ERROR_COLUMNS), rows),
    ]


def _kept(found: Errors, promised: float) -> str:
    if found.median is None or found.refused:
        return NOTHING
    return "yes" if found.median <= promised else "no"


def _hindsight(promised: Sequence[Comparison]) -> Iterator[str]:
    """That some predictions knew the figures they are held against."""
    dated = grouped((one for one in promised if one.published.code), lambda one: one.published.code)
    for code, found in dated.items():
        yield (
            f"{len(found)} of these rows are predicted with what libraries kept in {code} and do "
            "not keep today. That was read in their source with the figures at hand: how near "
            "these predictions come says how much is explained, and is no blind test. All other "
            "rows are predicted with the libraries of today."
        )


def _deltas(found: Sequence[Delta]) -> list[str]:
    blocks = [
        "## What one knob changes",
        "Two rows of one source that differ in one knob. The slope is the change per token, "
        "sequence, rank or GPU, in MiB or milliseconds.",
    ]
    columns = (
        "Rows",
        "Source",
        "Knob",
        "From",
        "To",
        "Published",
        "Predicted",
        "Miss",
        "Slope",
        "Predicted",
    )
    for counter, group in _ordered(grouped(found, lambda one: one.reading.counter)):
        blocks += [f"### {TITLES[counter]}", _table(columns, [_delta(one) for one in group])]
    return blocks


def _delta(one: Delta) -> tuple[str, ...]:
    reading, predicted = one.reading, one.predicted
    return (
        f"{one.first.published.row.id} → {one.second.published.row.id}",
        one.first.published.experiment + MOMENTS[reading.moment],
        one.knob,
        _setting(one.before),
        _setting(one.after),
        _change(one.published, reading),
        _change(predicted, reading),
        NOTHING if predicted is None else _change(predicted - one.published, reading),
        _slope(one, one.published),
        NOTHING if predicted is None else _slope(one, predicted),
    )


def _medians(comparisons: Sequence[Comparison]) -> str:
    rows = [
        (family, TITLES[counter], *_errors(errors(group)))
        for family, found in grouped(comparisons, lambda one: one.published.family).items()
        for counter, group in _ordered(grouped(found, _counter_of))
    ]
    return _table(("Family", "Counter", *ERROR_COLUMNS), rows)


def _errors(found: Errors) -> tuple[str, ...]:
    return (
        str(found.count),
        str(found.refused),
        _share(found.median),
        _share(found.largest),
        f"{found.inside} of {found.intervals}" if found.intervals else NOTHING,
    )


def _counter(counter: Counter, comparisons: Sequence[Comparison]) -> list[str]:
    found = [one for one in comparisons if one.published.reading.counter == counter]
    blocks = [f"## {TITLES[counter]}"] if found else []
    for confidence in ("A", "B"):
        rows = [_comparison(one) for one in found if one.published.row.confidence == confidence]
        if rows:
            columns = ("Row", "Source", "Trial", "Published", "Predicted", "Interval", "Ratio")
            blocks += [f"### Confidence {confidence}", _table(columns, rows)]
    return blocks


def _comparison(one: Comparison) -> tuple[str, ...]:
    published, prediction = one.published, one.prediction
    reading = published.reading
    interval = None if prediction is None else prediction.interval
    return (
        published.row.id + ("\\*" if one.promised else ""),
        published.experiment + MOMENTS[reading.moment] + ("" if reading.stated else " (unnamed)"),
        _trial(one),
        _value(published.value, reading),
        one.refusal or NOTHING if prediction is None else _value(prediction.value, reading),
        NOTHING if interval is None else " to ".join(_value(end, reading) for end in interval),
        NOTHING if one.ratio is None else f"{one.ratio:.3f}",
    )


def _trial(one: Comparison) -> str:
    trial = one.published.trial
    accumulated = f" x {trial.budget.accumulation}" if trial.budget.accumulation > 1 else ""
    return (
        f"{trial.model.config}, {trial.label}, "
        f"{trial.budget.batch} x {trial.budget.sequence:,}{accumulated}"
    )


def _families(comparisons: Sequence[Comparison]) -> list[str]:
    blocks = [
        "## Why sources differ",
        "Rows marked \\* are promised. Where a counter is unnamed, the source does not say which "
        "it read, and reserved memory is predicted.",
    ]
    for family, found in grouped(comparisons, lambda one: one.published.family).items():
        blocks.append(f"### {family}")
        for experiment, group in grouped(found, lambda one: one.published.experiment).items():
            blocks.append(f"**{experiment}.** {group[0].published.cause}")
            blocks.append("\n".join(f"- {line}" for line in _differences(group)))
    return blocks


def _differences(group: Sequence[Comparison]) -> Iterator[str]:
    """Every sentence once, with its rows where it is not of all."""
    found: dict[str, list[str]] = {}
    for one in group:
        for sentence in one.published.differences:
            found.setdefault(sentence, []).append(one.published.row.id)
    for sentence, names in found.items():
        yield sentence if len(names) == len(group) else f"{sentence} ({', '.join(names)})"


def _refusals(left_out: Sequence[Unexpressed]) -> list[str]:
    rows = [
        (reason, ", ".join(one.row.id for one in group))
        for reason, group in grouped(left_out, lambda one: one.reason).items()
    ]
    return ["## Rows that are no trials", _table(("Why", "Rows"), rows)]


def _ordered(groups: Mapping[Counter, tuple[T, ...]]) -> Iterator[tuple[Counter, tuple[T, ...]]]:
    yield from ((counter, groups[counter]) for counter in COUNTERS if counter in groups)


def _counter_of(one: Comparison) -> Counter:
    return one.published.reading.counter


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _value(value: float, reading: Reading) -> str:
    return f"{value:.3f} s" if reading.unit == "s" else f"{value / GIB:.2f} GiB"


def _change(value: float | None, reading: Reading) -> str:
    if value is None:
        return NOTHING
    return f"{value:+.3f} s" if reading.unit == "s" else f"{value / GIB:+.3f} GiB"


def _slope(one: Delta, change: float) -> str:
    slope = one.per_unit(change)
    if slope is None:
        return NOTHING
    return f"{slope * (1e3 if one.reading.unit == 's' else 1 / 2**20):.4g}"


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}"


def _setting(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(part).removesuffix("_proj") for part in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
