"""Options: how a sweep is run, apart from what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tradebench import store
from tradebench.rank import PATIENCE_SECONDS
from tradebench.result import Phase, Status
from tradebench.runner.job import PRELOAD, PROGRAM, SILENCE


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a sweep is run.

    `timeout` is in seconds per attempt, `memory_cap` in bytes beyond what the imports hold.
    `retry` names statuses whose Results do not count, `variables` are set for every worker, and
    `silence` holds the seconds without a heartbeat after which a trial counts as hung, `patience`
    those that the ranks of a trial wait for one of them. `launcher` is the command that starts the
    ranks of a trial where they are not to be started here, such as torchrun's with its options.

    `writer` names whose part of the run directory this is, where several machines write one. `jobs`
    is how many trials run at once on one machine: as many as it has GPUs, and one without, unless
    someone accepts that they disturb each other's times. With `anywhere` it is not up to this
    process where a trial runs, so that no Result counts as stale because of its hardware.
    """

    isolation: Literal["auto", "fork", "exec"] = "auto"
    timeout: float | None = None
    memory_cap: int | None = None
    threads: int | None = None
    jobs: int | None = None
    retry: frozenset[Status] = frozenset()
    variables: Mapping[str, str] = field(default_factory=dict)
    writer: str = store.LOCAL
    anywhere: bool = False
    program: str = PROGRAM
    preload: tuple[str, ...] = PRELOAD
    silence: Mapping[Phase | Literal["start"], float] = field(default_factory=lambda: SILENCE)
    patience: float = PATIENCE_SECONDS
    launcher: tuple[str, ...] = ()
