"""What the page's own script works with: every point as plain values, and the sizes of GPUs."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tradebench.devices import DEVICES, GIB
from tradebench.report import charts, ready
from tradebench.report.choices import Choice, choices, crossed
from tradebench.report.content import DOING, Column, advice, standing
from tradebench.report.fronts import Group
from tradebench.report.scatter import encoding
from tradebench.report.series import bits
from tradebench.report.tables import TAKING, Point
from tradebench.report.units import scale, show
from tradebench.result import CATEGORIES, PHASES

MAX_NAME = 400
MOMENTS = 80  # of a step's memory, which are drawn
FINE = 1000  # steps of a drawing's height
DIGITS = 5
MILLION_IN_HOURS = scale("device_seconds_per_token", (), "s").factor


def gpu_sizes() -> list[dict[str, Any]]:
    """Return each nominal size of the catalogue once, with the least and most that is reported."""
    sizes: dict[int, list[int]] = {}
    for device in DEVICES.values():
        sizes.setdefault(device.memory_bytes, []).extend(device.reported_bytes)
    return [
        {
            "name": f"{size // GIB} GB",
            "gib": round(min(reported) / GIB, 3),
            "most": round(max(reported) / GIB, 3),
        }
        for size, reported in sorted(sizes.items())
    ]


def payload(group: Group, shown: tuple[Column, ...], directory: Path) -> str:
    """Return the group as JSON, packed by gzip in base 64: a plan's points are mostly alike.

    `directory` is that of the run, where a prediction has left how memory moves in a step.
    """
    look = encoding(group.ok)
    varied = choices(group)
    data = {
        "kind": group.kind,
        "accuracyNote": " ".join(group.accuracy_notes) if group.tasks else "",
        "columns": [_column(group, column) for column in shown],
        "colours": list(look.colours),
        "shapes": list(look.shapes),
        "categories": CATEGORIES,
        "choices": [{"title": choice.title, "values": choice.values} for choice in varied],
        "crossed": [varied.index(choice) for choice in crossed(varied)],
        "charts": {
            "scatter": charts.scatter(look),
            "maps": charts.maps(),
            "memory": charts.memory(),
            "peak": charts.peak(),
        },
        "points": [
            {
                **_point(group, point, shown, varied),
                "colour": _place(look.colours.values(), look.colour(point)),
                "shape": _place(look.shapes.values(), look.shape(point)),
                "moments": moments(directory, point.trial),
                "yaml": ready.suite_file(point),
                "code": ready.library_code(point),
            }
            for point in group.ordered
        ],
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _column(group: Group, column: Column) -> dict[str, Any]:
    limit = next((each.limit for each in group.limits if each.name == column.name), None)
    return {
        "name": column.name,
        "head": column.head,
        "better": next(
            p.estimates[column.name].better for p in group.ok if column.name in p.estimates
        ),
        "limit": None if limit is None else _short(limit / column.scale.factor),
    }


def _place(signs: Iterable[str], sign: str) -> int:
    """Return where the sign stands; a point without values may have one that is not drawn."""
    found = list(signs)
    return found.index(sign) if sign in found else 0


def _point(
    group: Group, point: Point, shown: tuple[Column, ...], varied: tuple[Choice, ...]
) -> dict[str, Any]:
    return {
        "number": group.numbers[point.trial],
        "name": point.name[:MAX_NAME],
        "status": status(point),
        "reasons": list(point.reasons),
        "advice": advice(point),
        "label": group.standing(point).label,
        "standing": standing(group, point),
        "at": [choice.places.get(point.trial) for choice in varied],
        "gpus": point.devices,
        "needs": needs(group, point),
        "room": _short(point.room),
        "left": left(point),
        "phase": phase(group, point),
        "host": _short((point.value("peak_host_bytes") or 0) / GIB),
        "cost": _ends(group, point, "device_seconds_per_token", MILLION_IN_HOURS),
        "step": step(group, point),
        "values": [_ends(group, point, column.name, column.scale.factor) for column in shown],
        "parts": [_short((point.value(f"peak_{name}_bytes") or 0) / GIB) for name in CATEGORIES],
    }


def _ends(group: Group, point: Point, name: str, unit: float) -> list[float] | None:
    """Return the value and, unless it is exact, the ends of its interval, in a unit."""
    estimate = point.estimates.get(name)
    if estimate is None or not math.isfinite(estimate.value):
        return None
    ends: tuple[float, ...] = group.interval(point, name) or ()
    if estimate.unit == "1" and 0 <= estimate.value <= 1:  # a share ends at none and all
        ends = tuple(min(max(each, 0.0), 1.0) for each in ends)
    return [_short(each / unit) for each in (estimate.value, *ends)]


def _short(value: float) -> float:
    """Return the value in as many digits as can be told apart on a page."""
    return float(f"{value:.{DIGITS}g}")


def left(point: Point) -> list[float]:
    """Return what a model keeps: all its weights or not, bits of each, rank of an adapter."""
    settings = point.settings
    whole = not any(slot in settings for slot in TAKING)
    quantized = settings.get("quantization", {})
    # Scales that are quantized themselves say less than whole ones.
    width = (bits(point) or 0) - bool(quantized.get("double")) / 2
    return [float(whole), width, float(settings.get("adapters", {}).get("rank") or 0)]


def needs(group: Group, point: Point) -> list[float] | None:
    """Return the least and the most GiB that one device must give, over all phases."""
    if point.fit is not None:
        return [_short(each / GIB) for each in point.fit.needed]
    worst = point.worst(group.memory) if group.memory else None
    return None if worst is None or point.status != "ok" else [_short(worst / GIB)] * 2


def moments(directory: Path, trial: str) -> dict[str, Any] | None:
    """Return how memory moves over one predicted step, as few numbers as a drawing needs.

    `most` is the highest moment in GiB. `at` says where evenly spread moments lie in the step, and
    `sizes` what each category that holds anything has then, in thousandths of the step and of
    `most`; `parts` are names and starts of the step's parts. Of moments that lie together the
    highest is kept, so that no peak goes missing. None where the run keeps no timeline.
    """
    file = directory / "timelines" / f"{trial}.json.gz"
    try:
        found = json.loads(gzip.decompress(file.read_bytes()))
        every = [
            (float(each["at"]), [int(each.get(name, 0)) for name in CATEGORIES])
            for each in found["moments"]
        ]
        parts = [[str(each["name"]), round(FINE * each["start"])] for each in found["parts"]]
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    most = max((sum(held) for _, held in every), default=0)
    if not most:
        return None
    width = max(1, math.ceil(len(every) / MOMENTS))
    kept = [
        max(every[at : at + width], key=lambda each: sum(each[1]))
        for at in range(0, len(every), width)
    ]
    sizes = [
        [round(FINE * held[place] / most) for _, held in kept] for place in range(len(CATEGORIES))
    ]
    return {
        "most": _short(most / GIB),
        "at": [round(FINE * at) for at, _ in kept],
        "sizes": [
            [place, line]
            for place, line in zip(range(len(CATEGORIES)), sizes, strict=True)
            if any(line)
        ],
        "parts": parts,
    }


def status(point: Point) -> str:
    """Return how the point ended; of a plan, on which device."""
    return point.status_text if point.fit is None else f"{point.status_text} on {point.fit.device}"


def phase(group: Group, point: Point) -> str:
    """Return what a planned point does where it needs most, or a measured one but for training."""
    if point.fit is not None:
        return DOING[point.fit.phase]
    values = {each: point.value(f"{group.memory}.{each}") or 0.0 for each in PHASES}
    most = max(values, key=lambda each: values[each])
    trained = point.value(group.memory or "") or 0.0
    return DOING[most] if values[most] > trained else ""


def step(group: Group, point: Point) -> str:
    """Return the step time with its interval, as text."""
    found = point.estimates.get("step_seconds")
    if found is None:
        return ""
    text = show("step_seconds", found.value, found.unit)
    ends = group.interval(point, "step_seconds")
    if not ends:
        return text
    low, high = (show("step_seconds", each, found.unit) for each in ends)
    return f"{text} ({'somewhere in' if found.predicted else '95 % interval'} {low} to {high})"
