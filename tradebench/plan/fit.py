"""Whether a prediction fits on a device, and what is nearest to it that does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tradebench.devices import GIB, Device
from tradebench.result import PHASES, Fit, Measurement, Phase, Result
from tradebench.trial import Trial, reshaped, sequences

NEEDED = "peak_process_bytes"


def fit(measurements: Mapping[str, Measurement], device: Device) -> Fit | None:
    """How a point's memory stands to a device; None where it was not predicted for one."""
    phases: dict[Phase, Measurement] = {}
    for phase in PHASES:
        found = measurements.get(NEEDED if phase == "train" else f"{NEEDED}.{phase}")
        if found is not None:
            phases[phase] = found
    if not phases:
        return None
    worst = max(phases, key=lambda phase: _interval(phases[phase])[1])
    low, high = (max(_interval(found)[end] for found in phases.values()) for end in (0, 1))
    least, most = device.reported_bytes
    verdict = "fits" if high <= least else "does not fit" if low > most else "tight"
    return Fit(
        device=device.id,
        verdict=verdict,
        needed=(low, high),
        capacity=(least, most),
        phase=worst,
    )


def _interval(measurement: Measurement) -> tuple[int, int]:
    low, high = measurement.interval or (measurement.value, measurement.value)
    return int(low), int(high)


def advise(results: Sequence[Result], beyond: Sequence[Result] = ()) -> list[Result]:
    """The results, each that does not fit with the nearest change that does.

    Nearest is the fewest changes, then a point of the suite before one from `beyond` it, then the
    shortest predicted step. One that trains on something else is the last resort, the one that
    trains on most before the others.
    """
    inside = [(result, True) for result in results if fits(result)]
    outside = [(result, False) for result in beyond if fits(result)]
    return [
        result.model_copy(update={"fit": result.fit.model_copy(update={"advice": advice})})
        if result.fit is not None
        and not fits(result)
        and (advice := _nearest(result, [*inside, *outside])) is not None
        else result
        for result in results
    ]


def fits(result: Result) -> bool:
    """Whether a point is certain to fit on the device that it was predicted for."""
    return result.fit is not None and result.fit.verdict == "fits"


def _nearest(result: Result, fitting: Iterable[tuple[Result, bool]]) -> str | None:
    def distance(candidate: tuple[Result, bool]) -> tuple[bool, int, bool, int, float]:
        other, inside = candidate
        seconds = other.value("step_seconds")
        waited = float("inf") if seconds is None else seconds
        another, changes = apart(result, other)
        return another, changes, not inside, -_tokens(other) if another else 0, waited

    other, inside = min(fitting, key=distance, default=(None, True))
    if other is None or result.fit is None or other.fit is None:
        return None
    labels = {part.slot: part.label for part in Trial.from_payload(other.payload()).techniques}
    names = [labels.get(slot, f"{slot} off") for slot in changed(result, other)]
    names += [
        f"{' x '.join(f'{field} {other.budget[field]}' for field in fields)} instead of "
        f"{' x '.join(str(result.budget[field]) for field in fields)}"
        for fields in reshaped(result.budget, other.budget)
    ]
    verb = "saves" if len(names) == 1 else "save"
    saved = (result.fit.needed[1] - other.fit.needed[1]) / GIB
    spare = (other.fit.capacity[0] - other.fit.needed[1]) / GIB
    return (
        f"{' and '.join(names)} {verb} {saved:.0f} GiB: fits with {spare:.0f} GiB to spare"
        f"{_asked(result, other)}{'' if inside else ' (not in the suite)'}"
    )


def _asked(result: Result, other: Result) -> str:
    """What a point trains on instead of another's tokens, where that is something else."""
    if not apart(result, other)[0]:
        return ""
    ours, theirs = (
        f"{sequences(each.budget)} x {each.budget['sequence']}" for each in (result, other)
    )
    return f", but a step trains on {theirs} tokens at most, not {ours}"


def _tokens(result: Result) -> int:
    """The most tokens that a step of one rank trains on."""
    return sequences(result.budget) * int(result.budget.get("sequence", 1))


def apart(result: Result, other: Result) -> tuple[bool, int]:
    """Whether two points train on something else, and the number of changes between them.

    A step's sequences in smaller micro-batches are the same sequences.
    """
    shaped = reshaped(result.budget, other.budget)
    same = all(len(fields) > 1 for fields in shaped)
    return not same, len(changed(result, other)) + len(shaped)


def changed(result: Result, other: Result) -> list[str]:
    """The slots in which two points differ."""
    mine, theirs = result.settings, other.settings
    return [slot for slot in {**mine, **theirs} if mine.get(slot) != theirs.get(slot)]
