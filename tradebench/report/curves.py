"""One setting at a time: what it does to memory, step time and accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from tradebench.report.fronts import Z95, Group
from tradebench.report.series import Axis, Series, chosen
from tradebench.report.style import (
    COLOURS,
    GREY,
    SHAPES,
    Folder,
    Picture,
    drawable,
    drawing,
    intervals,
    note,
    save,
    whiskers,
)
from tradebench.report.tables import Estimate, Point
from tradebench.report.units import Scale, count, listed, scale, title

MAX_TASKS = 4
MAX_SAID = 3
MIN_GAP = 0.08
OFF = (0, (2, 2))


def series_figure(
    group: Group, axis: Axis, lines: Sequence[Series], name: str, out: Folder
) -> Picture | None:
    """Draw what one setting does to memory, time and accuracy, every other setting equal."""
    metrics = _metrics(group, lines)
    if not metrics:
        return None
    drawn = chosen(lines)
    columns = len(metrics) if len(metrics) <= 4 else 3
    rows = math.ceil(len(metrics) / columns)
    with drawing(name):
        size = (3.0 * columns + (2.0 if columns < 3 else 0), 2.7 * rows + 0.6 + 0.18 * len(drawn))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, metric in zip(panels, metrics, strict=False):
            _series_panel(axes, axis, drawn, metric)
        for axes in panels[len(metrics) :]:
            axes.set_axis_off()
        if any(metric.startswith("accuracy") for metric in metrics):
            note(figure, *group.accuracy_notes)
        handles = _key(axis, drawn)
        figure.legend(
            handles=handles, loc="outside lower left", title="The rest of the configuration"
        ).set_alignment("left")
        heading = f"What changes with {axis.title[0].lower()}{axis.title[1:]}"
        return save(
            figure,
            name,
            out,
            title=_message(group, axis, drawn[0], metrics) or heading,
            caption=f"{heading}. {_series_caption(group, metrics, drawn, lines)}",
            alt=f"{heading}: {listed(title(metric).lower() for metric in metrics)} in "
            f"{count(len(drawn), 'line')}.",
        )


def _message(group: Group, axis: Axis, line: Series, metrics: Sequence[str]) -> str:
    """Say what the first line does from its first to its last setting; empty where it has none."""
    found = []
    for metric in metrics[:MAX_SAID]:
        ends = [(at, point) for at, point in line.points if metric in point.estimates]
        if len(ends) < 2 or not ends[0][1].value(metric):
            return ""
        (start, first), (stop, last) = ends[0], ends[-1]
        found.append((start, stop, _change(group, first, last, metric)))
    if len({each[:2] for each in found}) != 1:
        return ""
    start, stop, _ = found[0]
    return f"{axis.title}, {start:g} to {stop:g}: {listed(said for *_, said in found)}"


def _change(group: Group, first: Point, last: Point, metric: str) -> str:
    """Say how a quantity changes from one point to another, as far as its noise lets one tell."""
    before, after = first.estimates[metric].value, last.estimates[metric].value
    noise = math.hypot(group.noise(first, metric), group.noise(last, metric))
    name = title(metric).lower()
    if abs(after - before) <= Z95 * noise:
        return f"{name} the same within its noise"
    if metric.startswith("accuracy"):
        return f"{name} {100 * (after - before):+.1f} points"
    return f"{name} {100 * (after / before - 1):+.0f} %"


def _key(axis: Axis, drawn: Sequence[Series]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=COLOURS[at], marker=SHAPES[at], label=drawable(line.name, 70))
        for at, line in enumerate(drawn)
    ]
    if any(line.reference is not None for line in drawn):
        off = f"the same with {axis.slot} off; shaded: its bar"
        handles.append(Line2D([], [], color=GREY, linestyle=OFF, label=drawable(off, 70)))
    return handles


def _metrics(group: Group, lines: Sequence[Series]) -> list[str]:
    """Return what to draw over a setting: what two points of one line have a value for."""
    objectives = [f"accuracy.{task}" for task in group.tasks]
    wanted = {each.name for each in group.objectives}
    accuracies = sorted(objectives, key=lambda name: name not in wanted)[:MAX_TASKS]
    names = [name for name in (group.memory, "step_seconds", *accuracies) if name]
    return [
        name
        for name in names
        if any(sum(name in point.estimates for _, point in line.points) > 1 for line in lines)
    ]


def _series_panel(axes: Axes, axis: Axis, lines: Sequence[Series], metric: str) -> None:
    found: list[Estimate] = [
        point.estimates[metric]
        for line in lines
        for _, point in line.points
        if metric in point.estimates
    ]
    unit = scale(metric, (each.value for each in found), found[0].unit)
    for at, line in enumerate(lines):
        # Side by side, so that lines through the same value hide neither each other nor their bars.
        shift = ScaledTranslation(
            0.04 * (at - (len(lines) - 1) / 2), 0, axes.figure.dpi_scale_trans
        )
        beside = axes.transData + shift
        here = [(x, p.estimates[metric]) for x, p in line.points if metric in p.estimates]
        axes.plot(
            [x for x, _ in here],
            [each.value / unit.factor for _, each in here],
            color=COLOURS[at],
            marker=SHAPES[at],
            markersize=5.5,
            linewidth=1.5,
            zorder=3,
            transform=beside,
        )
        for x, each in here:
            # What is drawn beside its place does not count for the limits by itself.
            bounds = (each.value, *(each.interval or ()), *(each.spread or ()))
            axes.update_datalim([(x, bound / unit.factor) for bound in bounds])
            whiskers(axes, x, each, unit, COLOURS[at], upright=True, transform=beside)
        if line.reference is not None and metric in line.reference.estimates:
            _reference(axes, line.reference.estimates[metric], unit, COLOURS[at])
    if axis.log:
        axes.set_xscale("log", base=2)
    axes.autoscale_view()
    axes.xaxis.set_major_locator(FixedLocator(_ticks(lines, axis.log)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(drawable(axis.title))
    axes.set_title(f"{drawable(title(metric), 30)}{unit.axis}")
    if not metric.startswith("accuracy"):
        # Room above: the margin is a share of what varies, and the axis starts at 0.
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])


def _reference(axes: Axes, estimate: Estimate, unit: Scale, colour: str) -> None:
    """Draw the value without the slot across the panel, shaded where other points have a bar."""
    axes.axhline(estimate.value / unit.factor, color=colour, linewidth=1.1, linestyle=OFF)
    if bounds := estimate.interval or estimate.spread:
        low, high = (bound / unit.factor for bound in bounds)
        axes.axhspan(low, high, color=colour, alpha=0.08, linewidth=0)


def _ticks(lines: Sequence[Series], log: bool) -> list[float]:
    """Return the settings to name on the axis: powers of two first, none on top of another."""
    values = {x for line in lines for x, _ in line.points}
    place = math.log2 if log else float
    width = place(max(values)) - place(min(values))
    kept: list[float] = []
    for value in sorted(values, key=lambda x: (log and not math.log2(x).is_integer(), x)):
        if all(abs(place(value) - place(other)) > MIN_GAP * width for other in kept):
            kept.append(value)
    return kept


def _series_caption(
    group: Group, metrics: Sequence[str], drawn: Sequence[Series], lines: Sequence[Series]
) -> str:
    shown = [point for line in drawn for _, point in line.points]
    values = (p.estimates[each] for p in shown for each in metrics if each in p.estimates)
    parts = ["The points of a line differ in this setting only.", intervals(values)]
    if len(lines) > len(drawn):
        parts.append(f"The {len(drawn)} longest of {len(lines)} lines are drawn.")
    if any(metric.startswith("accuracy") for metric in metrics):
        parts += group.accuracy_notes
    return " ".join(part for part in parts if part)
