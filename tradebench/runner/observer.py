"""An observer is told what happens in a sweep, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tradebench.result import Heartbeat, Result
from tradebench.trial import Trial


class Observer:
    """Is told what happens in a sweep; each method does nothing unless overridden."""

    def run_started(self, *, points: int, done: int) -> None:
        """The sweep has `points` Results to bring, of which the store already has `done`."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def trial_started(self, trial: Trial, repeat: int, attempt: int) -> None:
        """A worker is being started."""

    def heartbeat(self, trial: Trial, heartbeat: Heartbeat) -> None:
        """A trial has given a sign of life."""

    def trial_finished(self, result: Result, *, again: bool) -> None:
        """An attempt is stored; `again` says that the point will be tried once more."""

    def run_finished(self, summary: Summary) -> None:
        """The sweep is over."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a sweep has brought: the last Result of every point that has one.

    `started` counts workers, `reused` Results that were in the store before.
    """

    directory: Path
    results: tuple[Result, ...]
    started: int
    reused: int
    interrupted: bool
