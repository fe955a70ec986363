"""What the page's own script works with: every point as plain values, and the sizes of GPUs."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

from tradebench.devices import DEVICES, GIB
from tradebench.report import ready
from tradebench.report.content import Column, cell
from tradebench.report.fronts import Group
from tradebench.report.scatter import Encoding, encoding
from tradebench.report.style import CATEGORY_COLOURS
from tradebench.report.tables import Point
from tradebench.report.units import show
from tradebench.result import CATEGORIES

# Distinct sizes of the cards people own, and how many of them stand in a machine.
COUNTS = (1, 2, 4, 8)
MAX_NAME = 400
MOMENTS = 40  # of a step's memory, which are drawn


def gpu_sizes() -> list[dict[str, Any]]:
    """Return each nominal size of the catalogue once, with the least that its drivers report."""
    sizes: dict[int, list[int]] = {}
    for device in DEVICES.values():
        sizes.setdefault(device.memory_bytes, []).append(device.reported_bytes[0])
    return [
        {"name": f"{size // GIB} GB", "gib": round(min(reported) / GIB, 3)}
        for size, reported in sorted(sizes.items())
    ]


def payload(group: Group, shown: tuple[Column, ...], directory: Path) -> str:
    """Return the group as JSON that cannot end the element it lies in.

    `directory` is that of the run, where a prediction has left how memory moves in a step.
    """
    look = encoding(group.ok)
    data = {
        "kind": group.kind,
        "accuracyNote": " ".join(group.accuracy_notes),
        "columns": [
            {
                "name": column.name,
                "head": column.head,
                "factor": column.scale.factor,
                "better": _better(group, column.name),
            }
            for column in shown
        ],
        "colourSlot": look.colour_slot,
        "colours": list(look.colours),
        "shapeSlot": look.shape_slot,
        "shapes": list(look.shapes),
        "categories": [[name, CATEGORY_COLOURS[name]] for name in CATEGORIES],
        "points": [
            {**_point(group, point, shown, look), "moments": moments(directory, point.trial)}
            for point in group.ordered
        ],
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _better(group: Group, name: str) -> str:
    return next(p.estimates[name].better for p in group.ok if name in p.estimates)


def _place(signs: list[str], sign: str) -> int:
    """Return where the sign stands; a point without values may have one that is not drawn."""
    return signs.index(sign) if sign in signs else 0


def _point(
    group: Group,
    point: Point,
    shown: tuple[Column, ...],
    look: Encoding,
) -> dict[str, Any]:
    values: list[float | None] = []
    errors: list[str] = []
    for column in shown:
        value = point.value(column.name)
        values.append(value if value is not None and math.isfinite(value) else None)
        errors.append(cell(group, point, column).plus_minus)
    return {
        "number": group.numbers[point.trial],
        "name": point.name[:MAX_NAME],
        "status": point.status_text,
        "reasons": list(point.reasons),
        "advice": (point.fit.advice if point.fit is not None else None) or "",
        "label": group.standing(point).label,
        "colour": _place(list(look.colours.values()), look.colour(point)),
        "shape": _place(list(look.shapes.values()), look.shape(point)),
        "gpus": int(point.settings.get("sharding", {}).get("degree", 1)),
        "needs": needs(group, point),
        "rate": point.value("tokens_per_second"),
        "step": step(point),
        "values": values,
        "errors": errors,
        "parts": [point.value(f"peak_{name}_bytes") or 0 for name in CATEGORIES],
        "yaml": ready.suite_file(point),
        "code": ready.library_code(point),
    }


def needs(group: Group, point: Point) -> list[float] | None:
    """Return the least and the most bytes that one device must give, over all phases."""
    if point.fit is not None:
        return [float(each) for each in point.fit.needed]
    worst = point.worst(group.memory) if group.memory else None
    return None if worst is None or point.status != "ok" else [worst, worst]


def moments(directory: Path, trial: str) -> list[list[int]]:
    """Return the predicted bytes of each category at a few moments of one step, in order.

    Of moments that lie together the highest one is kept, so that no peak goes missing. Empty where
    the run keeps none, as the committed plan does.
    """
    file = directory / "timelines" / f"{trial}.json.gz"
    try:
        found = json.loads(gzip.decompress(file.read_bytes()))["moments"]
        every = [[int(each.get(name, 0)) for name in CATEGORIES] for each in found]
    except (OSError, EOFError, ValueError, KeyError):
        return []
    width = max(1, math.ceil(len(every) / MOMENTS))
    return [max(every[at : at + width], key=sum) for at in range(0, len(every), width)]


def step(point: Point) -> str:
    """Return the step time with its interval, as text."""
    found = point.estimates.get("step_seconds")
    if found is None:
        return ""
    text = show("step_seconds", found.value, found.unit)
    if found.interval is None:
        return text
    low, high = (show("step_seconds", each, found.unit) for each in found.interval)
    return f"{text} ({'somewhere in' if found.predicted else '95 % interval'} {low} to {high})"
