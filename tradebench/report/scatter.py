"""The Pareto figure: every pair of objectives, and which points are on the front of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from tradebench import pareto
from tradebench.report.fronts import Group, Objective
from tradebench.report.style import (
    BLACK,
    COLOURS,
    FAINT,
    GREY,
    SHAPES,
    WHITE,
    Folder,
    Picture,
    drawable,
    drawing,
    intervals,
    note,
    pale,
    save,
    told_apart,
    whiskers,
)
from tradebench.report.tables import Point
from tradebench.report.units import Scale, count, listed, scale, title

MAX_OBJECTIVES = 4
MAX_NUMBERED = 16
# Two points of the front that lie so close in every objective need one number.
CLOSE = 0.02
# Of more points than that, what is dominated is drawn small and without bars.
CROWD = 100
NEAR = ("front", "possible")
# Beyond this ratio of largest to smallest, a linear axis presses most points onto one line.
LOG_RATIO = 30.0
LINE_HEIGHT = 0.21
MAX_LINE = 88
# How far from its point a number may stand, in pixels, and from where on a line leads to it.
REACHES, FAR = (13, 16, 21, 28, 37, 48, 60, 75), 22


@dataclass(frozen=True)
class Encoding:
    """Which slot the colours stand for and which the shapes, and what each method looks like."""

    colour_slot: str | None
    colours: Mapping[str, str]
    shape_slot: str | None
    shapes: Mapping[str, str]

    def colour(self, point: Point) -> str:
        """Return the point's colour."""
        return self.colours.get(_method(point, self.colour_slot), COLOURS[0])

    def shape(self, point: Point) -> str:
        """Return the point's marker."""
        return self.shapes.get(_method(point, self.shape_slot), SHAPES[0])


def encoding(points: Sequence[Point]) -> Encoding:
    """Give colours to the slot with the most methods, and shapes to the next."""
    slots = dict.fromkeys(slot for point in points for slot in point.settings)
    methods = {slot: list(dict.fromkeys(_method(p, slot) for p in points)) for slot in slots}
    varied = sorted(
        (slot for slot in slots if 1 < len(methods[slot]) <= len(COLOURS)),
        key=lambda slot: -len(methods[slot]),
    )
    first, second = ([*varied, None, None])[:2]
    return Encoding(
        first,
        dict(zip(methods.get(first or "", []), COLOURS, strict=False)),
        second,
        dict(zip(methods.get(second or "", []), SHAPES, strict=False)),
    )


def _method(point: Point, slot: str | None) -> str:
    fields = point.settings.get(slot or "")
    return "off" if fields is None else str(fields.get("method", "on"))


def pareto_figure(group: Group, name: str, out: Folder) -> Picture | None:
    """Draw each pair of objectives; a fill says which points are on the front of all of them."""
    shown = group.objectives[:MAX_OBJECTIVES]
    pairs = list(combinations(shown, 2))
    drawn = [p for p in group.ok if sum(each.name in p.estimates for each in shown) > 1]
    if not pairs or not drawn:
        return None
    front = group.labelled("front")
    numbered = _numbered(front, shown)
    look = encoding(drawn)
    with drawing(name):
        figure = _pareto_panels(group, pairs, drawn, numbered, look)
        names = listed(title(each.name).lower() for each in group.objectives)
        return save(
            figure,
            name,
            out,
            title=_message(group),
            caption=_pareto_caption(group, drawn, names, len(numbered) < len(front)),
            alt=f"Scatter plots of {names}. On the front: "
            f"{listed(p.name for p in front) or 'no point'}.",
        )


def _numbered(front: Sequence[Point], shown: Sequence[Objective]) -> list[Point]:
    """Return the points of the front that get a number: those that can be told apart."""
    kept: list[Point] = []
    for point in front:
        if not any(_close(point, other, shown) for other in kept):
            kept.append(point)
    return kept[:MAX_NUMBERED]


def _close(point: Point, other: Point, shown: Sequence[Objective]) -> bool:
    pairs = [(point.value(each.name), other.value(each.name)) for each in shown]
    return all(a is not None and b is not None and abs(a - b) <= CLOSE * abs(b) for a, b in pairs)


def _message(group: Group) -> str:
    """Say how many points nothing beats."""
    sure, possible = len(group.labelled("front")), len(group.labelled("possible"))
    total = sure + possible + len(group.labelled("dominated"))
    also = f", and perhaps {possible} more" if possible else ""
    return f"Nothing beats {sure} of {count(total, 'point')} in everything at once{also}"


