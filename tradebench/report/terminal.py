"""The short table that ends a run on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tradebench.report import predictions
from tradebench.report.answers import draw
from tradebench.report.content import Cell, Column, Row, headline, rows
from tradebench.report.fronts import Group, groups
from tradebench.report.plot import plot
from tradebench.report.tables import TRAINING
from tradebench.report.units import count, listed, shorten, title

if TYPE_CHECKING:
    from tradebench.report.answers import Adviser
    from tradebench.store import Run

MAX_NAME = 120
MAX_ROWS = 40
MIN_NAME = 20
NARROW_STATUS = 14
ROOMY = 120
STATUS_STYLES = {"ok": "green", "skipped": "dim", "failed": "red"}


def table(run: Run, width: int | None = None, advise: Adviser | None = None) -> RenderableType:
    """Return a table and a summary line for every kind of evidence, and how predictions did.

    On a terminal of `width` columns the front is drawn above them, and what `advise` answers stands
    below them.
    """
    found = groups(run)
    if not found:
        return Text("No point has a result yet.")
    parts: list[RenderableType] = []
    for group in predictions.apart(found):
        drawn = None if width is None else plot(group, width)
        parts += [drawn, Text("")] if drawn is not None else []
        parts += [_table(group, width), Text(summary(group))]
        if group.training_note:
            parts.append(Text(f"{group.training_note} {TRAINING}"))
        told = None if advise is None else advise(group)
        parts += [Text(""), *draw(told)] if told is not None else []
    errors = predictions.summary(predictions.prediction_errors(found))
    return Stack(*parts, *(Text(f"{predictions.HEADING}: {line}") for line in errors))


def summary(group: Group) -> str:
    """Return the front in one line."""
    if not group.objectives:
        return "No point has a value for any objective, so there is no front."
    names = listed(title(each.name).lower() for each in group.objectives)
    sure, possible = group.labelled("front"), group.labelled("possible")
    found = [(count(len(sure), "point"), sure), (f"{len(possible)} more possible", possible)]
    told = (
        f"{words} ({within})" if (within := group.within(points)) else words
        for words, points in (found if possible else found[:1])
    )
    return f"Front over {names}: {', '.join(told)}."


def _table(group: Group, width: int | None) -> Table:
    shown = headline(group)
    found = rows(group, shown)
    # A narrow window folds names, heads and intervals, and cuts no number.
    narrow = width is not None and width < ROOMY
    drawn = Table(title=group.title, title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    drawn.add_column("")
    drawn.add_column("")
    drawn.add_column("point", overflow="fold", min_width=MIN_NAME if narrow else None)
    told = any(row.status_text not in ("ok", "fits") for row in found)
    if told:
        drawn.add_column("status", overflow="fold", max_width=NARROW_STATUS if narrow else None)
    for column in shown:
        head = f"{_short(column.title)}\n{column.scale.unit}"
        drawn.add_column(
            head.replace(" ", "\n") if narrow else head, justify="right", overflow="fold"
        )
    for row in found[:MAX_ROWS]:
        drawn.add_row(
            str(row.number),
            row.mark,
            # Text, not a string: a name is never read as markup.
            Text(shorten(row.name, MAX_NAME)),
            *([_status(row)] if told else []),
            *(
                _number(column, cell, "\n" if narrow else " ")
                for column, cell in zip(shown, row.cells, strict=True)
            ),
        )
    if len(group.points) > MAX_ROWS:
        drawn.add_row("", "", f"and {len(group.points) - MAX_ROWS} more, all of them in the report")
    return drawn


def _status(row: Row) -> Text:
    return Text(row.outcome, style=STATUS_STYLES.get(row.status, "yellow"))


def _number(column: Column, cell: Cell, between: str) -> Text:
    """Return the number; room for its interval is kept for accuracies, where it is widest."""
    interval = cell.margin if column.name.startswith("accuracy") else ""
    return Text(f"{cell.text}{between}{interval}".strip())


def _short(head: str) -> str:
    return head.replace("Accuracy on ", "accuracy ").replace("Peak ", "").lower()
