"""How many events of a program's memory are simulated in a second."""

import random
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tradebench.predict.allocator import AllocatorSettings, simulate

MIB = 1024**2
# Bytes in bfloat16 of what a layer of Llama 3.3 70B keeps and passes on, for 2048 tokens.
HIDDEN, KEYS, WIDE = 2048 * 8192 * 2, 2048 * 1024 * 2, 2048 * 28672 * 2
WEIGHTS = [8192 * 8192 * 2, 8192 * 1024 * 2, 8192 * 28672 * 2]
ADAPTERS = [16 * 8192 * 4, 16 * 1024 * 4, 16 * 28672 * 4]


def training(layers: int, steps: int) -> tuple[list[int], list[int]]:
    """Events and sizes as of LoRA: weights, then steps of forward, backward and optimizer."""
    source = random.Random(0)
    events: list[int] = []
    sizes: list[int] = []

    def request(size: int) -> int:
        sizes.append(size)
        events.append(len(sizes) - 1)
        return events[-1]

    def release(block: int) -> None:
        events.append(~block)

    for _ in range(9 * layers):
        request(source.choice(WEIGHTS))
    for step in range(steps):
        kept = []
        for _ in range(layers):
            before = request(HIDDEN)
            for _ in range(30):
                after = request(source.choice([HIDDEN, KEYS, WIDE, 2048 * 4]))
                if source.random() < 0.3:
                    kept.append(before)
                else:
                    release(before)
                before = after
                if source.random() < 0.3:  # work space of a kernel
                    release(request(32 * MIB))
            release(before)
        gradients = []
        for count, block in enumerate(reversed(kept)):
            first, second = request(sizes[block]), request(sizes[block])
            release(block)
            release(first)
            if count % 3 == 0:
                gradients.append(request(source.choice(ADAPTERS)))
            release(second)
        if step == 0:
            for gradient in gradients:
                request(sizes[gradient])
                request(sizes[gradient])
        for gradient in gradients:
            release(request(sizes[gradient]))
            release(gradient)
    return events, sizes


@pytest.mark.parametrize("expandable", [False, True], ids=["default", "expandable"])
def test_training_a_large_model(
    benchmark: BenchmarkFixture, expandable: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    events, sizes = training(layers=80, steps=10)
    settings = AllocatorSettings(expandable_segments=expandable)

    run = benchmark(simulate, events, sizes, settings=settings)

    assert run.failed is None
    if benchmark.stats is not None:  # as it is where benchmarks are switched off
        rate = len(events) / benchmark.stats.stats.median
        benchmark.extra_info.update(events=len(events), events_per_second=rate)
        with capsys.disabled():
            sys.stdout.write(f"\n{len(events)} events, {rate / 1e6:.2f} million a second\n")
