"""The Pareto figure: every pair of objectives, and which points are on the front of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
    whiskers,
)
from tradebench.report.tables import Point
from tradebench.report.units import Scale, count, listed, scale, title

MAX_OBJECTIVES = 4
MAX_NUMBERED = 16
# Beyond this ratio of largest to smallest, a linear axis presses most points onto one line.
LOG_RATIO = 30.0
LINE_HEIGHT = 0.21


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
    numbered = group.labelled("front")[:MAX_NUMBERED]
    look = encoding(drawn)
    with drawing(name):
        figure = _pareto_panels(group, pairs, drawn, numbered, look)
        names = listed(title(each.name).lower() for each in group.objectives)
        return save(
            figure,
            name,
            out,
            title=_message(group),
            caption=_pareto_caption(group, drawn, names),
            alt=f"Scatter plots of {names}. On the front: "
            f"{listed(p.name for p in group.labelled('front')) or 'no point'}.",
        )


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
    names = LINE_HEIGHT * math.ceil(len(numbered) / name_columns) + 0.05
    panels_height = 3.4 * rows + 0.8
    width = 3.9 * columns + (2.6 if columns == 1 else 0)
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


def _pareto_caption(group: Group, drawn: Sequence[Point], names: str) -> str:
    parts = [
        f"A point is on the front if no other is at least as good in all of {names} and better "
        "in one. Filled: on the front with a probability of at least 90 %, given the noise of "
        "the measurements; pale: of 10 to 90 %; hollow: less; cross: an objective is missing. Grey "
        "steps: the front of the two quantities shown. The arrows point to the better side. "
        "Numbered as in the table: what is on the front.",
        intervals(
            p.estimates[each.name]
            for p in drawn
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
    for point in found:
        label = group.standing(point).label
        colour = look.colour(point) if label != "incomplete" else GREY
        at_x = point.estimates[x.name].value / scales[0].factor
        at_y = point.estimates[y.name].value / scales[1].factor
        whiskers(axes, at_y, point.estimates[x.name], scales[0], colour, upright=False)
        whiskers(axes, at_x, point.estimates[y.name], scales[1], colour, upright=True)
        axes.plot(
            at_x,
            at_y,
            marker=look.shape(point) if label != "incomplete" else "x",
            markersize=7.5,
            markeredgecolor=colour,
            markeredgewidth=1.3,
            markerfacecolor={"front": colour, "possible": pale(colour)}.get(label, WHITE),
            linestyle="none",
            zorder=4 if label in ("front", "possible") else 3,
        )
        if point in numbered:
            number = str(group.numbers[point.trial])
            numbers.append(
                axes.text(at_x, at_y, number, fontsize=8.5, ha="center", va="center", zorder=6)
            )
    _steps(axes, [p for p in found if p.status == "ok"], pair, scales)
    for each, unit, horizontal in ((x, scales[0], True), (y, scales[1], False)):
        _axis(axes, each, unit, found, horizontal)
    return numbers


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
    """List the names of the numbered points in columns."""
    lines = max(1, math.ceil(len(numbered) / columns))
    for index, point in enumerate(numbered):
        column, row = divmod(index, lines)
        figure.text(
            0.02 + column / columns,
            1 - (row + 0.5) / lines,
            f"{group.numbers[point.trial]}: {drawable(point.name, 68)}",
            fontsize=8.5,
            va="center",
        )


def _place_numbers(axes: Axes, numbers: Sequence[Text]) -> None:
    """Move each number to the side of its point where it covers least."""
    to_pixels, box = axes.transData, axes.bbox
    starts = [tuple(to_pixels.transform(text.get_position())) for text in numbers]
    markers = [line for line in axes.lines if line.get_linestyle() == "None"]
    taken = [tuple(to_pixels.transform(line.get_xydata())[0]) for line in markers]
    for text, (x, y) in zip(numbers, starts, strict=True):
        around = [
            (x + reach * dx, y + reach * dy)
            for reach in (12, 20, 29)
            for dx, dy in ((0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8), (0, 1), (1, 0))
        ]
        inside = [at for at in around if box.x0 < at[0] < box.x1 and box.y0 < at[1] < box.y1]
        spot = max(inside or around, key=partial(_room, taken=taken))
        taken.append(spot)
        moved = to_pixels.inverted().transform(spot)
        text.set_position((float(moved[0]), float(moved[1])))


def _room(spot: tuple[float, float], taken: Sequence[tuple[float, float]]) -> float:
    """Return how far the nearest drawn thing is, as far as that matters."""
    return min(min(math.dist(spot, other), 12.0) for other in taken)
