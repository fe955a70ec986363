"""Killing workers and supervisors at random moments loses nothing and repeats nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tradebench import store
from tradebench.report import watch
from tradebench.runner import process

if TYPE_CHECKING:
    from faults.conftest import Sweep

NAMES = ("ok", "nap:0.02", "family:0.02", "garbage")


@pytest.mark.parametrize("seed", range(10))
def test_a_supervisor_killed_at_random_moments_loses_and_repeats_nothing(
    sweep: Sweep, seed: int
) -> None:
    chance = random.Random(seed)
    finished: set[str] = set()
    for _ in range(2):
        supervisor = sweep.start(*NAMES, repeats=2)
        time.sleep(chance.uniform(0.15, 0.9))
        if seed % 2:
            _wait_for_an_unstored_result(sweep)
        os.kill(supervisor, signal.SIGKILL)
        os.waitpid(supervisor, 0)

        assert sweep.leftovers(1.0) == []
        finished |= {path.read_text().strip() for path in _unstored(sweep)}
        finished |= {result.to_json() for result in store.load(sweep.directory).results}
    summary = sweep.run(*NAMES, repeats=2)

    assert Counter(result.status for result in summary.results) == {"ok": 8}
    assert finished <= {result.to_json() for result in store.load(sweep.directory).attempts}
    _assert_nothing_was_repeated(sweep)


@pytest.mark.parametrize("seed", range(4))
def test_workers_killed_at_random_moments_cost_one_attempt_each(sweep: Sweep, seed: int) -> None:
    chance = random.Random(seed)
    supervisor = sweep.start(*NAMES, repeats=2)
    for _ in range(3):
        time.sleep(chance.uniform(0.1, 0.3))
        template = process.children(supervisor)
        victims = [pid for pid in sweep.processes() if pid not in template]
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(chance.choice(victims), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(supervisor, 0)[1]) == 0
    summary = sweep.run(*NAMES, repeats=2)

    assert Counter(result.status for result in summary.results) == {"ok": 8}
    _assert_nothing_was_repeated(sweep)


def test_who_watches_sees_that_a_supervisor_was_killed_and_then_resumed(sweep: Sweep) -> None:
    supervisor = sweep.start("nap:0.5", repeats=4)
    until = time.monotonic() + 60.0
    while not store.owners(sweep.directory) and time.monotonic() < until:
        time.sleep(0.02)
    assert watch.loss(store.load(sweep.directory)) == ""
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)

    lost = watch.loss(store.load(sweep.directory))
    assert f"no longer alive: process {supervisor} of this machine" in lost
    sweep.run("nap:0.5", repeats=4)
    assert store.load(sweep.directory).header["ended"] is not None
    assert store.owners(sweep.directory) == []


def _unstored(sweep: Sweep) -> list[Path]:
    # A sweep that ends takes work/ away between glob's look and its listing, and
    # Python 3.11's glob forgives a missing folder only when it looks.
    with contextlib.suppress(FileNotFoundError):
        return list(sweep.directory.glob("work/*/result.json"))
    return []


def _wait_for_an_unstored_result(sweep: Sweep) -> None:
    """Wait for the few milliseconds between a worker's last act and the supervisor's next."""
    until = time.monotonic() + 0.3
    while not _unstored(sweep) and time.monotonic() < until:
        pass


def _assert_nothing_was_repeated(sweep: Sweep) -> None:
    """No attempt was started after its point had a final Result in the store."""
    run = store.load(sweep.directory)
    good = [result for result in run.attempts if result.status == "ok"]
    assert len(good) == len({(result.trial, result.repeat) for result in good}) == 8
    last = {(result.trial, result.repeat): result.attempt for result in good}
    started = [event for event in store.events(sweep.directory) if event["event"] == "started"]
    assert all(last[event["trial"], event["repeat"]] >= event["attempt"] for event in started)
    assert run.problems == ()
    assert not (sweep.directory / "work").exists()
