"""Stub programs for the runner's tests: each misbehaves in one way, named by its model."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tradebench.rank import Rank
from tradebench.result import DivergedError, Heartbeat, Listener, Measurement, Outcome
from tradebench.trial import Trial

GIB = 2**30


def play(
    trial: Trial, outcome: Outcome, *, repeat: int, directory: Path, heartbeat: Listener
) -> None:
    """Do what the trial's model is named after, in the train phase."""
    outcome.phase = "load"
    outcome.measurements["load_seconds"] = Measurement(value=0.5, unit="s")
    outcome.phase = "train"
    heartbeat(Heartbeat(phase="train", step=1, steps=3, bytes=1024))
    name, _, detail = trial.model.name.partition(":")
    # What stubs leave for tests lies in one place, wherever an engine puts a trial's files.
    shared = Path(os.environ["STUB_FOLDER"])
    with (shared / "played.txt").open("a") as played:
        played.write(f"{trial.model.name} {repeat}\n")
    with (shared / "players.txt").open("a") as players:
        players.write(f"{os.getpid()}\n")
    PROGRAMS[name](shared, detail)
    size = 1000 + Rank.read().number
    outcome.measurements["peak_tensor_bytes"] = Measurement(value=size, unit="B")
    outcome.measurements["train_loss"] = Measurement(value=1.0 + repeat, unit="nats")


def segfault(directory: Path, detail: str) -> None:
    ctypes.string_at(0)


def killed(directory: Path, detail: str) -> None:
    """Kill this process, but only the first `detail` times."""
    marks = directory / "kills.txt"
    with marks.open("a") as file:
        file.write("x")
    if not detail or marks.stat().st_size <= int(detail):
        os.kill(os.getpid(), signal.SIGKILL)


def taken(directory: Path, detail: str) -> None:
    """Be killed from outside after a while."""
    time.sleep(float(detail))
    os.kill(os.getpid(), signal.SIGKILL)


def nap(directory: Path, detail: str) -> None:
    time.sleep(float(detail))


def hold_the_gil(directory: Path, detail: str) -> None:
    ctypes.PyDLL(None).sleep(600)


def garbage(directory: Path, detail: str) -> None:
    os.write(1, os.urandom(800_000))
    sys.stdout.write('{"schema": "tradebench.result/1", "status": "ok"}\n')


def raises(directory: Path, detail: str) -> None:
    raise ValueError(f"no good: {Path.home()}/secret\nsecond line")


def diverges(directory: Path, detail: str) -> None:
    raise DivergedError("the loss is nan at step 2")


def cuda_oom(directory: Path, detail: str) -> None:
    raise type("OutOfMemoryError", (RuntimeError,), {})(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139 GiB"
    )


def hungry(directory: Path, detail: str) -> None:
    import numpy as np

    np.ones(GIB, dtype=np.uint8)


def shared_hungry(directory: Path, detail: str) -> None:
    """Take shared memory page by page: no rlimit counts it."""
    with mmap.mmap(-1, GIB // 2) as memory:
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1
        time.sleep(60)


def bad_alloc(directory: Path, detail: str) -> None:
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def kill_guard(directory: Path, detail: str) -> None:
    """Take away the process that watches, with a family that must not outlive it."""
    family(directory, "0")
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def kill_template(directory: Path, detail: str) -> None:
    guard = Path(f"/proc/{os.getppid()}/stat").read_text()
    os.kill(int(guard.rpartition(")")[2].split()[1]), signal.SIGKILL)


def family(directory: Path, detail: str) -> None:
    """Leave a plain child, one in its own session, and one that has forked itself free."""
    sleep = ["sleep", "613"]
    subprocess.Popen(sleep)
    subprocess.Popen(sleep, start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", sleep)
        os._exit(0)
    (directory / "family.txt").write_text("born")
    time.sleep(float(detail or 0))


def has_lock(directory: Path, detail: str) -> None:
    if not list(directory.glob("work/cache/0/extensions/*/lock")):
        raise FileNotFoundError("no lock")


def meets(directory: Path, detail: str) -> None:
    """Wait for the other of two."""
    (directory / f"meets.{detail}").touch()
    until = time.monotonic() + 20
    while len(list(directory.glob("meets.*"))) < 2:
        if time.monotonic() > until:
            raise TimeoutError("nobody came")
        time.sleep(0.01)


def kill_watchers(directory: Path, detail: str) -> None:
    """Take away the template, then the guard: nobody is left to end this process."""
    kill_template(directory, detail)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def on_second(directory: Path, detail: str) -> None:
    """Do what the second rank is asked to; the others wait for it, as long as their patience."""
    rank = Rank.read()
    if rank.number == 1:
        name, _, rest = detail.partition(":")
        return PROGRAMS[name](directory, rest)
    time.sleep(rank.patience)
    raise RuntimeError("gloo: Timed out waiting for recv operation to complete")


def of_rank(directory: Path, detail: str) -> None:
    """Say who it is, and how many there are."""
    rank = Rank.read()
    (directory / f"rank{rank.number}.txt").write_text(f"{rank.number} {rank.of} {rank.local}")


PROGRAMS: dict[str, Callable[[Path, str], None]] = {
    "ok": lambda *_: None,
    "segfault": segfault,
    "killed": killed,
    "taken": taken,
    "nap": nap,
    "gil": hold_the_gil,
    "garbage": garbage,
    "raises": raises,
    "diverges": diverges,
    "no_result": lambda *_: os._exit(0),
    "exits": lambda *_: sys.exit(3),
    "cuda_oom": cuda_oom,
    "hungry": hungry,
    "shared_hungry": shared_hungry,
    "bad_alloc": bad_alloc,
    "family": family,
    "kill_guard": kill_guard,
    "kill_template": kill_template,
    "kill_watchers": kill_watchers,
    "has_lock": has_lock,
    "meets": meets,
    "second": on_second,
    "rank": of_rank,
}
