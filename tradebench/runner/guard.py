"""The guard: a trial's parent, which lets nothing of the trial outlive it or its supervisor.

A trial has a process for every rank. Where one dies before its time, the others are soon ended too:
they would wait for it.

The guard adopts every process that the trial starts, however it detaches itself, and holds the
reading end of a pipe, the lifeline, whose only writer is the supervisor. When the lifeline closes
(the supervisor cancelled, or died) or the trial ends, the guard kills all that is left and reports
how the trial ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tradebench.rank import Rank
from tradebench.runner import process

# What the others get to say how they noticed that one is gone.
GRACE_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a guard is asked to run, and the pipes that tie it to the supervisor.

    `directory` is the job's, and `logs` names a file for every rank; `variables` are set for this
    trial alone. The guard writes JSON lines to `report`: first the `pid` of every `rank`; last
    `deaths`, each rank and its wait status in the order in which they ended, and `ended`, the ranks
    that did not end by themselves. All ranks write their heartbeats to `beats`. Where there is a
    `launcher`, that command alone is run and watched, as rank 0: it starts the workers, here or on
    other machines.
    """

    directory: str
    logs: list[str]
    isolation: str
    variables: Mapping[str, str]
    patience: float
    launcher: list[str]
    lifeline: int
    report: int
    beats: int


def watch(launch: Launch) -> NoReturn:
    """Run the trial and see it ended; call this in a process of its own."""
    try:
        os.setsid()
        process.adopt_orphans()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        guard = os.getpid()
        ranks: dict[int, int] = {}
        for rank in range(1 if launch.launcher else len(launch.logs)):
            pid = os.fork()
            if pid == 0:
                _become(launch, guard, rank)
            ranks[pid] = rank
            _tell(launch.report, pid=pid, rank=rank)
        os.close(launch.beats)
        deaths = _wait(launch, ranks)
        dead = {rank for rank, _ in deaths}
        ended = process.end_descendants()
        last = [(rank, ended[pid]) for pid, rank in ranks.items() if rank not in dead]
        _tell(launch.report, deaths=[*deaths, *last], ended=[rank for rank, _ in last])
        os._exit(0)
    except OSError:
        traceback.print_exc()
    finally:
        # Never back up the stack: it is a copy of the template's.
        os._exit(1)


def _wait(launch: Launch, ranks: dict[int, int]) -> list[tuple[int, int]]:
    """Wait until all ranks have ended, one of them has before its time, or the lifeline closes.

    Returns:
        The ranks that have ended, in order, and their wait statuses.
    """
    living = {os.pidfd_open(pid): pid for pid in ranks}
    deaths: list[tuple[int, int]] = []
    until = None
    while living and (until is None or time.monotonic() < until):
        patience = None if until is None else max(0.0, until - time.monotonic())
        ready, _, _ = select.select([launch.lifeline, *living], [], [], patience)
        if launch.lifeline in ready:
            break
        found = []
        for pidfd in ready:
            pid = living.pop(pidfd)
            os.close(pidfd)
            found.append((ranks[pid], os.waitpid(pid, 0)[1]))
        # Of those that ended at once, one that was killed is the reason for the others.
        deaths += sorted(found, key=lambda death: not os.WIFSIGNALED(death[1]))
        if until is None and any(status for _, status in found):
            until = time.monotonic() + GRACE_SECONDS
    return deaths


def _become(launch: Launch, guard: int, rank: int) -> NoReturn:
    try:
        os.close(launch.lifeline)
        os.close(launch.report)
        process.become_trial(guard, Path(launch.logs[rank]))
        os.environ.update(launch.variables)
        worker_module = ["-m", "tradebench.runner.worker"]
        if launch.launcher:
            command = [*launch.launcher, *worker_module, launch.directory]
            os.execvp(command[0], command)
        if len(launch.logs) > 1:
            place = Rank(
                number=rank,
                of=len(launch.logs),
                local=rank,
                # A file in the job's folder: no port can be taken, and no other trial meets there.
                rendezvous=f"file://{launch.directory}/rendezvous",
                patience=launch.patience,
            )
            os.environ.update(place.variables())
        if launch.isolation == "exec":
            os.set_inheritable(launch.beats, True)
            command = [sys.executable, "-P", *worker_module, launch.directory, str(launch.beats)]
            os.execv(command[0], command)
        # In a fork the template has imported the worker already; a guard itself stays light.
        from tradebench.runner import worker

        worker.main(Path(launch.directory), launch.beats, "fork")
    except OSError:
        traceback.print_exc()
    finally:
        os._exit(1)


def _tell(report: int, **message: Any) -> None:
    # A broken pipe means that the supervisor is gone, and the lifeline says so too.
    with contextlib.suppress(BrokenPipeError):
        os.write(report, json.dumps(message).encode() + b"\n")
