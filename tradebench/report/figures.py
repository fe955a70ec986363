"""Every figure of a report, as SVG and PNG."""

from __future__ import annotations

from tradebench.report import bars, curves, scatter
from tradebench.report.curves import Part
from tradebench.report.fronts import Group
from tradebench.report.series import series
from tradebench.report.style import Folder, Picture

FRONT = "pareto"  # the name that the figure of the front starts with


def draw(group: Group, out: Folder, suffix: str = "", beside: Group | None = None) -> list[Picture]:
    """Draw every figure that the group has values for.

    Where the group `beside` varies the same setting, it stands below, on axes of its own.
    """
    other = {} if beside is None else series(beside)
    pictures = [scatter.pareto_figure(group, f"{FRONT}{suffix}", out)]
    for axis, lines in series(group).items():
        parts = [Part(group=group, axis=axis, lines=lines)]
        if beside is not None and axis in other:
            parts.append(Part(group=beside, axis=axis, lines=other[axis]))
        name = f"series-{axis.slot}-{axis.field}{suffix}"
        pictures.append(curves.series_figure(parts, name, out))
    pictures.append(bars.memory_figure(group, f"memory{suffix}", out))
    pictures += bars.accuracy_figures(group, f"accuracy{suffix}", out)
    pictures.append(bars.time_figure(group, f"time{suffix}", out))
    return [picture for picture in pictures if picture is not None]
