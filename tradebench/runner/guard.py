"""The guard: a trial's parent, which lets nothing of the trial outlive it or its supervisor.

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
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tradebench.runner import process


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a guard is asked to run, and the pipes that tie it to the supervisor.

    `directory` is the job's; `variables` are set for this trial alone. The guard writes JSON lines
    to `report`: first the trial's `pid`, last its wait `status`. The trial writes its heartbeats to
    `beats`.
    """

    directory: str
    log: str
    isolation: str
    variables: Mapping[str, str]
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
        trial = os.fork()
        if trial == 0:
            _become(launch, guard)
        os.close(launch.beats)
        _tell(launch.report, pid=trial)
        select.select([launch.lifeline, os.pidfd_open(trial)], [], [])
        ended = process.end_descendants()
        _tell(launch.report, status=ended[trial])
        os._exit(0)
    except OSError:
        traceback.print_exc()
    finally:
        # Never back up the stack: it is a copy of the template's.
        os._exit(1)


def _become(launch: Launch, guard: int) -> NoReturn:
    try:
        os.close(launch.lifeline)
        os.close(launch.report)
        process.become_trial(guard, Path(launch.log))
        os.environ.update(launch.variables)
        if launch.isolation == "exec":
            os.set_inheritable(launch.beats, True)
            command = [sys.executable, "-P", "-m", "tradebench.runner.worker"]
            os.execv(sys.executable, [*command, launch.directory, str(launch.beats)])
        # In a fork the template has imported the worker already; a guard itself stays light.
        from tradebench.runner import worker

        worker.main(Path(launch.directory), launch.beats, "fork")
    except OSError:
        traceback.print_exc()
    finally:
        os._exit(1)


def _tell(report: int, **message: int) -> None:
    # A broken pipe means that the supervisor is gone, and the lifeline says so too.
    with contextlib.suppress(BrokenPipeError):
        os.write(report, json.dumps(message).encode() + b"\n")
