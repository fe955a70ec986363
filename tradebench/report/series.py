"""One setting at a time: points that differ in one setting only, every other setting equal.

What a technique costs is the difference between two points that it alone tells apart. Series are
found in whatever grid was run: any numeric setting that varies while all else stays is an axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tradebench.report.fronts import Group
from tradebench.report.tables import Point, differing
from tradebench.report.units import clean
from tradebench.result import canonical_json
from tradebench.trial import BUDGET, SHAPE, SPLIT, sequences

# Bits that one stored weight takes. A quantized model's come from its quantization; without one,
# from its precision. Autocast methods store fp32 weights and compute in 16 bits: two differences
# from fp32, so they start series of their own.
PRECISION_BITS: Mapping[str | None, float] = {None: 32, "fp32": 32, "bf16": 16}
QUANTIZATION_BITS: Mapping[str, float] = {"int8": 8, "nf4": 4, "fp4": 4, "fp8": 8}
ALONE = "no other technique"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A numeric setting of a slot, or a field of the budget.

    `off` is its value where the slot is off, if that is a value at all.
    """

    slot: str
    field: str
    title: str
    off: float | None = None
    log: bool = False


BITS = Axis(slot="quantization", field="bits", title="Bits per weight", log=True)
AXES = (
    Axis(slot="pruning", field="sparsity", title="Sparsity (share of weights set to 0)", off=0),
    Axis(slot="adapters", field="rank", title="Adapter rank", log=True),
    Axis(slot="checkpointing", field="ratio", title="Share of layers recomputed", off=0),
    Axis(slot="low_rank", field="rank", title="Rank of the factored weights", log=True),
    Axis(slot="sharding", field="degree", title="Sharding degree (devices)", off=1, log=True),
    Axis(slot="data", field="fraction", title="Share of the data used", off=1),
    Axis(slot=BUDGET, field="sequence", title="Longest sequence (tokens)", log=True),
    Axis(slot=BUDGET, field="batch", title="Sequences per micro-batch", log=True),
    Axis(slot=BUDGET, field="accumulation", title="Micro-batches per step", log=True),
)


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points along one axis, by rising setting; `name` is what they have in common.

    `context` is that name without what tells the line from others of the same name, such as the
    method of its own slot. `reference` is the point whose slot is off, where that is no value of
    the setting: training all weights is no adapter rank, and belongs beside the curve.
    """

    axis: Axis
    name: str
    points: tuple[tuple[float, Point], ...]
    reference: Point | None = None
    context: str = ""


def series(group: Group) -> dict[Axis, tuple[Series, ...]]:
    """Return every series of two or more points, by axis; the known axes first."""
    found: dict[Axis, list[Series]] = {BITS: _bits(group.ok), **{axis: [] for axis in AXES}}
    for line in (*_numeric(group.ok), *_split(group.ok)):
        found.setdefault(line.axis, []).append(line)
    return {axis: _told_apart(lines) for axis, lines in found.items() if lines}


def ranked(lines: Sequence[Series]) -> list[Series]:
    """Return the series, those to draw first at the front.

    The longest of the plainest context leads, then come its methods in the same context, then the
    first of every other context.
    """
    rest = sorted(
        lines, key=lambda line: (-len(line.points), min(len(p.settings) for _, p in line.points))
    )
    if not rest:
        return []
    first = [line for line in rest if line.context == rest[0].context]
    heads = {line.context: line for line in reversed(rest)}
    others = [line for line in rest if line not in first]
    return [*first, *sorted(others, key=lambda line: heads[line.context] is not line)]


def bits(point: Point) -> float | None:
    """Return the bits that one stored weight of the model takes, where that is known."""
    quantization = point.settings.get("quantization")
    if quantization is None:
        return PRECISION_BITS.get(_method(point, "precision"))
    given = quantization.get("bits")
    return float(given) if given else QUANTIZATION_BITS.get(str(quantization.get("method")))


def context(point: Point, slot: str | None = None, *fields: str, other: str | None = None) -> str:
    """Return everything about a point but a slot, or fields of it, and but the `other` slot.

    Fields may be those of the budget, which is never left out as a whole.
    """
    first = point.results[0]
    budget = dict(first.budget)
    settings: dict[str, Any] = {
        name: dict(each) for name, each in first.settings.items() if name != other
    }
    if slot is not None and not fields:
        settings.pop(slot, None)
    for field in fields:
        del (budget if slot == BUDGET else settings[str(slot)])[field]
    return canonical_json(
        {"budget": budget, "evaluate": dict(first.evaluate), "settings": settings}
    )


def _numeric(found: Iterable[Point]) -> Iterable[Series]:
    """Find every set of points that agree in all but one numeric field of one slot."""
    known = {(axis.slot, axis.field): axis for axis in AXES}
    by_context = {context(point): point for point in found}
    buckets: dict[tuple[str, str, str], dict[float, Point]] = {}
    without: dict[tuple[str, str, str], str] = {}
    for point in by_context.values():
        for slot, fields in point.settings.items():
            for field, value in fields.items():
                if not _is_number(value) or (slot, field) == (BITS.slot, BITS.field):
                    continue
                key = (slot, field, context(point, slot, field))
                buckets.setdefault(key, {})[float(value)] = point
                without[key] = context(point, slot)
        for field in SHAPE:
            if field in point.results[0].budget:
                key = (BUDGET, field, context(point, BUDGET, field))
                buckets.setdefault(key, {})[float(point.results[0].budget[field])] = point
    for key, bucket in buckets.items():
        slot, field, _ = key
        axis = known.get((slot, field)) or Axis(
            slot=slot, field=field, title=clean(f"{slot} {field}".replace("_", " ")).capitalize()
        )
        off = by_context.get(without[key]) if key in without else None
        if axis.off is not None and off is not None:
            bucket.setdefault(axis.off, off)
        if len(bucket) > 1:
            placed = tuple(sorted(bucket.items(), key=lambda item: item[0]))
            yield Series(
                axis=axis,
                name=_shared(placed),
                points=placed,
                reference=off if axis.off is None else None,
            )


def _split(found: Iterable[Point]) -> Iterable[Series]:
    """Follow the sequences of one step from few large micro-batches to many small ones.

    Two fields of the budget change along such a line, and what is trained on does not.
    """
    axis = next(axis for axis in AXES if (axis.slot, axis.field) == (BUDGET, SPLIT[0]))
    buckets: dict[tuple[int, str], dict[float, Point]] = {}
    for point in found:
        budget = point.results[0].budget
        if all(field in budget for field in SPLIT):
            key = (sequences(budget), context(point, BUDGET, *SPLIT))
            buckets.setdefault(key, {})[float(budget[axis.field])] = point
    for (every, _), bucket in buckets.items():
        if len(bucket) > 1:
            placed = tuple(sorted(bucket.items(), key=lambda item: item[0]))
            name = f"{_shared(placed)}, always {every} sequences a step"
            yield Series(axis=axis, name=name, points=placed)


def _bits(found: Iterable[Point]) -> list[Series]:
    """Follow weights from 32 bits down to few, changing precision or quantization at each step.

    Quantized points join the unquantized one of the same precision, and that one its wider
    neighbours; two methods with equally many bits are two series.
    """
    contexts: dict[str, list[Point]] = {}
    for point in found:
        if bits(point) is not None or _method(point, "quantization"):
            key = context(point, "quantization", other="precision")
            contexts.setdefault(key, []).append(point)
    lines = []
    for members in contexts.values():
        dense = [point for point in members if "quantization" not in point.settings]
        packed = [point for point in members if "quantization" in point.settings]
        lanes = [_with_dense(lane, dense) for lane in _lanes(packed)] or [_with_dense([], dense)]
        for lane in lanes:
            placed = sorted(((bits(point) or 0.0, point) for point in lane), key=lambda it: it[0])
            if len({x for x, _ in placed}) > 1:
                lines.append(Series(axis=BITS, name=_shared(placed), points=tuple(placed)))
    return lines


def _lanes(packed: Sequence[Point]) -> list[list[Point]]:
    """Split quantized points: a lane has one precision, one family and one point per width."""
    lanes: dict[tuple[str | None, str], list[list[Point]]] = {}
    for point in packed:
        if bits(point) is None:
            continue
        family = lanes.setdefault((_method(point, "precision"), _family(point)), [])
        lane = next(
            (each for each in family if bits(point) not in {bits(other) for other in each}), None
        )
        if lane is None:
            family.append([point])
        else:
            lane.append(point)
    return [lane for family in lanes.values() for lane in family]


def _family(point: Point) -> str:
    """Return which quantized points one line may join: one method, where it is told its bits.

    Methods that have one width only are a family: int8 is what lies between bf16 and nf4.
    """
    fields = dict(point.settings["quantization"])
    return canonical_json(fields) if fields.pop("bits", None) else ""


def _with_dense(lane: list[Point], dense: Sequence[Point]) -> list[Point]:
    """Add the unquantized point of the lane's own precision, and the wider ones above it."""
    by_width = {width: point for point in dense if (width := bits(point)) is not None}
    if not lane:
        return list(by_width.values())
    precision = _method(lane[0], "precision")
    own = next((point for point in dense if _method(point, "precision") == precision), None)
    if own is None:
        return lane
    width = bits(own)
    if width is None:
        return lane
    return [*lane, own, *(point for wide, point in by_width.items() if wide > width)]


