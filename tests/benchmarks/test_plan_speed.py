"""How many points of Llama 3.3 70B are planned in a second, at first and from the cache.

A few families of a grid of a thousand points, drawn; TRADEBENCH_BENCHMARK=full plans all of it.
"""

import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tradebench.devices import find
from tradebench.plan.cache import Cache
from tradebench.plan.plan import Plan, cores, make
from tradebench.plan.pool import families_of
from tradebench.suite import Suite
from tradebench.target import Target
from tradebench.trial import Trial

SUITE = """\
# Which of a thousand ways of fine-tuning fit?
model: {name: llama-3.3-70b, config: llama-3.3-70b, weights: random}
budget: {steps: 20, warmup: 5, batch: 1, sequence: 2048, data: random}
design: product
grid:
  precision: bf16
  pruning: [off, {sparsity: 0.5}]
  quantization: [off, int8, nf4, {method: nf4, double: true}, fp4]
  adapters:
    method: lora
    rank: [4, 8, 16, 24, 32, 48, 64, 96, 128, 256]
    targets: [all-linear, [q_proj, k_proj, v_proj, o_proj]]
  checkpointing: [off, {ratio: [0.25, 0.5, 0.75, 1]}]
"""
POINTS = 1000
FAMILIES = 4  # drawn by default
H100 = find("h100-80gb")


def grid(folder: Path) -> Sequence[Trial]:
    """All points, or those of a few families: points that share records are planned together."""
    file = folder / "thousand.yaml"
    file.write_text(SUITE)
    trials = Suite.load(file).trials()
    assert len(trials) == POINTS
    assert not any(trial.conflicts() for trial in trials)
    if os.environ.get("TRADEBENCH_BENCHMARK") == "full":
        return trials
    drawn = random.Random(0).sample(families_of(trials), FAMILIES)
    return [trial for family in drawn for trial in family]


def planned(trials: Sequence[Trial]) -> Plan:
    return make("thousand", trials, Target(device=H100.id), H100, cache=Cache())


def test_planning_llama_70b(
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trials = grid(tmp_path)

    start = time.perf_counter()
    first = benchmark.pedantic(planned, (trials,), rounds=1)  # type: ignore[no-untyped-call]
    cold = time.perf_counter() - start
    start = time.perf_counter()
    again = planned(trials)
    warm = time.perf_counter() - start

    assert {result.status for result in first.results} == {"ok"}
    assert (first.known, again.known) == (0, len(trials))
    assert again.results == first.results
    count = len(trials)
    benchmark.extra_info.update(
        points=count,
        processes=cores(),
        points_per_second=count / cold,
        points_per_second_from_cache=count / warm,
    )
    with capsys.disabled():
        sys.stdout.write(
            f"\n{count} points of Llama 3.3 70B in {cores()} processes: {cold:.1f} s, "
            f"{count / cold:.2f} a second; from the cache {warm:.2f} s, {count / warm:.0f} a "
            "second\n"
        )
