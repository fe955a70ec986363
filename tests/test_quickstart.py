"""`make quickstart` on this checkout: one command, and the curves that it promises."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest

from tradebench import store
from tradebench.result import Result

ROOT = Path(__file__).parents[1]
FULL = "fp32"
LORA = "fp32 + lora r16"
# Of 2,048 facts 500 are asked: differences below twice the standard error may be luck.
LUCK = 0.02


@pytest.fixture(scope="module")
def results() -> tuple[Result, ...]:
    """What the quickstart measured; points that are finished already are not run again."""
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("make would build an environment of its own beside this one")
    done = subprocess.run(["make", "quickstart"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    newest = store.latest(ROOT / "results", "quickstart")
    assert newest is not None
    assert str(newest.relative_to(ROOT) / "report" / "index.html") in done.stdout
    # Beside every measured Result stands a predicted one, which answers no task.
    return tuple(result for result in store.load(newest).results if result.kind == "measured")


def curve(results: tuple[Result, ...], name: str, *labels: str) -> list[float]:
    """The mean over repeats at each point."""
    return [
        fmean(result.measurements[name].value for result in results if result.label == label)
        for label in labels
    ]


@pytest.mark.slow
def test_every_point_is_measured(results: tuple[Result, ...]) -> None:
    assert {result.status for result in results} == {"ok"}
    assert len({result.trial for result in results}) >= 16


@pytest.mark.slow
def test_memory_falls_with_the_checkpoint_ratio(results: tuple[Result, ...]) -> None:
    labels = [LORA, f"{LORA} + checkpointing 0.5", f"{LORA} + checkpointing 1"]
    found = curve(results, "peak_tensor_bytes", *labels)

    assert found == sorted(set(found), reverse=True)


@pytest.mark.slow
def test_memory_falls_with_bits(results: tuple[Result, ...]) -> None:
    labels = [LORA, "fp32 + int8 + lora r16", "fp32 + nf4 + lora r16"]
    found = curve(results, "peak_tensor_bytes", *labels)
    halved = curve(results, "peak_tensor_bytes", FULL, "bf16")

    assert found == sorted(set(found), reverse=True)
    assert halved[1] < halved[0]


@pytest.mark.slow
def test_old_facts_are_lost_with_sparsity(results: tuple[Result, ...]) -> None:
    labels = [LORA, *(f"fp32 + magnitude {share}% + lora r16" for share in (30, 50, 70))]
    found = curve(results, "accuracy.facts", *labels)

    assert all(later <= earlier + LUCK for earlier, later in pairwise(found))
    assert found[-1] < found[0] - LUCK


@pytest.mark.slow
def test_new_facts_are_learnt_with_rank(results: tuple[Result, ...]) -> None:
    labels = [f"fp32 + lora r{rank}" for rank in (1, 4, 16, 64)]
    found = curve(results, "accuracy.guilds", *labels)
    (full,) = curve(results, "accuracy.guilds", FULL)

    assert found == sorted(set(found))
    assert all(later > earlier + LUCK for earlier, later in pairwise(found))
    assert full > found[-2]


@pytest.mark.slow
def test_every_accuracy_has_its_interval(results: tuple[Result, ...]) -> None:
    accuracies = [
        measurement
        for result in results
        for name, measurement in result.measurements.items()
        if name.startswith("accuracy")
    ]

    assert accuracies
    assert all(measurement.interval is not None for measurement in accuracies)
