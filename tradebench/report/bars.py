"""The figures with one row per point: memory by category, accuracy before and after, step time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tradebench.report.findings import baseline
from tradebench.report.fronts import Z95, Group
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
    told_apart,
    whiskers,
    wrapped,
)
from tradebench.report.tables import Point
from tradebench.report.units import Scale, count, listed, scale, title
from tradebench.result import CATEGORIES

MAX_ROWS = 40
# Of more points than that, so many are drawn: what stands out, not a page of neighbours.
FEW = 24
MAX_NAME = 52
MAX_TITLE = 120
TASKS_PER_FIGURE = 3
LEGEND_WIDTH = 1.25
SEEN = 0.002
ROW_HEIGHT, TWO_LINES = 0.24, 0.36


def memory_figure(group: Group, name: str, out: Folder) -> Picture | None:
    """Draw what the peak consists of; the parts of a bar add up to the peak."""
    found = [p for p in group.ordered if any(_category(c) in p.estimates for c in CATEGORIES)]
    if not found:
        return None
    least = min(found, key=_total)
    rows, left_out = _rows(group, found, least)
    totals = [_total(point) for point in rows]
    order = sorted(range(len(rows)), key=totals.__getitem__)
    rows, totals = [rows[at] for at in order], [totals[at] for at in order]
    unit = scale("peak_tensor_bytes", totals, "B")
    with drawing(name):
        figure, axes = _frame(rows, 1)
        _stack(axes[0], rows, unit)
        sharded = any(point.devices > 1 for point in rows)
        owner = "Tensor memory of each device" if sharded else "Tensor memory"
        axes[0].set_xlabel(f"{owner} at the peak{unit.axis}")
        axes[0].margins(x=0.16)
        _limit(axes[0], group, "peak_tensor_bytes", unit.factor)
        room = int(figure.get_figwidth() / LEGEND_WIDTH)
        figure.legend(
            loc="outside lower left", ncols=max(2, room), columnspacing=1.0, handlelength=1.2
        )
        return save(
            figure,
            name,
            out,
            title=_least(found, least, unit),
            caption="Memory by category: what the tensors were for at the moment of the highest "
            "total; the parts of a bar add up to the peak tensor memory. Smallest at the top. "
            f"{left_out}".strip(),
            alt="Stacked bars of tensor memory by category for each point. Smallest: "
            f"{rows[0].name}, {unit.text(totals[0])}.",
        )


def _stack(axes: Axes, rows: Sequence[Point], unit: Scale) -> None:
    """Draw a bar per point, category after category, and its total at its end."""
    left = [0.0] * len(rows)
    longest = max(map(_total, rows)) / unit.factor
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
                # What nobody sees needs no explanation.
                label=category if max(widths) > SEEN * longest else None,
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
    found = [p for p in group.ordered if any(each in p.estimates for each in wanted)]
    if not found:
        return None
    first = f"accuracy.{tasks[0]}"
    scored = [point for point in found if first in point.estimates]
    best = max(scored, key=lambda point: point.estimates[first].value, default=None)
    rows, left_out = _rows(group, found, best)
    rows.sort(key=lambda p: -(p.value(first) or 0.0))
    bars = intervals(p.estimates[each] for p in rows for each in wanted if each in p.estimates)
    caption = (
        "Accuracy after compression and before training (hollow) and after training (filled). "
        f"Sorted by {title(first).lower()}. {bars} {' '.join(group.accuracy_notes)} {left_out}"
    )
    with drawing(name):
        figure, panels = _frame(rows, len(tasks), *group.accuracy_notes)
        for axes, task in zip(panels, tasks, strict=True):
            _accuracy_panel(axes, rows, task)
            _limit(axes, group, f"accuracy.{task}", 0.01)
        handles = [
            Line2D([], [], color=ORANGE, marker="o", ls="none", mfc=WHITE, label="before training"),
            Line2D([], [], color=BLUE, marker="o", ls="none", label="after training"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        return save(
            figure,
            name,
            out,
            title=_best_accuracy(group, scored, best, first),
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
    found = [point for point in group.ordered if "step_seconds" in point.estimates]
    if not found:
        return None
    fitting = [point for point in found if point.verdict == "fits"]
    able = fitting or found
    best = min(able, key=lambda point: point.estimates["step_seconds"].value)
    rows, left_out = _rows(group, found, best)
    rows.sort(key=lambda p: p.estimates["step_seconds"].value)
    times = [p.estimates["step_seconds"] for p in rows]
    unit = scale("step_seconds", (each.value for each in times), times[0].unit)
    with drawing(name):
        figure, panels = _frame(rows, 1)
        for at, each in enumerate(times):
            whiskers(panels[0], at, each, unit, BLUE, upright=False)
            panels[0].plot(each.value / unit.factor, at, marker="o", markersize=5, color=BLUE)
        panels[0].set_xlabel(f"Time of one optimizer step{unit.axis}")
        panels[0].set_xlim(left=0)
        _limit(panels[0], group, "step_seconds", unit.factor)
        return save(
            figure,
            name,
            out,
            title=_fastest(group, able, best, unit),
            caption=f"Step time. Fastest at the top. {intervals(times)} {left_out}".strip(),
            alt=f"Time of one optimizer step for each point. Fastest: {rows[0].name}, "
            f"{unit.text(times[0].value)}.",
        )


def _least(found: Sequence[Point], least: Point, unit: Scale) -> str:
    """Say what takes least, and how much less than the point without techniques."""
    each = f" on each of {count(least.devices, 'device')}" if least.devices > 1 else ""
    text = f"Least memory: {unit.text(_total(least))}{each} with {drawable(least.name, MAX_TITLE)}"
    plain = baseline(found)
    if plain is None or plain is least or not _total(plain):
        return text
    share = 100 * (1 - _total(least) / _total(plain))
    return f"{text}, {share:.0f} % less than {drawable(plain.name, MAX_TITLE)}"


def _total(point: Point) -> float:
    return sum(point.value(_category(category)) or 0.0 for category in CATEGORIES)


def _fastest(group: Group, able: Sequence[Point], best: Point, unit: Scale) -> str:
    """Say what steps fastest; of a plan, of what fits."""
    fits = best.verdict == "fits"
    words = "Shortest step that fits" if fits else "Shortest step"
    time = unit.text(best.estimates["step_seconds"].value)
    like = _like_it(group, best, able, "step_seconds")
    return f"{words}: {time} with {drawable(best.name, MAX_TITLE)}{like}"


def _best_accuracy(group: Group, scored: Sequence[Point], best: Point | None, name: str) -> str:
    """Say what scores highest."""
    if best is None:
        return "Accuracy before training; none was measured after it"
    value = best.estimates[name].value
    number = scale(name, [value], "1").text(value)
    like = _like_it(group, best, scored, name)
    return f"Highest {title(name).lower()}: {number} with {drawable(best.name, MAX_TITLE)}{like}"


def _like_it(group: Group, best: Point, found: Sequence[Point], name: str) -> str:
    """Say how many others the noise does not tell from the best."""
    others = 0
    for point in found:
        gap = abs(point.estimates[name].value - best.estimates[name].value)
        noise = math.hypot(group.noise(point, name), group.noise(best, name))
        others += point is not best and gap <= Z95 * noise
    return f"; {others} more cannot be told from it" if others else ""


def _category(category: str) -> str:
    return f"peak_{category}_bytes"


def _rows(group: Group, found: Sequence[Point], best: Point | None) -> tuple[list[Point], str]:
    """Return the points to draw and, where there are too many, which of them these are.

    Of many points the front is drawn, evenly thinned if it is long, and the best point with each
    method that nothing on the front has. The `best`, which the title names, is always there.
    """
    if len(found) <= MAX_ROWS:
        return list(found), ""
    front = [point for point in found if group.standing(point).label == "front"]
    step = max(1.0, len(front) / FEW)
    rows = [front[int(at * step)] for at in range(min(len(front), FEW))]
    also = []
    if best is not None and best not in rows:
        rows[FEW - 1 :] = [best]
        also.append("the one that the title names")
    seen = {method for point in rows for method in _methods(point)}
    first = len(rows)
    for point in found:
        if len(rows) < FEW and not _methods(point) <= seen:
            rows.append(point)
            seen |= _methods(point)
    if len(rows) > first:
        also.append("the best with each method that it lacks")
    which = listed(["points of the front" if step > 1 else "points: the front", *also])
    return rows, f"Drawn are {len(rows)} of {len(found)} {which}; the table has all."


def _methods(point: Point) -> set[tuple[str, str]]:
    return {(slot, str(fields.get("method"))) for slot, fields in point.settings.items()}


def _frame(rows: Sequence[Point], columns: int, *notes: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with one named row per point, shared by all columns.

    What all rows have is said once above them, with the other notes.
    """
    common, names = told_apart([_row_name(point) for point in rows], least=3)
    names = [wrapped(name, MAX_NAME) for name in names]
    width = max(len(line) for name in names for line in name.splitlines() or [""])
    height = TWO_LINES if any("\n" in name for name in names) else ROW_HEIGHT
    size = (
        1.0 + 0.068 * width + (3.4 if columns == 1 else 2.8) * columns,
        height * len(rows) + 1.5,
    )
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(1, columns, sharey=True, squeeze=False).flatten())
    panels[0].set_yticks(range(len(rows)), names)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    for axes in panels:
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        for at in range(1, len(rows), 2):
            axes.axhspan(at - 0.5, at + 0.5, color=STRIPE, linewidth=0, zorder=0)
    if said := (*([f"Every row: {common}"] if common else []), *notes):
        note(figure, *said)
    return figure, panels


def _row_name(point: Point) -> str:
    """Return the point's name, and how its repeats ended where not all ended well."""
    return point.name if point.status == "ok" else f"{point.name} ({point.status_text})"


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
