"""Engines: where jobs run. An engine neither judges nor retries; the supervisor does both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tradebench.result import Environment, Heartbeat
from tradebench.runner.job import Isolation, Job


@dataclass(frozen=True, kw_only=True)
class Started:
    """The attempt `key` has a process, `pid`, for this rank on the machine where it runs.

    `environment` is that machine's, where it is not the supervisor's own.
    """

    key: str
    pid: int
    rank: int = 0
    environment: Environment | None = None


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A sign of life from the attempt `key`."""

    key: str
    heartbeat: Heartbeat


@dataclass(frozen=True, kw_only=True)
class Death:
    """The process of a rank ended by `exit` code or by `signal`."""

    rank: int
    exit: int | None = None
    signal: int | None = None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The attempt `key` has no process left.

    It ended by `exit` code or by `signal`. `cause` is what the engine itself knows: it killed the
    attempt because it held `held_bytes`, a memory killer took it, it lost sight of it, found no
    machine for it, or found one that could not start it; `said` is what it says of that. Of several
    ranks that is what the first to end badly did; `deaths` has all that ended by themselves in that
    order, and `left` names those that were still there then and were ended.
    """

    key: str
    exit: int | None = None
    signal: int | None = None
    cause: Literal["memory_cap", "memory_kill", "lost", "unplaced", "broken"] | None = None
    held_bytes: int | None = None
    said: str | None = None
    deaths: tuple[Death, ...] = ()
    left: tuple[int, ...] = ()


Event = Started | Beat | Ended


class Engine(Protocol):
    """Runs jobs that lie in their directories; a job's Result comes back by file.

    Every submitted job brings exactly one `Ended`, whatever happens to it.
    """

    @property
    def queues(self) -> bool:
        """Whether a submitted job may wait for a machine: until it starts, no limit on it runs."""

    @property
    def jobs(self) -> int:
        """How many processes of trials share a machine's processor; times suffer from others'."""

    def has_room(self, ranks: int) -> bool:
        """Whether a job of so many processes may be submitted now."""

    @property
    def isolation(self) -> Isolation:
        """How the next job's process will be made."""

    def submit(self, job: Job) -> None:
        """Start a job, whose directory has been written."""

    def poll(self, timeout: float) -> Sequence[Event]:
        """What has happened since the last call; waits up to `timeout` seconds for something."""

    def cancel(self, key: str) -> None:
        """End a job and all that it started; its `Ended` follows."""

    def close(self) -> None:
        """End everything, and leave no process behind."""