def _pareto_panels(
    group: Group,
    pairs: Sequence[tuple[Objective, Objective]],
    drawn: Sequence[Point],
    numbered: Sequence[Point],
    look: Encoding,
) -> Figure:
    """Lay out one panel per pair, the key, and the names of the numbered points."""
    columns = 1 if len(pairs) == 1 else 2 if len(pairs) in (2, 4) else 3
    rows = math.ceil(len(pairs) / columns)
    name_columns = 1 if columns == 1 else 2
    names = LINE_HEIGHT * (1 + math.ceil(len(numbered) / name_columns)) + 0.05
    panels_height = (4.6 if columns == 1 else 3.4) * rows + 0.8
    width = 3.9 * columns + (3.6 if columns == 1 else 0)
    figure = Figure(figsize=(width, panels_height + names), layout="constrained")
    top, bottom = figure.subfigures(
        2, 1, squeeze=False, height_ratios=[panels_height, names]
    ).flatten()
    panels = top.subplots(rows, columns, squeeze=False).flatten()
    if _has_accuracy(group):
        note(top, *group.accuracy_notes)
    texts = []
    for axes, pair in zip(panels, pairs, strict=False):
        texts.append(_pareto_panel(axes, group, pair, drawn, numbered, look))
    for axes in panels[len(pairs) :]:
        axes.set_axis_off()
    top.legend(handles=_key(look), loc="outside lower center", ncols=4 if columns > 1 else 3)
    _numbers(bottom, group, numbered, name_columns)
    # Only a finished layout says which pixels are free.
    figure.draw_without_rendering()
    for axes, numbers in zip(panels, texts, strict=False):
        _place_numbers(axes, numbers)
    return figure


def _pareto_caption(group: Group, drawn: Sequence[Point], names: str, some: bool) -> str:
    crowd = _crowded(drawn)
    parts = [
        f"A point is on the front if no other is at least as good in all of {names} and better "
        "in one. Filled: on the front with a probability of at least 90 %, given the noise of "
        "the measurements; pale: of 10 to 90 %; hollow: less; cross: an objective is missing. Grey "
        "steps: the front of the two quantities shown. The arrows point to the better side. "
        "Numbered as in the table: what is on the front"
        f"{', one of those that lie together' if some else ''}.",
        "Small and without bars: what is not on the front." if crowd else "",
        intervals(
            p.estimates[each.name]
            for p in drawn
            if not crowd or group.standing(p).label in NEAR
            for each in group.objectives
            if each.name in p.estimates
        ),
    ]
    limits = [f"{title(each.name).lower()} {each.limit_text}" for each in group.limits]
    if limits:
        parts.append(f"Dashed: the limits of the suite, {listed(limits)}.")
    if _has_accuracy(group):
        parts += group.accuracy_notes
    return " ".join(part for part in parts if part)


def _has_accuracy(group: Group) -> bool:
    return any(each.name.startswith("accuracy") for each in group.objectives)


def _pareto_panel(
    axes: Axes,
    group: Group,
    pair: tuple[Objective, Objective],
    drawn: Sequence[Point],
    numbered: Sequence[Point],
    look: Encoding,
) -> list[Text]:
    x, y = pair
    numbers = []
    found = [p for p in drawn if x.name in p.estimates and y.name in p.estimates]
    scales = [_scale(found, each) for each in pair]
    crowd = _crowded(drawn)
    for point in found:
        label = group.standing(point).label
        colour = look.colour(point) if label != "incomplete" else GREY
        at_x = point.estimates[x.name].value / scales[0].factor
        at_y = point.estimates[y.name].value / scales[1].factor
        small = crowd and label not in NEAR
        if not small:
            whiskers(axes, at_y, point.estimates[x.name], scales[0], colour, upright=False)
            whiskers(axes, at_x, point.estimates[y.name], scales[1], colour, upright=True)
        axes.plot(
            at_x,
            at_y,
            marker=look.shape(point) if label != "incomplete" else "x",
            markersize=4 if small else 7.5,
            markeredgecolor=colour,
            markeredgewidth=0.8 if small else 1.3,
            markerfacecolor={"front": colour, "possible": pale(colour)}.get(label, WHITE),
            linestyle="none",
            zorder=4 if label in NEAR else 3,
        )
        if point in numbered:
            number = str(group.numbers[point.trial])
            numbers.append(
                axes.text(
                    at_x,
                    at_y,
                    number,
                    fontsize=8.5,
                    ha="center",
                    va="center",
                    # Bars may pass here, and the number is more important; no point is covered.
                    zorder=3.6,
                    bbox={
                        "facecolor": WHITE,
                        "edgecolor": "none",
                        "boxstyle": "square,pad=-0.12",
                    },
                )
            )
    _steps(axes, [p for p in found if p.status == "ok"], pair, scales)
    for each, unit, horizontal in ((x, scales[0], True), (y, scales[1], False)):
        _axis(axes, each, unit, found, horizontal)
    return numbers


def _crowded(drawn: Sequence[Point]) -> bool:
    return len(drawn) > CROWD


def _scale(found: Sequence[Point], objective: Objective) -> Scale:
    values = [point.estimates[objective.name].value for point in found]
    return scale(objective.name, values, objective.unit)


