"""Progress on standard error: a live display on a terminal, a line per event elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tradebench.result import Heartbeat, Result
from tradebench.runner.observer import Observer, Summary
from tradebench.runner.verdict import doing, size
from tradebench.trial import Trial

_STYLES = {"ok": "green", "oom": "yellow", "diverged": "yellow", "skipped": "dim"}


@dataclass
class _Running:
    """An attempt that runs now: what it is called, when it began, and where it is."""

    name: str
    began: float
    at: str = "starting"


class Progress(Observer):
    """Shows a sweep as it goes; use it as a context manager, so that the terminal is restored."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._points = self._done = self._ended = 0
        self._running: dict[str, _Running] = {}
        self._since: float | None = None
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def run_started(self, *, points: int, done: int) -> None:
        """Say how much there is to do."""
        self._points, self._done = points, done
        noun = "point" if points == 1 else "points"
        self._say(f"{points} {noun}, {done} of them done already")

    def note(self, text: str) -> None:
        """Pass it on."""
        self._say(text)

    def trial_started(self, trial: Trial, repeat: int, attempt: int) -> None:
        """Name the point that runs now."""
        now = time.monotonic()
        self._since = self._since or now
        name = _named(trial.label, repeat, attempt)
        self._running[trial.id] = _Running(name, now)
        if self._live is None:
            self._say(f"[{self._done + len(self._running)}/{self._points}] {name}")

    def heartbeat(self, trial: Trial, heartbeat: Heartbeat) -> None:
        """Show where the trial is."""
        steps = f", step {heartbeat.step} of {heartbeat.steps}" if heartbeat.steps else ""
        held = f", {size(heartbeat.bytes)} so far" if heartbeat.bytes is not None else ""
        if running := self._running.get(trial.id):
            running.at = f"{doing(heartbeat.phase).removeprefix('while ')}{steps}{held}"

    def trial_finished(self, result: Result, *, again: bool) -> None:
        """Say how the point ended."""
        name = _named(result.label, result.repeat, result.attempt)
        self._running.pop(result.trial, None)
        if not again:
            self._done += 1
            self._ended += 1
        why = f"({result.reason})" if result.reason else ""
        parts = (f"{result.status}: {name}", why, "trying again" if again else self._left())
        self._say("  ".join(filter(None, parts)), _STYLES.get(result.status, "red"))

    def run_finished(self, summary: Summary) -> None:
        """Say what the sweep has brought."""
        word = "interrupted" if summary.interrupted else "finished"
        self._running.clear()
        self._say(f"{word}: {self._done} of {self._points} points are in {summary.directory}")

    def _say(self, text: str, style: str = "") -> None:
        # The console of a live display prints above it.
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _left(self) -> str:
        """How long the rest will take, if it goes on as it went."""
        if not self._ended or self._since is None or self._done >= self._points:
            return ""
        spent = time.monotonic() - self._since
        seconds = spent / self._ended * (self._points - self._done)
        return f"about {_duration(seconds)} left"

    def _render(self) -> Group:
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, self._points), completed=self._done, width=24)
        line.add_row(bar, f"{self._done}/{self._points} points", self._left())
        rows: list[Table | Text] = [line]
        for running in self._running.values():
            spent = _duration(time.monotonic() - running.began)
            rows.append(Text(f"{running.name}: {running.at} ({spent})"))
        return Group(*rows)


def _named(label: str, repeat: int, attempt: int) -> str:
    extra = [f"repeat {repeat}"] if repeat else []
    extra += [f"attempt {attempt + 1}"] if attempt else []
    return f"{label} ({', '.join(extra)})" if extra else label


def _duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
