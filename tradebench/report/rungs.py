"""The figure of a ladder: every row's value, and the change that its technique made."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tradebench.report.changes import Change
from tradebench.report.fronts import Group
from tradebench.report.ladder import Ladder, Rise, Rung
from tradebench.report.style import (
    BLACK,
    BLUE,
    GREY,
    SKY,
    VERMILLION,
    Folder,
    Picture,
    drawable,
    drawing,
    intervals,
    note,
    save,
    whiskers,
)
from tradebench.report.units import count

ROW_HEIGHT = 0.36
MAX_NAME = 52
MAX_COLUMNS = 3
MEANINGS = {
    BLUE: "better than the row before",
    VERMILLION: "worse",
    SKY: "not to be told apart, or row 0",
    GREY: "not compared",
}


def ladder_figure(group: Group, ladder: Ladder, name: str, out: Folder) -> Picture:
    """Draw a panel per measurement with a bar per row, row 0 at the top."""
    names = [_row_name(rung) for rung in ladder.rungs]
    columns = min(len(ladder.columns), MAX_COLUMNS)
    rows = math.ceil(len(ladder.columns) / columns)
    with drawing(name):
        width = 1.0 + 0.068 * max(map(len, names)) + 3.1 * columns
        figure = Figure(
            figsize=(width, (ROW_HEIGHT * len(names) + 1.0) * rows + 0.7), layout="constrained"
        )
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        for at, axes in enumerate(panels):
            if at < len(ladder.columns):
                _panel(axes, ladder, at)
            else:
                axes.set_axis_off()
        figure.legend(
            handles=[Patch(color=colour, label=words) for colour, words in MEANINGS.items()],
            loc="outside lower center",
            ncols=len(MEANINGS),
        )
        accuracies = any(column.name.startswith("accuracy") for column in ladder.columns)
        if accuracies:
            note(figure, *group.accuracy_notes)
        values = (
            rung.row.point.estimates[column.name]
            for rung in ladder.rungs
            for column in ladder.columns
            if column.name in rung.row.point.estimates
        )
        caption = (
            "The ladder: beside each bar its change against the row before; row 0 has its value. "
            f"{ladder.note} {intervals(values)} "
            f"{' '.join(group.accuracy_notes) if accuracies else ''}"
        )
        return save(
            figure,
            name,
            out,
            title=_message(ladder),
            caption=" ".join(caption.split()),
            alt=f"Bars for {count(len(names), 'row')} of a ladder, from {names[0]} at the top to "
            f"{names[-1]} at the bottom.",
        )


def _message(ladder: Ladder) -> str:
    """Say what all the rows together do to the first quantity."""
    column = ladder.columns[0]
    found = [rung.row.point.estimates.get(column.name) for rung in ladder.rungs]
    known = [estimate.value for estimate in found if estimate is not None]
    rows = count(len(found) - 1, "change")
    if len(known) < 2:
        return f"{rows}, one after the other"
    start, end = (column.scale.text(value) for value in (known[0], known[-1]))
    verb = "takes" if len(found) == 2 else "take"
    return f"{rows} {verb} {column.title[:1].lower()}{column.title[1:]} from {start} to {end}"


def _row_name(rung: Rung) -> str:
    """Return `+ lora r16`, and row 0 by the name of its point."""
    row = rung.row
    name = row.point.name if row.number == 0 else f"+ {row.added}"
    ending = "" if row.point.status == "ok" else f" ({row.point.status_text})"
    return drawable(name + ending, MAX_NAME)


def _panel(axes: Axes, ladder: Ladder, at: int) -> None:
    column = ladder.columns[at]
    for place, rung in enumerate(ladder.rungs):
        estimate = rung.row.point.estimates.get(column.name)
        if estimate is None:
            continue
        rise = rung.rises[at]
        colour = _colour(rise.before, estimate.better) if place else SKY
        value = estimate.value / column.scale.factor
        axes.barh(place, value, height=0.62, color=colour, zorder=2)
        whiskers(axes, place, estimate, column.scale, BLACK, upright=False)
        end = max((estimate.value, *(estimate.interval or ()), *(estimate.spread or ())))
        axes.annotate(
            _said(rise, column.scale.unit),
            (end / column.scale.factor, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xlim(left=0)
    axes.margins(x=0.3)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(drawable(column.head, 44))


def _said(rise: Rise, unit: str) -> str:
    """Return the change with a true minus, and of what has none the value."""
    if rise.before is not None:
        return rise.before.text.replace("-", "\N{MINUS SIGN}")
    return f"{rise.cell.text} {unit}".strip()


def _colour(change: Change | None, better: str) -> str:
    """Return the colour of a change: better, worse, neither for sure, or none to be had."""
    if change is None:
        return GREY
    low, high = change.bounds
    if low <= 0 <= high:
        return SKY
    return BLUE if (low > 0) == (better == "more") else VERMILLION
