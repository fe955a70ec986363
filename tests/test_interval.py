"""Intervals: ends that go with ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.interval import Interval, exactly

numbers = st.floats(min_value=0.01, max_value=1e6)
intervals = st.tuples(numbers, numbers, numbers).map(lambda ends: Interval(*sorted(ends)))
drawn = settings(derandomize=True, max_examples=60, deadline=None)


def ends(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.value, interval.high


@drawn
@given(intervals, intervals, st.floats(0, 1), st.floats(0, 1))
def test_whatever_lies_within_two_intervals_adds_and_divides_to_within_theirs(
    work: Interval, rate: Interval, a: float, b: float
) -> None:
    x = work.low + a * (work.high - work.low)
    y = rate.low + b * (rate.high - rate.low)
    together, divided = work + rate, work.per(rate)

    assert together.low <= x + y <= together.high * (1 + 1e-12)
    assert divided.low * (1 - 1e-12) <= x / y <= divided.high * (1 + 1e-12)
    assert work.or_less(rate).low <= min(x, y) <= work.or_less(rate).high * (1 + 1e-12)
    assert work.or_more(rate).low <= max(x, y) <= work.or_more(rate).high * (1 + 1e-12)


@drawn
@given(intervals)
def test_twice_is_the_sum_with_itself(interval: Interval) -> None:
    assert interval.times(2) == interval + interval
    assert interval.per(exactly(1.0)) == interval


def test_an_error_of_a_third_is_a_quarter_less_to_a_third_more() -> None:
    assert ends(Interval.around(12.0, 1 / 3)) == pytest.approx((9.0, 12.0, 16.0))


@pytest.mark.parametrize("wrong", [(2.0, 1.0, 3.0), (1.0, 3.0, 2.0), (float("nan"), 1.0, 2.0)])
def test_a_value_outside_of_its_ends_is_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="no interval"):
        Interval(*wrong)