def _axis(
    axes: Axes, objective: Objective, unit: Scale, found: Sequence[Point], horizontal: bool
) -> None:
    """Label one axis, with its better side, and mark the bound that the suite asks for."""
    values = [p.estimates[objective.name].value for p in found]
    less = objective.better == "less"
    arrow = ("← " if less else "→ ") if horizontal else ("↓ " if less else "↑ ")
    text = f"{arrow}{drawable(title(objective.name))}{unit.axis}"
    ratio = max(values, default=1) / min(values, default=1) if min(values, default=0) > 0 else 1
    axis = axes.xaxis if horizontal else axes.yaxis
    if ratio > LOG_RATIO:
        (axes.set_xscale if horizontal else axes.set_yscale)("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        text += ", log"
    (axes.set_xlabel if horizontal else axes.set_ylabel)(text)
    if objective.limit is not None:
        line = axes.axvline if horizontal else axes.axhline
        line(objective.limit / unit.factor, color=BLACK, linewidth=1, linestyle=(0, (5, 3)))


def _steps(
    axes: Axes,
    found: Sequence[Point],
    pair: tuple[Objective, Objective],
    scales: Sequence[Scale],
) -> None:
    """Draw the front of the two visible objectives as a staircase."""
    x, y = pair
    costs = [(p.estimates[x.name].cost, p.estimates[y.name].cost) for p in found]
    best = sorted({costs[index] for index in pareto.front(costs)})
    xs = [abs(a) / scales[0].factor for a, _ in best]
    ys = [abs(b) / scales[1].factor for _, b in best]
    axes.step(xs, ys, where="post", color=FAINT, linewidth=1.3, zorder=2)


def _key(look: Encoding) -> list[Line2D]:
    """Explain colours and shapes; the fill is explained in words beneath the figure."""
    signs = [(look.colour_slot, method, "o", each) for method, each in look.colours.items()]
    signs += [(look.shape_slot, method, each, GREY) for method, each in look.shapes.items()]
    return [
        Line2D(
            [],
            [],
            color=colour,
            marker=marker,
            markersize=7.5,
            linestyle="none",
            label=drawable(f"{slot}: {method}", 28),
        )
        for slot, method, marker, colour in signs
    ]


def _numbers(figure: SubFigure, group: Group, numbered: Sequence[Point], columns: int) -> None:
    """List the names of the numbered points in columns, what all have in a line above."""
    common, names = told_apart([point.name for point in numbered], least=3)
    lines = 1 + math.ceil(len(numbered) / columns)
    heading = f"On the front, all with {drawable(common, MAX_LINE)}:" if common else "On the front:"
    if numbered:
        figure.text(0.02, 1 - 0.5 / lines, heading, fontsize=8.5, va="center")
    for index, (point, name) in enumerate(zip(numbered, names, strict=True)):
        column, row = divmod(index, lines - 1)
        figure.text(
            0.02 + column / columns,
            1 - (row + 1.5) / lines,
            f"{group.numbers[point.trial]}: {drawable(name, MAX_LINE)}",
            fontsize=8.5,
            va="center",
        )


def _place_numbers(axes: Axes, numbers: Sequence[Text]) -> None:
    """Move each number to where it covers least, with a line to its point if that is far away."""
    to_pixels, box = axes.transData, axes.bbox
    markers = [line for line in axes.lines if line.get_linestyle() == "None"]
    points = [
        (*to_pixels.transform(line.get_xydata())[0], 0.8 * float(line.get_markersize()))
        for line in markers
    ]
    placed: list[tuple[float, float, float]] = []
    for text in numbers:
        x, y = to_pixels.transform(text.get_position())
        half = 3.6 * len(text.get_text())
        around = [
            (x + reach * math.cos(turn * math.pi / 6), y + reach * math.sin(turn * math.pi / 6))
            for reach in REACHES
            for turn in (1, 2, 4, 5, 11, 10, 8, 7, 3, 0, 9, 6)
        ]
        inside = [
            at for at in around if box.x0 + half < at[0] < box.x1 and box.y0 + 6 < at[1] < box.y1
        ]
        spot = min(
            inside or around,
            key=lambda at: _covered(at, half, placed, points) + 0.12 * math.dist(at, (x, y)),
        )
        placed.append((*spot, half))
        moved = to_pixels.inverted().transform(spot)
        if math.dist(spot, (x, y)) > FAR:
            start = to_pixels.inverted().transform((x, y))
            axes.plot(
                [start[0], moved[0]], [start[1], moved[1]], color=GREY, linewidth=0.6, zorder=3.5
            )
        text.set_position((float(moved[0]), float(moved[1])))


def _covered(
    spot: tuple[float, float],
    half: float,
    placed: Sequence[tuple[float, float, float]],
    points: Sequence[tuple[float, float, float]],
) -> float:
    """Return how much a number there would cover: another number is far worse than a point."""
    x, y = spot
    over = sum(abs(x - a) < half + wide + 2 and abs(y - b) < 12 for a, b, wide in placed)
    under = sum(
        radius * (abs(x - a) < half + radius and abs(y - b) < 5 + radius) for a, b, radius in points
    )
    return 40.0 * over + min(under, 20.0)
