"""One setting at a time: what it does to memory, step time and accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
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


@dataclass(frozen=True, kw_only=True)
class Part:
    """The lines of one group along an axis: one kind of evidence, one model."""

    group: Group
    axis: Axis
    lines: Sequence[Series]

    @cached_property
    def metrics(self) -> list[str]:
        """What to draw over the setting: what two points of one line have a value for."""
        objectives = [f"accuracy.{task}" for task in self.group.tasks]
        wanted = {each.name for each in self.group.objectives}
        accuracies = sorted(objectives, key=lambda name: name not in wanted)[:MAX_TASKS]
        names = [name for name in (self.group.memory, "step_seconds", *accuracies) if name]
        return [
            name
            for name in names
            if any(sum(name in p.estimates for _, p in line.points) > 1 for line in self.lines)
        ]

    @cached_property
    def drawn(self) -> tuple[Series, ...]:
        """The lines that there is room for."""
        return chosen(self.lines)

    @property
    def notes(self) -> tuple[str, ...]:
        """What must stand above the panels."""
        scored = any(metric.startswith("accuracy") for metric in self.metrics)
        return self.group.accuracy_notes if scored else ()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of panels."""
        columns = len(self.metrics) if len(self.metrics) <= 4 else 3
        return math.ceil(len(self.metrics) / columns), columns

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        rows, columns = self.grid
        width = 3.0 * columns + (2.0 if columns < 3 else 0)
        return width, 2.7 * rows + 0.6 + 0.18 * len(self.drawn)

    @property
    def alt(self) -> str:
        """What is drawn, in words."""
        metrics = listed(title(metric).lower() for metric in self.metrics)
        return f"{metrics} in {count(len(self.drawn), 'line')}"


def series_figure(parts: Sequence[Part], name: str, out: Folder) -> Picture | None:
    """Draw what one setting does to memory, time and accuracy, every other setting equal.

    Several parts of one axis stand one below the other, each under the name of its group: no two
    share a scale.
    """
    found = [part for part in parts if part.metrics]
    if not found:
        return None
    several = len(found) > 1
    with drawing(name):
        heights = [part.size[1] + 0.3 * several for part in found]
        size = (max(part.size[0] for part in found), sum(heights))
        figure = Figure(figsize=size, layout="constrained")
        if several:
            places = figure.subfigures(len(found), 1, squeeze=False, height_ratios=heights)
            for part, place in zip(found, places.flatten(), strict=True):
                _draw(place, part, _sentence(part.group.title), *part.notes)
        else:
            _draw(figure, found[0], *found[0].notes)
        setting = found[0].axis.title
        heading = f"What changes with {setting[0].lower()}{setting[1:]}"
        captions = [_series_caption(part, several) for part in found]
        alts = [f"{part.group.title}, {part.alt}" if several else part.alt for part in found]
        return save(
            figure,
            name,
            out,
            title=_message(found[0]) or heading,
            caption=" ".join((f"{heading}.", *captions)),
            alt=f"{heading}: {'; '.join(alts)}.",
        )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}"


def _draw(figure: Figure | SubFigure, part: Part, *notes: str) -> None:
    """Draw the panels of one part."""
    panels = figure.subplots(*part.grid, squeeze=False).flatten()
    for axes, metric in zip(panels, part.metrics, strict=False):
        _series_panel(axes, part.axis, part.drawn, metric)
    for axes in panels[len(part.metrics) :]:
        axes.set_axis_off()
    if notes:
        note(figure, *notes)
    figure.legend(
        handles=_key(part.axis, part.drawn),
        loc="outside lower left",
        title="The rest of the configuration",
    ).set_alignment("left")


def _message(part: Part) -> str:
    """Say what the first line of a part does from its first to its last setting, if anything."""
    found = []
    for metric in part.metrics[:MAX_SAID]:
        ends = [(at, point) for at, point in part.drawn[0].points if metric in point.estimates]
        if len(ends) < 2 or not ends[0][1].value(metric):
            return ""
        (start, first), (stop, last) = ends[0], ends[-1]
        found.append((start, stop, _change(part.group, first, last, metric)))
    if len({each[:2] for each in found}) != 1:
        return ""
    start, stop, _ = found[0]
    return f"{part.axis.title}, {start:g} to {stop:g}: {listed(said for *_, said in found)}"


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


def _series_caption(part: Part, several: bool) -> str:
    shown = [point for line in part.drawn for _, point in line.points]
    values = (p.estimates[each] for p in shown for each in part.metrics if each in p.estimates)
    sentences = [f"{_sentence(part.group.title)}:"] if several else []
    sentences += ["The points of a line differ in this setting only.", intervals(values)]
    if len(part.lines) > len(part.drawn):
        sentences.append(f"The {len(part.drawn)} longest of {len(part.lines)} lines are drawn.")
    return " ".join(each for each in (*sentences, *part.notes) if each)
