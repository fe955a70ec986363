"""How long the parts take that run before and after trials: expansion of a grid, and fronts."""

import random
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from tradebench import pareto
from tradebench.suite import Suite

FLAGSHIP = Path(__file__).parents[2] / "suites" / "llama-3.3-70b.yaml"


def test_expanding_the_flagship_grid(benchmark: BenchmarkFixture) -> None:
    trials = benchmark(lambda: Suite.load(FLAGSHIP).trials())

    assert len(trials) > 400


def test_the_front_of_ten_thousand_points(benchmark: BenchmarkFixture) -> None:
    source = random.Random(0)
    points = [[source.random() for _ in range(3)] for _ in range(10_000)]

    assert benchmark(pareto.front, points)
