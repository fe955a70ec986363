"""The odds of being on the front, against fronts drawn one after the other.

Both count the same draws in the same test: only their ratio means anything on another machine.
"""

import sys
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from tradebench import pareto

Cloud = tuple[NDArray[np.float64], NDArray[np.float64]]

POINTS = 1000
DRAWS = 2000
PLAIN_DRAWS = 50  # the plain way takes long, and the time of a draw does not depend on their number


def suite() -> Cloud:
    """Memory, step time and errors as a sweep has them: less memory costs time and answers."""
    random = np.random.default_rng(0)
    memory = 10 * 2 ** (3 * random.random(POINTS))
    step = 1 + 20 * random.random(POINTS) ** 2 / memory + 0.2 * random.random(POINTS)
    error = 0.3 + 0.2 / np.sqrt(memory) + 0.05 * random.random(POINTS)
    noise = np.column_stack([0.002 * memory, 0.02 * step, np.full(POINTS, 0.01)])
    return np.column_stack([memory, step, error]), noise


def still() -> Cloud:
    """The same as a plan has it: without noise."""
    points, noise = suite()
    return points, np.zeros_like(noise)


def shaped() -> Cloud:
    """Every point on a curved front, with noise that makes neighbours change places."""
    points = np.abs(np.random.default_rng(1).standard_normal((POINTS, 3)))
    points = 1 - points / np.linalg.norm(points, axis=1, keepdims=True)
    return points, np.full_like(points, 0.01)


def vague() -> Cloud:
    """Four objectives of which the noise leaves little."""
    points = np.random.default_rng(2).random((POINTS, 4))
    return points, np.full_like(points, 0.5)


def one_by_one(cloud: Cloud, draws: int) -> list[float]:
    """A front for every draw, by the same numbers where no point is hopeless."""
    means, sds = cloud
    random = np.random.default_rng(0)
    hits = np.zeros(len(means))
    for _ in range(draws):
        noise = random.standard_normal(means.shape).clip(-pareto.REACH, pareto.REACH)
        hits[pareto.front((means + sds * noise).tolist())] += 1
    return [float(share) for share in hits / draws]


@pytest.mark.parametrize("cloud", [suite, still, shaped, vague])
def test_a_thousand_points(
    cloud: object, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    made: Cloud = cloud()  # type: ignore[operator]
    means, sds = (part.tolist() for part in made)

    start = time.process_time()
    plain = one_by_one(made, PLAIN_DRAWS)
    slow = (time.process_time() - start) * DRAWS / PLAIN_DRAWS
    start = time.process_time()
    found = benchmark.pedantic(pareto.probability, (means, sds, DRAWS), rounds=1)  # type: ignore[no-untyped-call]
    fast = time.process_time() - start

    assert found == pytest.approx(plain, abs=5 * 0.5 / PLAIN_DRAWS**0.5)
    name = cloud.__name__  # type: ignore[attr-defined]
    benchmark.extra_info.update(plain_cpu_seconds=slow, cpu_seconds=fast, ratio=slow / fast)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{POINTS} points, {DRAWS} draws, {name}: one by one {slow:.2f} s, "
            f"at once {fast:.2f} s, {slow / fast:.0f} times as fast\n"
        )
