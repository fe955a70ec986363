"""A run as it goes on: its table and front, drawn again whenever a Result has come.

A run that was killed looks like a slow one, for nothing writes that it died. On the machine that
watches, its process tells; where that is another one, so does how long nothing has come.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.live import Live
from rich.text import Text

from tradebench import store
from tradebench.report import content
from tradebench.report.terminal import table
from tradebench.report.units import count, listed
from tradebench.store import Run

POLL_SECONDS = 1.0
# Without a time-out a trial may take long, and is judged by those before it.
SILENCE_SECONDS = 3600.0
SLOWER = 3.0
# What goes by between trials: imports, predictions, what ends a trial that does not end.
SLACK_SECONDS = 900.0


def watch(
    directory: Path, console: Console, wait: Callable[[float], None] = time.sleep
) -> tuple[Run, str]:
    """Show a run until it has ended, or will not; ask for nothing but the size of its files.

    The run is read again only where a file has grown: whatever is measured beside this shall not
    notice. A KeyboardInterrupt passes through, with the terminal restored.

    Returns:
        The run, and why it will not end by itself; empty where it has ended.
    """
    seen = _state(directory)
    run = store.load(directory)
    with Live(_frame(run, console), console=console, auto_refresh=False, transient=True) as live:
        while run.header.get("ended") is None:
            lost = loss(run)
            if lost:
                # It may have come to its end between the reading and the asking.
                run = store.load(directory)
                return run, lost if run.header.get("ended") is None else ""
            wait(POLL_SECONDS)
            state = _state(directory)
            if state != seen:
                seen, run = state, store.load(directory)
            live.update(_frame(run, console), refresh=True)
    return run, ""


def loss(run: Run, now: float | None = None) -> str:
    """Return why a run that has not ended will not do so; empty where it may still be at work."""
    owners = store.owners(run.directory)
    states = [owner.state for owner in owners]
    if "alive" in states:
        return ""
    if states and set(states) == {"gone"}:
        gone = listed(str(owner.pid) for owner in owners)
        return (
            f"the run is no longer alive: process{'es' if len(owners) > 1 else ''} {gone} of this "
            "machine ended without finishing it"
        )
    longest, why = _patience(run)
    silent = _silence(run.directory, longest, time.time() if now is None else now)
    if silent <= longest:
        return ""
    return (
        f"the run seems to be no longer alive: nothing has come for {_span(silent)}, {why}, and no "
        "process of this machine is at work on it"
    )


def _patience(run: Run) -> tuple[float, str]:
    """How long nothing may come from a run that is alive, and why."""
    timeout = (run.header.get("options") or {}).get("timeout")
    if timeout:
        return timeout + SLACK_SECONDS, f"no trial may take more than {_span(timeout)}"
    slowest = max((each.seconds or 0.0 for each in run.results), default=0.0)
    told = f"the slowest trial so far took {_span(slowest)}" if slowest else "no trial has ended"
    return max(SILENCE_SECONDS, SLOWER * slowest), told


def _silence(directory: Path, longest: float, now: float) -> float:
    """For how long nothing has come; logs of trials are asked only where that is too long."""
    last = max((changed for _, changed in _state(directory).values()), default=0) / 1e9
    if now - last > longest:
        for log in (*directory.glob("logs/*"), *directory.glob("*/logs/*")):
            with contextlib.suppress(OSError):
                last = max(last, log.stat().st_mtime)
    return now - last


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def resumption(run: Run) -> str:
    """Return the command that goes on with a run where it stopped."""
    words = shlex.split(content.command(run))
    asked = [word for word in words if word != "--fresh"]
    return shlex.join(asked) if asked[1:2] == ["run"] else "tradebench run SUITE"


def _state(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file that says something of the run."""
    files = [
        *directory.glob("trials.*.jsonl"),
        *directory.glob("events.*.jsonl"),
        *directory.glob("run*.json"),
    ]
    found = {}
    for file in files:
        try:
            known = file.stat()
        except FileNotFoundError:  # a header is replaced while we look
            continue
        found[file.name] = (known.st_size, known.st_mtime_ns)
    return found


def _frame(run: Run, console: Console) -> RenderableType:
    """The table, cut to the height of the terminal, and how far the run is."""
    lines = max(5, console.height - 3)
    drawn = console.render_lines(table(run, console.width), pad=False)[:lines]
    text = Text("\n").join(
        Text.assemble(*((part.text, part.style or "") for part in line)) for line in drawn
    )
    return Stack(text, Text(progress(run), style="bold"))


def progress(run: Run, now: datetime | None = None) -> str:
    """How many Results there are, and how long ago the last one came."""
    ended = [
        datetime.fromisoformat(each.started).timestamp() + (each.seconds or 0.0)
        for each in run.results
        if each.started
    ]
    told = f"{run.header.get('suite')}: {count(len(run.results), 'result')} so far"
    if not ended:
        return f"{told}; Ctrl-C stops watching"
    ago = max(0.0, (now or datetime.now(UTC)).timestamp() - max(ended))
    return f"{told}, the last {_span(ago)} ago; Ctrl-C stops watching"
