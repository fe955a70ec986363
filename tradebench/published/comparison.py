"""Predictions held against published figures: every ratio, and medians of errors.

Predictions come from outside, by row id, as values or as a sentence that says why there is none:
nothing here predicts. Units are those of the row's value: bytes, or seconds of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from tradebench.published.expression import Expressed, expressed
from tradebench.published.promise import promise

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is predicted for a row, and the interval that the prediction claims, if any."""

    value: float
    interval: tuple[float, float] | None = None


Predictions = Mapping[str, Prediction | str]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One published figure and what is predicted for it; `refusal` says why nothing is."""

    published: Expressed
    prediction: Prediction | None
    refusal: str | None
    promised: bool

    @property
    def ratio(self) -> float | None:
        """Predicted over published."""
        return None if self.prediction is None else self.prediction.value / self.published.value

    @property
    def error(self) -> float | None:
        """How far the prediction lies from the figure, as a share of the figure, never negative."""
        return None if self.ratio is None else abs(self.ratio - 1)

    @property
    def inside(self) -> bool | None:
        """Whether the figure lies in the prediction's interval."""
        if self.prediction is None or self.prediction.interval is None:
            return None
        low, high = self.prediction.interval
        return low <= self.published.value <= high


@dataclass(frozen=True, kw_only=True)
class Errors:
    """The errors of some comparisons.

    `count` of them have a prediction, `refused` have none; `intervals` have an interval, of which
    `inside` hold the published figure. `median` and `largest` are shares of the published figure.
    """

    count: int
    refused: int
    median: float | None
    largest: float | None
    intervals: int
    inside: int


def compare(
    predictions: Predictions, found: Iterable[Expressed] | None = None
) -> tuple[Comparison, ...]:
    """Every expressed row beside its prediction, in order; `found` stands for all of them.

    Raises:
        ValueError: there is a prediction for something that is no expressed row.
    """
    every = tuple(expressed() if found is None else found)
    unknown = set(predictions) - {one.row.id for one in every}
    if unknown:
        raise ValueError(f"these are no expressed rows: {', '.join(sorted(unknown))}")
    return tuple(_compare(one, predictions.get(one.row.id)) for one in every)


def _compare(found: Expressed, prediction: Prediction | str | None) -> Comparison:
    predicted = prediction if isinstance(prediction, Prediction) else None
    refusal = prediction if isinstance(prediction, str) else None
    return Comparison(
        published=found,
        prediction=predicted,
        refusal=refusal or (None if predicted else "It was not predicted."),
        promised=found.row.id in promise().included,
    )


def errors(comparisons: Iterable[Comparison]) -> Errors:
    """The errors of all of these together."""
    every = list(comparisons)
    values = [one.error for one in every if one.error is not None]
    inside = [one.inside for one in every if one.inside is not None]
    return Errors(
        count=len(values),
        refused=len(every) - len(values),
        median=median(values) if values else None,
        largest=max(values, default=None),
        intervals=len(inside),
        inside=sum(inside),
    )


def grouped(found: Iterable[T], key: Callable[[T], Key]) -> dict[Key, tuple[T, ...]]:
    """Whatever was found, by key; keys and values in the order they come."""
    groups: dict[Key, tuple[T, ...]] = {}
    for one in found:
        groups[key(one)] = (*groups.get(key(one), ()), one)
    return groups
