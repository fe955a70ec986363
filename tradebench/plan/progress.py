"""The progress of predictions, on standard error where that is a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from tradebench.plan.watcher import Watcher

COLUMNS = (
    TextColumn("predicting"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("{task.fields[point]}", markup=False),
)


class Bar(Watcher):
    """A bar that moves with every prediction."""

    def __init__(self, shown: Progress, task: TaskID, points: int) -> None:
        self._shown, self._task, self._points = shown, task, points

    def expect(self, more: int) -> None:
        """Make the bar longer."""
        self._points += more
        self._shown.update(self._task, total=self._points)

    def predicted(self, label: str) -> None:
        """Move by one, and say where it is."""
        self._shown.update(self._task, advance=1, point=label)


@contextmanager
def progress(points: int) -> Iterator[Bar]:
    """Show a bar of so many points."""
    with Progress(*COLUMNS, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=points, point="importing the libraries")
        yield Bar(shown, task, points)
