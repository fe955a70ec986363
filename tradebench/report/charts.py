"""The page's interactive drawings, as Vega-Lite specifications made with Altair.

A specification holds no numbers: the page's script gives it the points that its reader has chosen,
under the names of `NamedData`, and puts titles in the place of every text that starts with `$`.
Colours are variables of the page's style sheet, so that a drawing follows the theme without being
drawn again, in print too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import altair as alt
import vl_convert

from tradebench.report.scatter import Encoding
from tradebench.report.style import BLUE, CATEGORY_COLOURS, ROLES, SHAPES
from tradebench.result import CATEGORIES

Specification = dict[str, Any]

TEXT, QUIET, LINE = "var(--text)", "var(--quiet)", "var(--line)"
# Matplotlib's markers by the names, or outlines, that Vega knows them by.
MARKERS: Mapping[str, str] = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "M-1,-.6L-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0Z",
}
assert set(MARKERS) == set(SHAPES)


@lru_cache(maxsize=1)
def javascript() -> str:
    """Return Vega, Vega-Lite and vega-embed as one ECMAScript module that sets `vegaEmbed`."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def scatter(look: Encoding) -> Specification:
    """Any two quantities of the `points`, with intervals, the `front` of the two and limits.

    A point has `x` and `y`, `colour` and `shape`, how far it is `filled` (0 to 1), whether it is
    `kept`, and what its tooltip says; `x_bars` and `y_bars` are the points with `x_low` and
    `x_high`, or `y_low` and `y_high`. The signal `focus` is the number of the point that is marked;
    the box that its reader draws is the signal `brush`.
    """
    drawn: dict[str, Any] = {
        "type": "quantitative",
        "scale": alt.Scale(zero=False, nice=False, padding=14),
    }
    place = {
        "x": alt.X(field="x", title="$x", **drawn),
        "y": alt.Y(field="y", title="$y", **drawn),
    }
    tint: dict[str, Any] = {
        "field": "colour",
        "type": "nominal",
        "title": look.colour_slot,
        "scale": alt.Scale(
            domain=list(look.colours), range=[_variable(each) for each in look.colours.values()]
        ),
        "legend": _legend(look.colours),
    }
    shape = alt.Scale(
        domain=list(look.shapes), range=[MARKERS[each] for each in look.shapes.values()]
    )
    points = alt.Chart(alt.NamedData("points"))
    kept = alt.condition("datum.kept", alt.value(1), alt.value(0.12))
    dots = (
        points.mark_point()
        .encode(
            **place,
            stroke=alt.Stroke(**tint),
            fill=alt.Fill(**tint),
            shape=alt.Shape(
                "shape:N",
                title=look.shape_slot,
                scale=shape,
                legend=_legend(look.shapes, symbolFillColor=QUIET, symbolStrokeColor=QUIET),
            ),
            fillOpacity=alt.FillOpacity("filled:Q", legend=None, scale=None),
            opacity=kept,
            size=alt.condition("datum.number === focus", alt.value(420), alt.value(75)),
            strokeWidth=alt.condition("datum.number === focus", alt.value(5), alt.value(1.7)),
            tooltip=[
                alt.Tooltip(f"{field}:N", title=head)
                for field, head in (
                    ("name", "Point"),
                    ("status", "Status"),
                    ("standing", "Front"),
                    ("across", "Across"),
                    ("up", "Up"),
                    ("needs", "Cost"),
                )
            ],
        )
        .add_params(
            alt.selection_interval(
                name="brush", mark=alt.BrushConfig(fill=QUIET, fillOpacity=0.15)
            ),
            alt.param(name="focus", value=0),
        )
    )
    bars = [
        alt.Chart(alt.NamedData(f"{axis}_bars"))
        .mark_rule(strokeWidth=1)
        .encode(
            **{**place, axis: place[axis].field(f"{axis}_low")},
            **{f"{axis}2": f"{axis}_high"},
            stroke=alt.Stroke(**tint),
            opacity=alt.condition("datum.kept", alt.value(0.45), alt.value(0.06)),
        )
        for axis in ("x", "y")
    ]
    steps = (
        alt.Chart(alt.NamedData("front"))
        .mark_line(interpolate="step-after", stroke=QUIET, strokeWidth=1.5, opacity=0.7)
        .encode(**place)
    )
    limits = [
        alt.Chart(alt.NamedData(f"{axis}_limit"))
        .mark_rule(stroke=TEXT, strokeDash=[5, 4])
        .encode(**{axis: place[axis]})
        for axis in ("x", "y")
    ]
    return _finished(
        alt.layer(*limits, steps, *bars, dots).properties(width="container", height=400)
    )


