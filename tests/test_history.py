"""Where a series changed its level: advice that does not cry wolf."""

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradebench.regression.history import SHORTEST, segments, series
from tradebench.regression.sample import Head, Point, Sample, Series


def flat(drawn: random.Random, count: int, level: float = 1.0) -> list[float]:
    return [drawn.gauss(level, 0.02 * level) for _ in range(count)]


def test_a_step_is_found_where_it_is() -> None:
    drawn = random.Random(0)

    assert segments([*flat(drawn, 20), *flat(drawn, 20, 1.1)])[1:-1] == [pytest.approx(20, abs=1)]


def test_a_step_without_noise_is_found_and_no_change_is_none() -> None:
    assert segments([100.0] * 30 + [103.0] * 3) == [0, 30, 33]
    assert segments([0.0] * 10) == [0, 10]
    assert segments([5e10] * 9 + [5e10 + 1] * 9) == [0, 9, 18]


def test_a_single_outlier_is_no_level() -> None:
    assert segments([5.0] * 30 + [9.0] + [5.0] * 10) == [0, 41]


def test_two_steps_are_two() -> None:
    assert segments([1.0] * 8 + [2.0] * 8 + [1.5] * 8) == [0, 8, 16, 24]


def test_flat_series_are_left_alone() -> None:
    drawn = random.Random(1)
    found = sum(len(segments(flat(drawn, 20))) > 2 for _ in range(100))

    assert found <= 5


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 20, 50, 100])
@pytest.mark.parametrize("outlier", [1.0, 1.5])
def test_few_flat_series_are_marked(count: int, outlier: float) -> None:
    drawn = random.Random(count)
    found = 0
    for _ in range(400):
        values = flat(drawn, count)
        values[drawn.randrange(count)] *= outlier
        found += len(segments(values)) > 2

    assert found / 400 <= 0.04


@given(st.lists(st.floats(-1e6, 1e6), max_size=40))
def test_levels_cover_the_series_and_last(values: list[float]) -> None:
    found = segments(values)

    assert (found[0], found[-1]) == (0, len(values))
    if len(found) > 2:
        assert all(stop - start >= SHORTEST for start, stop in pairwise(found))


def test_runs_on_other_hardware_are_another_series() -> None:
    def machine(cpu: str) -> dict[str, Any]:
        return {"hardware": {"cpu": cpu, "gpus": []}}

    def made(metric: str, unit: str, values: Sequence[float]) -> list[int]:
        point = Point(
            kind="measured",
            trial="t",
            label="l",
            suite="s",
            statuses=("ok",) * 4,
            environments=("a", "a", "b", "b"),
            repeats=((0,),) * 4,
            metrics={metric: Series(unit=unit, better="less", values=tuple(values))},
        )
        sample = Sample(
            runs=tuple(Head(run=str(n)) for n in range(4)),
            environments={"a": machine("A"), "b": machine("B")},
            points=(point,),
        )
        return [len(each.values) for each in series(sample, metric)]

    assert made("step_seconds", "s", [1, 2, 3, 4]) == [2, 2]
    assert made("peak_tensor_bytes", "B", [1, 2, 3, 4]) == [4]
