"""Trials of several ranks: what they are told, and that one end of theirs is the end of all."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tradebench.runner import guard

if TYPE_CHECKING:
    from faults.conftest import Sweep


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


def test_a_rank_that_fails_is_named(sweep: Sweep) -> None:
    sweep.run("second:raises", ranks=2, patience=1.0)

    (result,) = sweep.results().values()
    assert (result.reason or "").startswith("rank 1: while training: ValueError: no good: ~/secret")


def test_a_rank_is_named_where_the_others_were_ended_before_they_noticed(
    sweep: Sweep,
) -> None:
    sweep.run("second:raises", ranks=2, patience=60.0)

    (result,) = sweep.results().values()
    assert (result.reason or "").startswith("rank 1: while training: ValueError: no good: ~/secret")
    assert sweep.leftovers() == []


@pytest.mark.slow
def test_a_rank_that_is_well_again_does_not_hide_another(sweep: Sweep) -> None:
    """In the second attempt it ends well, and the first one has waited for nothing."""
    sweep.run("second:killed:1", ranks=2, patience=1.0)

    (result,) = sweep.results().values()
    assert (result.status, result.attempt) == ("failed", 1)
    assert (result.reason or "").startswith("rank 0: while training: RuntimeError: gloo")


def test_a_silent_trial_of_several_ranks_is_ended_with_all_of_them(sweep: Sweep) -> None:
    sweep.run("second:nap:60", ranks=2, patience=60.0, silence={"train": 0.5})

    (result,) = sweep.results().values()
    assert result.reason == "hang while training: no sign of life for 0.5 s, after step 1 of 3"
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
