"""The short table that ends a run on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tradebench.report import predictions
from tradebench.report.content import Cell, Column, headline, rows
from tradebench.report.fronts import Group, groups
from tradebench.report.tables import TRAINING
from tradebench.report.units import count, listed, shorten, title

if TYPE_CHECKING:
    from tradebench.store import Run

MAX_NAME = 60
MAX_ROWS = 40
STATUS_STYLES = {"ok": "green", "skipped": "dim", "failed": "red"}


def table(run: Run) -> RenderableType:
    """Return a table and a summary line for every kind of evidence, and how predictions did."""
    found = groups(run)
    if not found:
        return Text("No point has a result yet.")
    parts: list[RenderableType] = []
    for group in predictions.apart(found):
        parts += [_table(group), Text(summary(group))]
        if group.training_note:
            parts.append(Text(f"{group.training_note} {TRAINING}"))
    errors = predictions.summary(predictions.prediction_errors(found))
    return Stack(*parts, *(Text(f"{predictions.HEADING}: {line}") for line in errors))


def summary(group: Group) -> str:
    """Return the front in one line."""
    if not group.objectives:
        return "No point has a value for any objective, so there is no front."
    names = listed(title(each.name).lower() for each in group.objectives)
    sure, possible = group.labelled("front"), group.labelled("possible")
    text = f"Front over {names}: {count(len(sure), 'point')}"
    return f"{text}, {len(possible)} more possible." if possible else f"{text}."


def _table(group: Group) -> Table:
    shown = headline(group)
    drawn = Table(title=group.title, title_justify="left", box=None, padding=(0, 1))
    drawn.add_column("")
    drawn.add_column("point", overflow="fold")
    drawn.add_column("status", overflow="fold")
    for column in shown:
        # A narrow window wraps numbers and cuts none.
        head = f"{_short(column.title)}\n{column.scale.unit}"
        drawn.add_column(head, justify="right", overflow="fold")
    for row in rows(group, shown)[:MAX_ROWS]:
        drawn.add_row(
            row.mark,
            # Text, not a string: a name is never read as markup.
            Text(shorten(row.name, MAX_NAME)),
            Text(row.status_text, style=STATUS_STYLES.get(row.status, "yellow")),
            *(_number(column, cell) for column, cell in zip(shown, row.cells, strict=True)),
        )
    if len(group.points) > MAX_ROWS:
        drawn.add_row("", f"and {len(group.points) - MAX_ROWS} more, all of them in the report")
    return drawn


def _number(column: Column, cell: Cell) -> Text:
    """Return the number; room for its interval is kept for accuracies, where it is widest."""
    interval = cell.plus_minus if column.name.startswith("accuracy") else ""
    return Text(f"{cell.text} {interval}".strip())


def _short(head: str) -> str:
    return head.replace("Accuracy on ", "accuracy ").replace("Peak ", "").lower()
