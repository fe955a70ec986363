"""What a run would cost: hours, GPU-hours and money, with the interval of the step's time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tradebench.result import Result
from tradebench.trial import Trial

HOUR = 3600.0
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Range:
    """A value with its interval."""

    low: float
    value: float
    high: float

    def times(self, factor: float) -> Range:
        """All three times a factor."""
        return Range(self.low * factor, self.value * factor, self.high * factor)


@dataclass(frozen=True)
class Price:
    """Hours of one job, hours over all its GPUs, and money where a price is known."""

    hours: Range
    gpu_hours: Range
    money: Range | None


def parse_count(text: str) -> int:
    """A number of tokens from `50M`, `1.5B`, `1e8` or `20000`.

    Raises:
        ValueError: a sentence that says what a count looks like.
    """
    # An exponent or a letter, and not both.
    number = r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]{1,2}(?! ?[kmbt]))?) ?([kmbt]?)"
    match = re.fullmatch(number, text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"{text!r} is not a number of tokens; write 50M, 1.5B or 20000")
    return round(float(match[1]) * COUNTS[match[2]])


def step(result: Result) -> Range | None:
    """A step's predicted seconds."""
    found = result.measurements.get("step_seconds")
    if found is None:
        return None
    low, high = found.interval or (found.value, found.value)
    return Range(low, float(found.value), high)


def of_tokens(result: Result, ranks: int, tokens: int, price: float | None) -> Price | None:
    """What training on so many tokens costs with a point; None where its time is not known."""
    seconds, rate = step(result), result.value("tokens_per_second")
    if seconds is None or not rate:
        return None
    # tokens_per_second belongs to the value; the interval is that of the step.
    hours = seconds.times(tokens / rate / seconds.value / HOUR)
    return _price(hours, ranks, price)


def of_suite(
    results: Iterable[Result], price: float | None, repeats: Mapping[str, int]
) -> Price | None:
    """What training every point of a suite that fits costs, without loading and evaluation.

    `repeats` says by trial how often it runs; once where it says nothing.
    """
    hours = gpu_hours = Range(0, 0, 0)
    for result in results:
        seconds = step(result)
        if seconds is None or (result.fit is not None and result.fit.verdict == "does not fit"):
            continue
        trial = Trial.from_payload(result.payload())
        taken = seconds.times(repeats.get(trial.id, 1) * trial.budget.steps / HOUR)
        hours = _sum(hours, taken)
        gpu_hours = _sum(gpu_hours, taken.times(trial.ranks))
    if not gpu_hours.value:
        return None
    return Price(hours, gpu_hours, None if price is None else gpu_hours.times(price))


def _price(hours: Range, ranks: int, price: float | None) -> Price:
    gpu_hours = hours.times(ranks)
    return Price(hours, gpu_hours, None if price is None else gpu_hours.times(price))


def _sum(one: Range, other: Range) -> Range:
    return Range(one.low + other.low, one.value + other.value, one.high + other.high)
