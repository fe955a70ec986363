"""The front as characters: two objectives on a terminal, the front by the numbers of its points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from tradebench.report.fronts import MARKS, Group, Objective
from tradebench.report.tables import Point
from tradebench.report.units import Scale, scale, significant, title

LOG_RATIO = 30.0  # as in the figures: beyond it a linear axis presses most points onto one line
MAX_WIDTH, HEIGHT = 110, 15
LEAST_WIDTH = 40
STYLES = {"front": "bold green", "possible": "yellow", "dominated": "dim"}
# What is more important is drawn over what is less so.
ORDER = ("dominated", "possible", "front")


@dataclass(frozen=True)
class Axis:
    """One objective laid out on so many cells; the better side is left, or at the top."""

    objective: Objective
    low: float
    high: float
    log: bool
    unit: Scale

    def cell(self, value: float, cells: int) -> int:
        """The cell of a value, the first for the lowest."""
        ends = (self.low, self.high, value)
        low, high, here = map(math.log, ends) if self.log else ends
        return cells // 2 if high == low else round((here - low) / (high - low) * (cells - 1))

    def text(self, value: float) -> str:
        """A value without its unit."""
        return significant(value / self.unit.factor)

    @property
    def head(self) -> str:
        """What the axis shows, in which unit, and which way is better."""
        log = ", log" if self.log else ""
        return (
            f"{title(self.objective.name)}{self.unit.axis}{log}, {self.objective.better} is better"
        )


def plot(group: Group, width: int) -> Text | None:
    """Draw memory, or the first objective, against accuracy, or the second, on so many columns.

    None where there are no two objectives, fewer than two points with both, or no room.
    """
    pair = _pair(group)
    if pair is None or width < LEAST_WIDTH:
        return None
    points = [
        point
        for point in group.ok
        if group.standing(point).probability is not None
        and all(each.name in point.estimates for each in pair)
    ]
    if len(points) < 2:
        return None
    x, y = (_axis(each, points) for each in pair)
    ticks = [y.text(y.high), y.text(y.low)]
    margin = max(map(len, ticks))
    columns = min(width, MAX_WIDTH) - margin - 3
    cells = _cells(group, points, x, y, columns)
    text = Text(f"{y.head}\n", no_wrap=True, overflow="ellipsis")
    for row in range(HEIGHT):
        tick = ticks[0] if row == 0 else ticks[1] if row == HEIGHT - 1 else ""
        text.append(f"{tick:>{margin}} │", style="dim")
        for column in range(columns):
            char, style = cells.get((row, column), (" ", ""))
            text.append(char, style=style)
        text.append("\n")
    left, right = x.text(x.low), x.text(x.high)
    text.append(f"{'':>{margin}} └{'─' * columns}\n", style="dim")
    gap = max(1, columns - len(left) - len(right))
    text.append(f"{'':>{margin}}  {left}{'':{gap}}{right}\n", style="dim")
    text.append(f"{'':>{margin}}  {x.head}\n")
    text.append(_legend(group))
    return text


def _legend(group: Group) -> str:
    """What the signs mean, as far as there are any."""
    words = {
        "front": "number: on the front",
        "possible": f"{MARKS['possible']} possibly",
        "dominated": f"{MARKS['dominated']} beaten",
    }
    found = [said for label, said in words.items() if group.labelled(label)]  # type: ignore[arg-type]
    more = " (of all objectives)" if len(group.objectives) > 2 else ""
    return f"{', '.join(found)}{more}"


def _pair(group: Group) -> tuple[Objective, Objective] | None:
    """Memory or what comes first, against the first accuracy or what comes next."""
    if len(group.objectives) < 2:
        return None
    across = next((e for e in group.objectives if e.name == group.memory), group.objectives[0])
    others = [each for each in group.objectives if each is not across]
    up = next((each for each in others if each.name.startswith("accuracy")), others[0])
    return across, up


def _axis(objective: Objective, points: Sequence[Point]) -> Axis:
    values = [point.estimates[objective.name].value for point in points]
    low, high = min(values), max(values)
    log = low > 0 and high / low > LOG_RATIO
    return Axis(objective, low, high, log, scale(objective.name, values, objective.unit))


def _cells(
    group: Group, points: Sequence[Point], x: Axis, y: Axis, columns: int
) -> dict[tuple[int, int], tuple[str, str]]:
    """Row and column to sign and style; a number that would touch another one makes way."""
    cells: dict[tuple[int, int], tuple[str, str]] = {}
    for label in ORDER:
        for point in points:
            if group.standing(point).label != label:
                continue
            row = HEIGHT - 1 - y.cell(point.estimates[y.objective.name].value, HEIGHT)
            column = x.cell(point.estimates[x.objective.name].value, columns)
            sign = str(group.numbers[point.trial]) if label == "front" else MARKS[label]
            column = min(column, columns - len(sign))
            for nearby in sorted(range(HEIGHT), key=lambda each: (abs(each - row), each)):
                # A number beside a number would be read as one.
                around = range(column - 1, column + len(sign) + 1)
                taken = [cells.get((nearby, at), (" ", ""))[0] for at in around]
                if label != "front" or not any(each.isdigit() for each in taken):
                    row = nearby
                    break
            for at, char in enumerate(sign):
                cells[row, column + at] = (char, STYLES[label])
    return cells
