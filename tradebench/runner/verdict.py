"""Verdicts: from how an attempt ended to a status, a reason in a sentence, and what may be retried.

Statuses are few, because reports count them; causes are finer and decide about retries.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tradebench.errors import UserError
from tradebench.result import DivergedError, Heartbeat, Phase, Status
from tradebench.runner.engines import Death, Ended
from tradebench.runner.job import Job

Cause = Literal[
    "oom_device", "oom_host", "diverged", "error", "crash", "no_result", "killed", "lost", "hang",
    "timeout", "unplaced",
]  # fmt: skip

STATUSES: dict[Cause, Status] = {
    "oom_device": "oom",
    "oom_host": "oom",
    "diverged": "diverged",
    "error": "failed",
    "crash": "failed",
    "no_result": "failed",
    "killed": "killed",
    "lost": "killed",
    "hang": "timeout",
    "timeout": "timeout",
    "unplaced": "skipped",
}

# Further attempts in one sweep. What is missing here would end the same way again.
RETRIES: dict[Cause, int] = {"killed": 2, "crash": 1, "lost": 3, "no_result": 1}

_DOING: dict[Phase | None, str] = {
    None: "before loading",
    "load": "while loading",
    "compress": "while compressing",
    "evaluate_before": "while evaluating before training",
    "train": "while training",
    "evaluate_after": "while evaluating after training",
}

# torch's CPU allocator, cuBLAS and others report a lack of memory in a plain RuntimeError.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|cannot allocate memory|unable to allocate"
    r"|out of memory|_ALLOC_FAILED|std::bad_alloc",
    re.IGNORECASE,
)
_REQUEST = re.compile(r"allocate[d:]?\s+(?:about )?([\d.]+)\s*(bytes|[KMGT]i?B)", re.IGNORECASE)
_UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How an attempt ended. `requested_bytes` is the demand that an out-of-memory named."""

    cause: Cause
    reason: str
    requested_bytes: int | None = None

    @property
    def status(self) -> Status:
        """The status that a Result carries."""
        return STATUSES[self.cause]


def doing(phase: Phase | None) -> str:
    """A phase in words: `while training`."""
    return _DOING[phase]


