"""Fronts against brute force, with ties, infinities and the smallest cases."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench import pareto

# Few distinct values, so that ties and duplicates are common.
VALUES = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.inf, -math.inf]))
CLOUDS = st.integers(1, 4).flatmap(
    lambda size: st.lists(st.lists(VALUES, min_size=size, max_size=size), max_size=12)
)
CELLS = st.integers(1, 3).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(0, 4), min_size=size, max_size=size), min_size=1, max_size=7
    )
)


def beats(a: list[float], b: list[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def brute_front(points: list[list[float]]) -> list[int]:
    return [
        index
        for index, point in enumerate(points)
        if not any(beats(other, point) for other in points)
    ]


@given(CLOUDS)
def test_front_is_the_brute_force_front(points: list[list[float]]) -> None:
    expected = brute_front(points)

    assert expected == pareto.front(points)


@given(CLOUDS)
def test_front_does_not_depend_on_the_order(points: list[list[float]]) -> None:
    backwards = pareto.front(points[::-1])

    assert pareto.front(points) == sorted(len(points) - 1 - index for index in backwards)


@given(CLOUDS)
def test_ranks_peel_one_front_after_another(points: list[list[float]]) -> None:
    expected = [0] * len(points)
    left, layer = list(range(len(points))), 0
    while left:
        on_front = [left[index] for index in brute_front([points[index] for index in left])]
        for index in on_front:
            expected[index] = layer
        left, layer = [index for index in left if index not in on_front], layer + 1

    assert expected == pareto.ranks(points)


@given(CLOUDS)
def test_dominates_agrees_with_brute_force(points: list[list[float]]) -> None:
    for a, b in product(points, repeat=2):
        assert beats(a, b) == pareto.dominates(a, b)


@given(CELLS)
def test_hypervolume_counts_the_unit_cells_that_are_dominated(points: list[list[int]]) -> None:
    size = len(points[0])
    expected = sum(
        any(all(x <= y for x, y in zip(point, cell, strict=True)) for point in points)
        for cell in product(range(3), repeat=size)
    )

    assert expected == pareto.hypervolume(points, [3] * size)


def test_duplicates_all_stay_on_the_front() -> None:
    assert pareto.front([(1, 2), (2, 2), (1, 2), (2, 1)]) == [0, 2, 3]


def test_no_points_have_an_empty_front() -> None:
    assert pareto.front([]) == []
    assert pareto.ranks([]) == []
    assert pareto.probability([], []) == []
    assert pareto.hypervolume([], (1.0, 1.0)) == 0.0


def test_one_point_is_the_front() -> None:
    assert pareto.front([(5.0, math.inf)]) == [0]
    assert pareto.ranks([(5.0, math.inf)]) == [0]


def test_points_without_objectives_tie() -> None:
    assert pareto.front([(), ()]) == [0, 1]


@pytest.mark.parametrize("call", [pareto.front, pareto.ranks])
def test_nan_is_refused(call: object) -> None:
    with pytest.raises(ValueError, match="leave incomplete points out"):
        call([(1.0, 2.0), (math.nan, 0.0)])  # type: ignore[operator]


def test_points_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="different numbers"):
        pareto.front([(1.0, 2.0), (1.0,)])


def test_a_point_at_infinity_adds_infinite_volume() -> None:
    assert math.inf == pareto.hypervolume([(-math.inf, 0.0)], (1.0, 1.0))
    assert pareto.hypervolume([(math.inf, 0.0)], (1.0, 1.0)) == 0.0


def test_hypervolume_needs_an_objective() -> None:
    with pytest.raises(ValueError, match="at least one objective"):
        pareto.hypervolume([], ())


def test_hypervolume_of_four_objectives() -> None:
    assert pareto.hypervolume([(1, 1, 1, 1), (0, 1, 1, 1)], (3, 3, 3, 3)) == 2.0**4 + 1.0 * 2.0**3


def test_without_noise_the_probability_is_the_front() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (3.0, 3.0), (1.0, 3.0)]

    assert pareto.probability(points, [(0.0, 0.0)] * 4, draws=50) == [1.0, 1.0, 0.0, 1.0]


def test_two_equal_noisy_points_share_the_front() -> None:
    first, second = pareto.probability([(1.0,), (1.0,)], [(0.1,), (0.1,)], draws=4000, seed=1)

    assert first + second == pytest.approx(1.0)
    assert first == pytest.approx(0.5, abs=0.05)


def test_probability_matches_the_normal_distribution() -> None:
    _, behind = pareto.probability([(0.0,), (1.0,)], [(1.0,), (1.0,)], draws=20_000)
    expected = 0.5 * math.erfc(1.0 / math.sqrt(2.0) / math.sqrt(2.0))

    assert behind == pytest.approx(expected, abs=0.015)


def test_probability_is_the_same_for_the_same_seed() -> None:
    means, sds = [(1.0, 2.0), (1.1, 1.9)], [(0.1, 0.1), (0.1, 0.1)]

    assert pareto.probability(means, sds, seed=3) == pareto.probability(means, sds, seed=3)
    assert pareto.probability(means, sds, seed=3) != pareto.probability(means, sds, seed=4)


@pytest.mark.parametrize(
    ("sds", "draws", "sentence"),
    [
        ([(0.1,)], 10, "do not go with"),
        ([(-0.1, 0.1)], 10, "negative or infinite"),
        ([(math.inf, 0.1)], 10, "negative or infinite"),
        ([(0.1, 0.1)], 0, "at least one draw"),
    ],
)
def test_probability_refuses_what_it_cannot_draw(
    sds: list[tuple[float, ...]], draws: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        pareto.probability([(1.0, 1.0)], sds, draws=draws)


@given(CLOUDS, st.integers(0, 2))
def test_points_are_alike_where_no_objective_tells_them_apart(
    points: list[list[float]], reach: int
) -> None:
    def told_apart(x: float, y: float) -> bool:
        return x != y and not abs(x - y) <= reach * math.hypot(1.0, 1.0)

    expected = [
        [
            at
            for at, other in enumerate(points)
            if at != index and not any(told_apart(x, y) for x, y in zip(point, other, strict=True))
        ]
        for index, point in enumerate(points)
    ]

    assert expected == pareto.alike(points, [[1.0] * len(point) for point in points], reach)


def test_points_without_noise_are_alike_only_where_they_are_equal() -> None:
    points = [(1.0, 2.0), (1.0, 2.0), (1.0, 2.000001)]

    assert pareto.alike(points, [(0.0, 0.0)] * 3, 1.96) == [[1], [0], []]


@given(CELLS)
def test_volumes_without_noise_are_the_hypervolume(points: list[list[int]]) -> None:
    corner = [3] * len(points[0])
    still = [[0.0] * len(points[0])] * len(points)

    assert (
        pareto.volumes(points, still, corner, draws=2) == [pareto.hypervolume(points, corner)] * 2
    )


def test_volumes_vary_as_a_single_point_does() -> None:
    """In one dimension a point covers the way to the corner: its noise is the volume's."""
    found = pareto.volumes([(1.0,)], [(0.1,)], (3.0,), draws=4000)

    assert np.mean(found) == pytest.approx(2.0, abs=0.01)
    assert np.std(found) == pytest.approx(0.1, abs=0.01)


