"""Trials of several ranks: one that dies or hangs ends them all, and the Result says which."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tradebench.runner import guard

if TYPE_CHECKING:
    from faults.conftest import Sweep

# What the second rank does, status, how the reason starts, attempts.
ENDS = [
    ("segfault", "failed", "rank 1: crash while training: SIGSEGV", 2),
    ("killed", "killed", "rank 1: killed while training by SIGKILL from outside", 3),
    ("killed:1", "failed", "rank 0: while training: RuntimeError: gloo", 2),
    ("raises", "failed", "rank 1: while training: ValueError: no good: ~/secret", 1),
    ("diverges", "diverged", "rank 1: diverged while training: the loss is nan at step 2", 1),
    ("no_result", "failed", "rank 1: no_result: it exited with code 0 while training", 2),
    ("cuda_oom", "oom", "rank 1: out of memory while training: asked for 2.50 GiB (CUDA", 1),
    ("nap:60", "timeout", "hang while training: rank 1 kept the others waiting for 1 s", 1),
    ("gil", "timeout", "hang while training: rank 1 kept the others waiting for 1 s", 1),
    ("family:60", "timeout", "hang while training: rank 1 kept the others waiting for 1 s", 1),
]


def test_every_rank_has_a_process_and_the_result_is_of_all(any_sweep: Sweep) -> None:
    any_sweep.run("rank", ranks=2)

    (result,) = any_sweep.results().values()
    assert (result.status, result.reason) == ("ok", None)
    assert result.measurements["peak_tensor_bytes"].ranks == (1000, 1001)
    assert result.value("peak_tensor_bytes") == 1001
    assert result.measurements["train_loss"].ranks is None
    for rank in range(2):
        said = (any_sweep.directory / f"rank{rank}.txt").read_text()
        assert said == f"{rank} 2 {rank}"
        log = result.artifacts["log" if rank == 0 else f"log.rank{rank}"]
        assert (any_sweep.directory / log).exists()
    assert any_sweep.leftovers() == []


@pytest.mark.parametrize(
    ("stub", "status", "reason", "attempts"),
    [end if end[0] == "raises" else pytest.param(*end, marks=pytest.mark.slow) for end in ENDS],
)
def test_a_rank_that_goes_wrong_ends_the_trial_within_seconds_and_is_named(
    stub: str, status: str, reason: str, attempts: int, sweep: Sweep
) -> None:
    began = time.monotonic()
    sweep.run(f"second:{stub}", ranks=2, patience=1.0)

    (result,) = sweep.results().values()
    assert (result.status, result.attempt + 1) == (status, attempts)
    assert (result.reason or "").startswith(reason)
    assert result.phase == "train"
    assert time.monotonic() - began < 15 * attempts
    assert sweep.leftovers(0.5) == []


def test_a_silent_trial_of_several_ranks_is_ended_with_all_of_them(sweep: Sweep) -> None:
    sweep.run("second:nap:60", ranks=2, patience=60.0, silence={"train": 0.5})

    (result,) = sweep.results().values()
    assert result.reason == "hang while training: no sign of life for 0.5 s, after step 1 of 3"
    assert sweep.leftovers(0.5) == []


@pytest.mark.slow
def test_memory_of_any_rank_is_watched(sweep: Sweep) -> None:
    sweep.run("second:shared_hungry", ranks=2, patience=30.0, memory_cap=128 * 2**20)

    (result,) = sweep.results().values()
    assert (result.reason or "").startswith("oom_host while training: it held ")


@pytest.mark.slow
def test_a_trial_of_several_ranks_whose_guard_dies_is_lost(sweep: Sweep) -> None:
    sweep.run("second:kill_guard", ranks=2, patience=30.0)

    (result,) = sweep.results().values()
    assert (result.status, result.reason) == ("killed", "lost while training: its guard is gone")
    assert sweep.leftovers(0.5) == []


def test_ranks_do_not_outlive_their_supervisor(sweep: Sweep) -> None:
    supervisor = sweep.start("second:nap:60", ranks=2, patience=60.0)
    until = time.monotonic() + 20
    while len(sweep.played()) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)

    assert sweep.played() == ["second:nap:60 0"] * 2
    assert sweep.leftovers(guard.GRACE_SECONDS) == []