def size(count: float) -> str:
    """A number of bytes in words: `1.50 GiB`."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"


def of_exception(error: BaseException, phase: Phase | None) -> Verdict:
    """What an exception in the program means."""
    if isinstance(error, DivergedError):
        reason = f"diverged {doing(phase)}: {error}" if str(error) else f"diverged {doing(phase)}"
        return Verdict(cause="diverged", reason=reason)
    for link in _chain(error):
        if _is_out_of_memory(link):
            return _out_of_memory(link, phase)
    if isinstance(error, UserError):
        return Verdict(cause="error", reason=_first_line(error))
    return Verdict(cause="error", reason=f"{doing(phase)}: {_name(error)}: {_first_line(error)}")


def of_signal(
    number: int, phase: Phase | None, *, no_memory: bool, said: str | None = None
) -> Verdict:
    """What the death by a signal means; `no_memory` says that memory is known to have run out.

    `said` is who killed it then, where that was not the kernel.
    """
    name = signal.Signals(number).name
    if no_memory:
        killer = "the kernel killed it" if number == signal.SIGKILL else f"it died of {name}"
        killer = said or killer
        return Verdict(cause="oom_host", reason=f"out of memory {doing(phase)}: {killer}")
    if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return Verdict(cause="killed", reason=f"killed {doing(phase)} by {name} from outside")
    return Verdict(cause="crash", reason=f"crash {doing(phase)}: {name}")


def of_exit(code: int, phase: Phase | None, last_words: str) -> Verdict:
    """What leaving without a result means; `last_words` is the last line of the log."""
    said = f"; its log ends with: {last_words}" if last_words else ""
    reason = f"no_result: it exited with code {code} {doing(phase)} and left no result{said}"
    return Verdict(cause="no_result", reason=reason)


def of_bytes(held: int, cap: int, phase: Phase | None) -> Verdict:
    """What growing beyond the memory cap means."""
    reason = f"oom_host {doing(phase)}: it held {size(held)} of host memory, the cap is {size(cap)}"
    return Verdict(cause="oom_host", reason=reason)


def of_end(ended: Ended, job: Job, phase: Phase | None, rank: int | None = None) -> Verdict:
    """What the end of an attempt that left no Result means, from how its process went.

    Of several ranks, `rank` is the one that made the others fail.
    """
    if ended.cause == "lost":
        said = ended.said or "its guard is gone"
        return Verdict(cause="lost", reason=f"lost {doing(phase)}: {said}")
    if ended.cause == "unplaced":
        return Verdict(cause="unplaced", reason=f"unplaced: {ended.said}")
    if ended.cause == "broken":
        return Verdict(cause="error", reason=f"{doing(phase)}: {ended.said}")
    if ended.cause == "memory_cap":
        return of_bytes(ended.held_bytes or 0, job.memory_cap or 0, phase)
    if rank is not None and rank in ended.left:
        reason = f"hang {doing(phase)}: rank {rank} kept the others waiting for {job.patience:g} s"
        return Verdict(cause="hang", reason=reason)
    death = next((death for death in ended.deaths if death.rank == rank), ended)
    found = _of_death(death, ended.cause == "memory_kill", last_line(job.log_of(rank or 0)), phase)
    return found if rank is None else replace(found, reason=f"rank {rank}: {found.reason}")


def _of_death(
    death: Death | Ended, no_memory: bool, last_words: str, phase: Phase | None
) -> Verdict:
    if death.signal is not None:
        # C++ code that cannot allocate ends in abort() after naming the exception.
        no_memory = no_memory or "std::bad_alloc" in last_words
        said = death.said if isinstance(death, Ended) else None
        return of_signal(death.signal, phase, no_memory=no_memory, said=said)
    return of_exit(death.exit or 0, phase, last_words)


def last_line(log: Path, longest: int = 300) -> str:
    """The last printable line of a log that may be huge, or hold anything but text."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip() and line.isprintable()]
        return said[-1][:longest] if said else ""
    return ""


def of_timeout(limit: float, phase: Phase | None) -> Verdict:
    """What running longer than the suite allows means."""
    return Verdict(cause="timeout", reason=f"timeout {doing(phase)}: over {limit:g} s in all")


def of_silence(limit: float, phase: Phase | None, last: Heartbeat | None) -> Verdict:
    """What a long silence means; `last` is the last sign of life."""
    after = f", after step {last.step} of {last.steps}" if last is not None and last.steps else ""
    reason = f"hang {doing(phase)}: no sign of life for {limit:g} s{after}"
    return Verdict(cause="hang", reason=reason)


def _is_out_of_memory(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return True
    if "AcceleratorError" in names:
        return "memory" in str(error)
    return isinstance(error, RuntimeError | OSError) and bool(_NO_MEMORY.search(str(error)))


def _out_of_memory(error: BaseException, phase: Phase | None) -> Verdict:
    found = _REQUEST.search(str(error))
    host = isinstance(error, MemoryError) or "CPU" in str(error)
    cause: Cause = "oom_host" if host else "oom_device"
    if found is None:
        said = f": {_first_line(error)}" if str(error) else ""
        return Verdict(cause=cause, reason=f"out of memory {doing(phase)}{said}")
    requested = round(float(found[1]) * _UNITS[found[2][0].lower()])
    reason = f"out of memory {doing(phase)}: asked for {size(requested)} ({_first_line(error)})"
    return Verdict(cause=cause, reason=reason, requested_bytes=requested)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that led to it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _name(error: BaseException) -> str:
    kind = type(error)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _first_line(error: BaseException, longest: int = 500) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:longest]