@settings(max_examples=30)
@given(CELLS)
def test_leaving_out_hopeless_points_changes_no_probability(points: list[list[int]]) -> None:
    sds = [[0.05] * len(points[0])] * len(points)
    random = np.random.default_rng(0)
    hits = np.zeros(len(points))
    for _ in range(300):
        drawn = np.array(points) + 0.05 * random.standard_normal((len(points), len(points[0])))
        hits[brute_front(drawn.tolist())] += 1

    assert pareto.probability(points, sds, draws=300, seed=5) == pytest.approx(hits / 300, abs=0.16)


# Noise of three kinds: none, so little that only near values change places, and more than a span.
SDS = st.sampled_from([0.0, 0.05, 1.0])
NOISY = st.integers(1, 4).flatmap(
    lambda size: st.lists(
        st.tuples(
            st.lists(VALUES, min_size=size, max_size=size),
            st.lists(SDS, min_size=size, max_size=size),
        ),
        max_size=14,
    )
)


def slow_probability(
    means: list[list[float]], sds: list[list[float]], draws: int, seed: int
) -> list[float]:
    """The plain way: of what may be on the front at all, the front of every draw by itself."""
    best, worst = (
        [
            [mean + sign * pareto.REACH * sd for mean, sd in zip(*row, strict=True)]
            for row in zip(means, sds, strict=True)
        ]
        for sign in (-1, 1)
    )
    possible = [
        index
        for index in range(len(means))
        if not any(beats(other, best[index]) for other in worst)
    ]
    hits = [0] * len(means)
    random = np.random.default_rng(seed)
    for _ in range(draws):
        noise = random.standard_normal((len(possible), len(means[0]) if means else 0))
        noise = noise.clip(-pareto.REACH, pareto.REACH)
        drawn = [
            [mean + sd * z for mean, sd, z in zip(means[index], sds[index], row, strict=True)]
            for index, row in zip(possible, noise.tolist(), strict=True)
        ]
        for index in brute_front(drawn):
            hits[possible[index]] += 1
    return [count / draws for count in hits]


