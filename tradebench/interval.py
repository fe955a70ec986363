"""An interval: a quantity as far as it is known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """The value that is expected, and between what it is meant to lie in 19 cases of 20.

    Sums add ends to ends. What makes one kernel slower than expected makes its fellows slower too,
    so that errors of a prediction do not cancel, and roots of sums of squares would be too narrow.
    """

    low: float
    value: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.low}, {self.value}, {self.high} are no interval")

    @classmethod
    def around(cls, value: float, error: float) -> Interval:
        """From value / (1 + error) to value x (1 + error)."""
        return cls(value / (1 + error), value, value * (1 + error))

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.value + other.value, self.high + other.high)

    def times(self, factor: float) -> Interval:
        """The same, so many times; the factor is known and not negative."""
        return Interval(self.low * factor, self.value * factor, self.high * factor)

    def per(self, rate: Interval) -> Interval:
        """This much work at a rate: the fastest rate gives the low end."""
        return Interval(self.low / rate.high, self.value / rate.value, self.high / rate.low)

    def or_more(self, other: Interval) -> Interval:
        """The larger of both."""
        return Interval(
            max(self.low, other.low), max(self.value, other.value), max(self.high, other.high)
        )

    def or_less(self, other: Interval) -> Interval:
        """The smaller of both."""
        return Interval(
            min(self.low, other.low), min(self.value, other.value), min(self.high, other.high)
        )


NOTHING = Interval(0.0, 0.0, 0.0)


def exactly(value: float) -> Interval:
    """A value that is known."""
    return Interval(value, value, value)