def _method(point: Point, slot: str) -> str | None:
    fields = point.settings.get(slot)
    return None if fields is None else str(fields.get("method"))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shared(members: Iterable[tuple[float, Point]]) -> str:
    """Return the parts of the labels that all members have."""
    labels = [clean(point.results[0].label).split(" + ") for _, point in members]
    common = [part for part in labels[0] if all(part in other for other in labels[1:])]
    return " + ".join(common) or ALONE


def _told_apart(lines: Sequence[Series]) -> tuple[Series, ...]:
    """Name what tells series apart where their names alone do not: methods, else any setting."""
    by_name: dict[str, list[Series]] = {}
    for line in lines:
        by_name.setdefault(line.name, []).append(line)
    named = []
    for line in lines:
        twins = by_name[line.name]
        name = line.name
        if len(twins) > 1:
            name = _with_methods(line, twins)
            if sum(_with_methods(twin, twins) == name for twin in twins) > 1:
                last = [_telling(twin).results[0] for twin in twins]
                knobs = differing(_telling(line).results[0], last)
                own = f"{line.axis.slot}.{line.axis.field}="
                knobs = [knob for knob in knobs if not knob.startswith(own)]
                name = f"{line.name} ({', '.join(knobs) or line.points[0][1].trial})"
        named.append(replace(line, name=name, context=line.name))
    return tuple(named)


