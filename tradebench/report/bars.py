"""The figures with one row per point: memory by category, accuracy before and after, step time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tradebench.report.findings import baseline
from tradebench.report.fronts import Group
from tradebench.report.style import (
    BLACK,
    BLUE,
    CATEGORY_COLOURS,
    ORANGE,
    STRIPE,
    WHITE,
    Folder,
    Picture,
    drawable,
    drawing,
    intervals,
    note,
    save,
    whiskers,
)
from tradebench.report.tables import Point
from tradebench.report.units import Scale, scale, title
from tradebench.result import CATEGORIES

MAX_ROWS = 40
MAX_NAME = 68
TASKS_PER_FIGURE = 3
ROW_HEIGHT = 0.24


def memory_figure(group: Group, name: str, out: Folder) -> Picture | None:
    """Draw what the peak consists of; the parts of a bar add up to the peak."""
    rows, left_out = _rows(group, lambda p: any(_category(c) in p.estimates for c in CATEGORIES))
    if not rows:
        return None
    totals = [sum(p.value(_category(c)) or 0.0 for c in CATEGORIES) for p in rows]
    order = sorted(range(len(rows)), key=totals.__getitem__)
    rows, totals = [rows[at] for at in order], [totals[at] for at in order]
    unit = scale("peak_tensor_bytes", totals, "B")
    with drawing(name):
        figure, axes = _frame(rows, 1)
        _stack(axes[0], rows, unit)
        axes[0].set_xlabel(f"Tensor memory at the peak{unit.axis}")
        axes[0].margins(x=0.16)
        _limit(axes[0], group, "peak_tensor_bytes", unit.factor)
        figure.legend(loc="outside upper left", ncols=7, columnspacing=1.0, handlelength=1.2)
        smallest = f"Smallest: {rows[0].name}, {unit.text(totals[0])}."
        return save(
            figure,
            name,
            out,
            title=_least(rows, "peak_tensor_bytes", f"Least memory: {unit.text(totals[0])}"),
            caption="Memory by category: what the tensors were for at the moment of the highest "
            "total; the parts of a bar add up to the peak tensor memory. Smallest at the top. "
            f"{left_out}".strip(),
            alt=f"Stacked bars of tensor memory by category for each point. {smallest}",
        )


def _stack(axes: Axes, rows: Sequence[Point], unit: Scale) -> None:
    """Draw a bar per point, category after category, and its total at its end."""
    left = [0.0] * len(rows)
    for category in CATEGORIES:
        widths = [(point.value(_category(category)) or 0.0) / unit.factor for point in rows]
        if any(widths):
            axes.barh(
                range(len(rows)),
                widths,
                left=left,
                height=0.72,
                color=CATEGORY_COLOURS[category],
                edgecolor=WHITE,
                linewidth=0.5,
                label=category,
            )
            left = [start + width for start, width in zip(left, widths, strict=True)]
    for at, end in enumerate(left):
        axes.annotate(
            unit.text(end * unit.factor),
            (end, at),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            # The line of a limit may pass here; the number is more important.
            bbox={"facecolor": WHITE, "edgecolor": "none", "pad": 0.8},
            zorder=3,
        )


def accuracy_figures(group: Group, name: str, out: Folder) -> list[Picture]:
    """Draw accuracy before and after training, up to three tasks to a figure."""
    chunks = [
        group.tasks[at : at + TASKS_PER_FIGURE]
        for at in range(0, len(group.tasks), TASKS_PER_FIGURE)
    ]
    names = [name if not at else f"{name}-{at + 1}" for at in range(len(chunks))]
    pictures = [
        _accuracy_figure(group, chunk, each, out) for chunk, each in zip(chunks, names, strict=True)
    ]
    return [picture for picture in pictures if picture is not None]


def _accuracy_figure(group: Group, tasks: Sequence[str], name: str, out: Folder) -> Picture | None:
    wanted = [f"{when}.{task}" for task in tasks for when in ("accuracy", "accuracy_before")]
    rows, left_out = _rows(group, lambda p: any(each in p.estimates for each in wanted))
    if not rows:
        return None
    first = f"accuracy.{tasks[0]}"
    rows.sort(key=lambda p: -(p.value(first) or 0.0))
    bars = intervals(p.estimates[each] for p in rows for each in wanted if each in p.estimates)
    caption = (
        "Accuracy after compression and before training (hollow) and after training (filled). "
        f"Sorted by {title(first).lower()}. {bars} {' '.join(group.accuracy_notes)} {left_out}"
    )
    with drawing(name):
        figure, panels = _frame(rows, len(tasks))
        for axes, task in zip(panels, tasks, strict=True):
            _accuracy_panel(axes, rows, task)
            _limit(axes, group, f"accuracy.{task}", 0.01)
        handles = [
            Line2D([], [], color=ORANGE, marker="o", ls="none", mfc=WHITE, label="before training"),
            Line2D([], [], color=BLUE, marker="o", ls="none", label="after training"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        note(figure, *group.accuracy_notes)
        return save(
            figure,
            name,
            out,
            title=_best_accuracy(rows[0], first),
            caption=caption.strip(),
            alt=f"Accuracy on {', '.join(tasks)} before and after training for each point. "
            f"Highest: {rows[0].name}.",
        )


def _accuracy_panel(axes: Axes, rows: Sequence[Point], task: str) -> None:
    unit = scale("accuracy", [1.0], "1")
    for at, point in enumerate(rows):
        before = point.estimates.get(f"accuracy_before.{task}")
        after = point.estimates.get(f"accuracy.{task}")
        # Half a row apart, so that the two uncertainties can be told from each other.
        for estimate, colour, fill, shift in (
            (before, ORANGE, WHITE, 0.16),
            (after, BLUE, BLUE, -0.16),
        ):
            if estimate is not None:
                whiskers(axes, at + shift, estimate, unit, colour, upright=False)
                axes.plot(
                    estimate.value / unit.factor,
                    at + shift,
                    marker="o",
                    markersize=5,
                    color=colour,
                    markerfacecolor=fill,
                    zorder=3,
                )
    axes.set_xlabel(f"{drawable(title(f'accuracy.{task}'), 34)} (%)")


def time_figure(group: Group, name: str, out: Folder) -> Picture | None:
    """Draw the time of one optimizer step."""
    rows, left_out = _rows(group, lambda p: "step_seconds" in p.estimates)
    if not rows:
        return None
    rows.sort(key=lambda p: p.estimates["step_seconds"].value)
    found = [p.estimates["step_seconds"] for p in rows]
    unit = scale("step_seconds", (each.value for each in found), found[0].unit)
    with drawing(name):
        figure, panels = _frame(rows, 1)
        for at, each in enumerate(found):
            whiskers(panels[0], at, each, unit, BLUE, upright=False)
            panels[0].plot(each.value / unit.factor, at, marker="o", markersize=5, color=BLUE)
        panels[0].set_xlabel(f"Time of one optimizer step{unit.axis}")
        panels[0].set_xlim(left=0)
        _limit(panels[0], group, "step_seconds", unit.factor)
        return save(
            figure,
            name,
            out,
            title=_fastest(rows, unit),
            caption=f"Step time. Fastest at the top. {intervals(found)} {left_out}".strip(),
            alt=f"Time of one optimizer step for each point. Fastest: {rows[0].name}, "
            f"{unit.text(found[0].value)}.",
        )


def _least(rows: Sequence[Point], name: str, start: str) -> str:
    """Say which point takes least, and how much less than the one without techniques."""
    text = f"{start} with {drawable(rows[0].name, 60)}"
    plain = baseline([point for point in rows if name in point.estimates])
    least = rows[0].value(name)
    if plain is None or plain is rows[0] or not least or not plain.value(name):
        return text
    share = 1 - least / (plain.value(name) or least)
    return f"{text}, {100 * share:.0f} % less than {drawable(plain.name, 40)}"


def _fastest(rows: Sequence[Point], unit: Scale) -> str:
    """Say what steps fastest; of a plan, of what fits."""
    fitting = [point for point in rows if point.fit is not None and point.fit.verdict == "fits"]
    best = (fitting or rows)[0]
    words = "Shortest step that fits" if fitting else "Shortest step"
    time = unit.text(best.estimates["step_seconds"].value)
    return f"{words}: {time} with {drawable(best.name, 60)}"


def _best_accuracy(best: Point, name: str) -> str:
    """Say what scores highest."""
    estimate = best.estimates.get(name)
    if estimate is None:
        return "Accuracy before training; none was measured after it"
    number = scale(name, [estimate.value], "1").text(estimate.value)
    return f"Highest {title(name).lower()}: {number} with {drawable(best.name, 60)}"


def _category(category: str) -> str:
    return f"peak_{category}_bytes"


def _rows(group: Group, has: Callable[[Point], bool]) -> tuple[list[Point], str]:
    """Return the points to draw, best standing first where there are too many, and a note."""
    found = [point for point in group.ordered if has(point)]
    if len(found) <= MAX_ROWS:
        return found, ""
    return found[:MAX_ROWS], (
        f"The {MAX_ROWS} points nearest to the front are drawn; the table has all {len(found)}."
    )


def _frame(rows: Sequence[Point], columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with one named row per point, shared by all columns."""
    names = [_row_name(point) for point in rows]
    size = (1.3 + 0.068 * max(map(len, names)) + 3.4 * columns, ROW_HEIGHT * len(rows) + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(1, columns, sharey=True, squeeze=False).flatten())
    panels[0].set_yticks(range(len(rows)), names)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    for axes in panels:
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        for at in range(1, len(rows), 2):
            axes.axhspan(at - 0.5, at + 0.5, color=STRIPE, linewidth=0, zorder=0)
    return figure, panels


def _row_name(point: Point) -> str:
    """Return the point's name, and how its repeats ended where not all ended well."""
    name = drawable(point.name, MAX_NAME)
    return name if point.status == "ok" else f"{name} ({point.status_text})"


def _limit(axes: Axes, group: Group, name: str, factor: float) -> None:
    """Mark the bound that the suite asks for, with its value."""
    for objective in group.limits:
        if objective.name == name and objective.limit is not None:
            axes.axvline(objective.limit / factor, color=BLACK, lw=1, ls=(0, (5, 3)), zorder=2)
            axes.annotate(
                f"limit {objective.limit_text}",
                (objective.limit / factor, 1.0),
                xycoords=("data", "axes fraction"),
                fontsize=8,
                ha="center",
                va="bottom",
            )
