"""A run as it goes on: its table and front, drawn again whenever a Result has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.live import Live
from rich.text import Text

from tradebench import store
from tradebench.report.terminal import table
from tradebench.report.units import count
from tradebench.store import Run

POLL_SECONDS = 1.0


def watch(directory: Path, console: Console, wait: Callable[[float], None] = time.sleep) -> Run:
    """Show a run until it has ended, and return it; ask for nothing but the size of its files.

    The run is read again only where a file has grown: whatever is measured beside this shall not
    notice. A KeyboardInterrupt passes through, with the terminal restored.
    """
    seen = _state(directory)
    run = store.load(directory)
    with Live(_frame(run, console), console=console, auto_refresh=False, transient=True) as live:
        while run.header.get("ended") is None:
            wait(POLL_SECONDS)
            state = _state(directory)
            if state != seen:
                seen, run = state, store.load(directory)
            live.update(_frame(run, console), refresh=True)
    return run


def _state(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file that says something of the run."""
    files = [*directory.glob("trials.*.jsonl"), *directory.glob("run*.json")]
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
    since = f"{ago:.0f} s" if ago < 120 else f"{ago / 60:.0f} min"
    return f"{told}, the last {since} ago; Ctrl-C stops watching"