def _with_methods(line: Series, twins: Sequence[Series]) -> str:
    """Return the name with the methods of the line's own slot: `bf16 + nf4 double, int8`."""
    every = [fields for twin in twins for fields in _own_settings(twin)]
    words = []
    for fields in _own_settings(line):
        same = [other for other in every if other.get("method") == fields.get("method")]
        knobs = [
            key if value is True else f"{key} {clean(str(value))}"
            for key, value in fields.items()
            if value is not False and len({canonical_json({key: o.get(key)}) for o in same}) > 1
        ]
        words.append(" ".join([clean(str(fields.get("method", line.axis.slot))), *knobs]))
    said = ", ".join(dict.fromkeys(words))
    return said if line.name == ALONE else f"{line.name} + {said}" if said else line.name


def _own_settings(line: Series) -> list[dict[str, Any]]:
    """Return the settings of the slot that the line follows, but for what it follows."""
    slot, field = line.axis.slot, line.axis.field
    return [
        {key: value for key, value in point.settings[slot].items() if key != field}
        for _, point in line.points
        if slot in point.settings
    ]


def _telling(line: Series) -> Point:
    """Return the point whose settings speak for the line: one where its slot is on."""
    return next((p for _, p in line.points if line.axis.slot in p.settings), line.points[0][1])