@settings(max_examples=60, deadline=None)
@given(NOISY, st.sampled_from([0.0, 0.2, 1e9]), st.sampled_from([1, 40, 10**7]))
def test_probability_is_that_of_fronts_drawn_one_by_one(
    points: list[tuple[list[float], list[float]]], pairs: float, drawn: int
) -> None:
    """To the digit, whichever way of comparing is taken and however many draws go at once."""
    means, sds = [mean for mean, _ in points], [sd for _, sd in points]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pareto, "PAIRS", pairs)
        patch.setattr(pareto, "DRAWN", drawn)
        patch.setattr(pareto, "FIRST", 2)

        assert slow_probability(means, sds, 20, 3) == pareto.probability(means, sds, 20, 3)


@given(NOISY)
def test_without_noise_a_probability_is_exactly_zero_or_one(
    points: list[tuple[list[float], list[float]]],
) -> None:
    means = [mean for mean, _ in points]
    still = [[0.0] * len(mean) for mean in means]
    on_front = brute_front(means)

    assert [float(index in on_front) for index in range(len(means))] == pareto.probability(
        means, still, draws=1
    )


def test_what_nothing_can_beat_or_must_be_beaten_is_certain() -> None:
    """A point without noise whose rivals cannot reach it, and one that is beaten in every draw."""
    found = pareto.probability(
        [(1.0, 9.0), (9.0, 1.0), (9.0, 9.0), (9.0, 1.0)],
        [(0.0, 0.0), (0.01, 0.01), (0.0, 0.0), (0.01, 0.01)],
    )

    assert (found[0], found[2]) == (1.0, 0.0)
    # One of two is beaten where both its objectives come out worse: in a quarter of the draws.
    assert found[1::2] == pytest.approx([0.75, 0.75], abs=0.05)


def test_numbers_as_large_as_there_are_do_not_break_the_odds() -> None:
    huge = 1.7e308
    means = [(-huge, 1.0), (huge, 0.0), (huge, 1.0), (-huge, 1.0)]

    assert slow_probability(
        [list(mean) for mean in means], [[0.0, 0.1]] * 4, 50, 0
    ) == pareto.probability(means, [(0.0, 0.1)] * 4, 50, 0)
