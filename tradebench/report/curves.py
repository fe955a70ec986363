"""One setting at a time: what it does to memory, step time and accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from tradebench.report.fronts import Z95, Group
from tradebench.report.series import BITS, Axis, Series, ranked
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
    told_apart,
    whiskers,
)
from tradebench.report.tables import Estimate, Point
from tradebench.report.units import clean, count, listed, scale, title

MAX_TASKS = 4
MAX_SERIES = 6
MAX_LABEL = 120
# Of the height of a panel: lines that stay this close are one line to the eye.
CLOSE = 0.03
MAX_SAID = 3
MANY = 3.0
MIN_GAP = 0.08
BEYOND = 2.0  # times the largest prediction: how far an axis follows bars of what is not known
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
        """The lines that there is room for, and that can be told from each other."""
        kept: list[Series] = []
        heights = {metric: self._height(metric) for metric in self.metrics}
        for line in ranked(self.lines):
            twin = next((each for each in kept if _coincide(line, each, heights)), None)
            if twin is None:
                if len(kept) < MAX_SERIES:
                    kept.append(line)
            elif twin.context == line.context:
                # Methods that make no difference are named together.
                own = line.name.rpartition(" + ")[2]
                kept[kept.index(twin)] = replace(twin, name=f"{twin.name}, {own}")
        return tuple(kept)

    def _height(self, metric: str) -> float:
        """What the panel of a metric spans: accuracies what varies, all else from 0."""
        values = [p.value(metric) for line in self.lines for _, p in line.points]
        known = [value for value in values if value is not None]
        least = min(known) if metric.startswith("accuracy") else 0.0
        return max(known) - least

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
        _series_panel(axes, part, metric)
    for axes in panels[len(part.metrics) :]:
        axes.set_axis_off()
    if notes:
        note(figure, *notes)
    heading, handles = _key(part)
    figure.legend(handles=handles, loc="outside lower left", title=heading).set_alignment("left")


def _coincide(line: Series, other: Series, heights: Mapping[str, float]) -> bool:
    """Whether a line lies on another one in every panel, wherever it has a point."""
    beneath = dict(other.points)
    for x, point in line.points:
        if x not in beneath:
            return False
        for metric, height in heights.items():
            values = point.value(metric), beneath[x].value(metric)
            if values[0] is None and values[1] is None:
                continue
            if None in values or abs((values[0] or 0) - (values[1] or 0)) > CLOSE * height:
                return False
    return True


def _message(part: Part) -> str:
    """Say what the first line of a part does from one end to the other, if anything."""
    line = part.drawn[0]
    found = []
    for metric in part.metrics[:MAX_SAID]:
        ends = [(at, point) for at, point in line.points if metric in point.estimates]
        if part.axis == BITS:
            ends.reverse()  # from the weights as they are to what is made of them
        if len(ends) < 2 or not ends[0][1].value(metric):
            return ""
        (start, first), (stop, last) = ends[0], ends[-1]
        found.append((start, stop, _change(part.group, first, last, metric)))
    if len({each[:2] for each in found}) != 1:
        return ""
    start, stop, _ = found[0]
    axis = part.axis.title.partition(" (")[0]
    changes = listed(said for *_, said in found)
    own, said = line.name.removeprefix(line.context), line.name
    if own.startswith(" + "):
        methods = listed(own.removeprefix(" + ").split(", "))
        said = f"{line.context} with {methods} {line.axis.slot.replace('_', ' ')}"
    return f"{axis} from {start:g} to {stop:g} ({clean(said)}): {changes}"


def _change(group: Group, first: Point, last: Point, metric: str) -> str:
    """Say how a quantity changes from one point to another, as far as its noise lets one tell."""
    before, after = first.estimates[metric].value, last.estimates[metric].value
    noise = math.hypot(group.noise(first, metric), group.noise(last, metric))
    name = title(metric).lower()
    if before == after:
        return f"{name} the same"
    if abs(after - before) <= Z95 * noise:
        return f"{name} the same within its noise"
    if metric.startswith("accuracy"):
        word = "higher" if after > before else "lower"
        return f"{name} {100 * abs(after - before):.1f} points {word}"
    ratio = after / before
    if ratio >= MANY:
        return f"{name} {ratio:.1f} times as much"
    share = 100 * abs(ratio - 1)
    return f"{name} {share:.{0 if share >= 1 else 2}f} % {'more' if ratio > 1 else 'less'}"


def _key(part: Part) -> tuple[str, list[Line2D]]:
    """Name each line by what it alone has; what all have stands in the heading."""
    drawn = part.drawn
    common, own = told_apart([line.name for line in drawn])
    heading = "The rest of the configuration"
    if common:
        heading += f"; of every line: {drawable(common, MAX_LABEL)}"
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS[at],
            marker=SHAPES[at],
            label=drawable(name, MAX_LABEL),
        )
        for at, name in enumerate(own)
    ]
    if any(line.reference is not None for line in drawn):
        off = f"the same with {part.axis.slot} off"
        if part.group.kind == "measured":
            off += "; shaded: its bar"
        handles.append(Line2D([], [], color=GREY, linestyle=OFF, label=drawable(off, MAX_LABEL)))
    return heading, handles


def _series_panel(axes: Axes, part: Part, metric: str) -> None:
    axis, lines = part.axis, part.drawn
    found: list[Estimate] = [
        point.estimates[metric]
        for line in lines
        for _, point in line.points
        if metric in point.estimates
    ]
    unit = scale(metric, (each.value for each in found), found[0].unit)
    # One point of which little can be predicted shall not flatten what can be of the others.
    predicted = part.group.kind == "predicted"
    top = BEYOND * max(each.value for each in found) / unit.factor if predicted else math.inf
    cut = False
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
            ends = [bound / unit.factor for bound in bounds]
            cut = cut or max(ends) > top
            axes.update_datalim([(x, min(end, top)) for end in ends])
            whiskers(axes, x, each, unit, COLOURS[at], upright=True, transform=beside)
        if line.reference is not None and metric in line.reference.estimates:
            estimate = line.reference.estimates[metric]
            axes.axhline(
                estimate.value / unit.factor, color=COLOURS[at], linewidth=1.1, linestyle=OFF
            )
            reach = estimate.interval or estimate.spread
            # What is not known about a device moves points and references alike.
            if reach and part.group.kind == "measured":
                low, high = (bound / unit.factor for bound in reach)
                axes.axhspan(low, high, color=COLOURS[at], alpha=0.08, linewidth=0)
    if axis.log:
        axes.set_xscale("log", base=2)
    axes.margins(x=0.1)
    axes.autoscale_view()
    axes.xaxis.set_major_locator(FixedLocator(_ticks(lines, axis.log)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, part)))
    axes.set_xlabel(drawable(axis.title) + ("\n(bars that leave the top go on)" if cut else ""))
    axes.set_title(f"{drawable(title(metric), 30)}{unit.axis}")
    if not metric.startswith("accuracy"):
        # Room above: the margin is a share of what varies, and the axis starts at 0.
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])


def _tick(value: float, part: Part) -> str:
    """Name a place on the axis; on that of bits also the method, where there is only one."""
    if part.axis != BITS:
        return f"{value:g}"
    methods = {
        str(point.settings.get("quantization", point.settings.get("precision", {})).get("method"))
        for line in part.drawn
        for x, point in line.points
        if x == value
    }
    (method, *more) = methods or {"None"}
    return f"{value:g}" if more or method == "None" else f"{value:g}\n{drawable(method, 10)}"


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
    if part.axis.slot == "sharding":
        sentences.append("Memory is that of each device.")
    if len(part.lines) > len(part.drawn):
        sentences.append(
            f"Of {len(part.lines)} lines the {len(part.drawn)} drawn are the longest that can be "
            "told apart; the others lie on them."
            if len(part.drawn) < MAX_SERIES
            else f"Of {len(part.lines)} lines the first {len(part.drawn)} that can be told apart "
            "are drawn: the longest and plainest."
        )
    return " ".join(each for each in (*sentences, *part.notes) if each)