def maps() -> Specification:
    """The best value in every cell of two settings, one map for each value of a third.

    A cell has `across`, `up` and `each`, their places `column`, `row` and `page`, its value as
    `text`, how deep it is painted (`share`, 0 to 1) and the number of the point that it stands
    for; empty cells have none.
    """
    base = alt.Chart().encode(
        x=alt.X("across:O", title="$x", sort=_by("column")).axis(labelAngle=-35, labelLimit=150),
        y=alt.Y("up:O", title="$y", sort=_by("row")).axis(labelLimit=170),
        tooltip=[
            alt.Tooltip("name:N", title="Point"),
            alt.Tooltip("text:N", title="$value"),
            alt.Tooltip("points:N", title="Chosen from"),
        ],
    )
    painted = base.mark_rect(fill=_variable(BLUE), stroke="var(--page)", strokeWidth=2).encode(
        fillOpacity=alt.FillOpacity("share:Q", legend=None).scale(domain=[0, 1], range=[0.05, 0.55])
    )
    words = base.mark_text(fontSize=12, fill=TEXT).encode(text="text:N")
    drawn = alt.layer(painted, words, data=alt.NamedData("cells")).properties(
        width=alt.Step(66), height=alt.Step(30)
    )
    return _finished(
        drawn.facet(
            facet=alt.Facet("each:N", title=None, sort=_by("page")).header(
                labelColor=TEXT, labelFontSize=13, labelAnchor="start", labelLimit=400
            ),
            columns=2,
        )
    )


def _by(field: str) -> alt.EncodingSortField:
    return alt.EncodingSortField(field=field, op="min", order="ascending")


def memory() -> Specification:
    """Memory by category over one step: `moments`, each with `at` and a category's `size`.

    `parts` are those of the step, each with its `name` and where it starts, its `at`.
    """
    along = alt.X("at:Q", title="one training step, from its start to its end").scale(nice=False)
    area = (
        alt.Chart(alt.NamedData("moments"))
        .mark_area()
        .encode(
            x=along.axis(labels=False, ticks=False, grid=False),
            y=alt.Y("size:Q", title="$y", stack="zero"),
            **_categories(),
        )
    )
    starts = alt.Chart(alt.NamedData("parts")).encode(x=along)
    lines = starts.mark_rule(stroke=TEXT, strokeDash=[3, 3], opacity=0.6)
    names = starts.mark_text(align="left", dx=4, y=-6, fill=TEXT, fontSize=12).encode(text="name:N")
    return _finished(alt.layer(area, lines, names).properties(width="container", height=200))


def peak() -> Specification:
    """Memory by category at the peak, as one bar of `parts`, each with `category`, `size`."""
    drawn = (
        alt.Chart(alt.NamedData("parts"))
        .mark_bar()
        .encode(x=alt.X("size:Q", title="$y", stack="zero"), **_categories())
    )
    return _finished(drawn.properties(width="container", height=34))


def _categories() -> dict[str, Any]:
    scale = alt.Scale(
        domain=list(CATEGORIES), range=[_variable(CATEGORY_COLOURS[each]) for each in CATEGORIES]
    )
    return {
        "color": alt.Color("category:N", title=None).scale(scale),
        "order": alt.Order("place:Q"),
        "tooltip": [alt.Tooltip("category:N"), alt.Tooltip("text:N", title="size")],
    }


def _variable(colour: str) -> str:
    """Return the colour as the variable that the page has for it in either theme."""
    return f"var(--figure-{ROLES[colour]})"


def _legend(names: Mapping[str, str], **signs: Any) -> alt.Legend | None:
    """Explain what differs; a sign that all points share explains nothing."""
    return alt.Legend(symbolOpacity=1, **signs) if len(names) > 1 else None


def _finished(chart: alt.Chart | alt.LayerChart | alt.FacetChart) -> Specification:
    """Return the chart in the page's colours and font, as plain data."""
    drawn = (
        chart.configure(background="transparent", font="system-ui, sans-serif")
        .configure_axis(
            labelColor=TEXT,
            titleColor=TEXT,
            gridColor=LINE,
            domainColor=QUIET,
            tickColor=QUIET,
            labelFontSize=12,
            titleFontSize=13,
            titleFontWeight="normal",
        )
        .configure_legend(
            labelColor=TEXT,
            titleColor=TEXT,
            labelFontSize=12,
            titleFontSize=12,
            orient="bottom",
            columns=4,
            labelLimit=220,
            symbolSize=80,
        )
        .configure_view(stroke=None)
    )
    return dict(drawn.to_dict())
