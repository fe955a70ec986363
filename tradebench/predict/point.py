"""One point predicted: from its record to the measurements of a Result.

What every device has in common comes from the record alone. For a device its kernels, its allocator
and its arithmetic are added, each with the interval of what is not known about it.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tradebench import devices
from tradebench.devices import Device, overheads
from tradebench.devices.calibration import load
from tradebench.devices.overheads import Overhead
from tradebench.errors import UserError
from tradebench.predict.allocator import AllocatorSettings, parse_settings
from tradebench.predict.figures import course, levels, peak, peak_bytes, spans
from tradebench.predict.library import Library
from tradebench.predict.memory import Reached
from tradebench.predict.on_device import tape
from tradebench.predict.record import Record
from tradebench.predict.schedule import Step
from tradebench.predict.step import last_step
from tradebench.result import Measurement
from tradebench.target import Target
from tradebench.trial import Trial
from tradebench.worlds.meters import phase_peaks

OUTLIERS = (
    "how many columns of activations LLM.int8() multiplies in 16 bits depends on values: intervals "
    "reach from none, as nearly in trained weights, to all, which random weights can come near"
)

# What is most where all columns hold outliers: every tensor and kernel is at least as large then.
BOUNDED = (
    *(f"peak_{counter}_bytes" for counter in ("tensor", "allocated", "reserved", "process")),
    "step_seconds",
    "tokens_per_second",
)

_reached: dict[str, Reached] = {}  # data and tasks, read once for all families of a suite


Make = Callable[[Trial, Library, Target], dict[str, Any]]


def predict(payloads: Sequence[Mapping[str, Any]], target: Mapping[str, Any]) -> list[Any]:
    """Predictions for trials that share records, as JSON: what a pool's process is asked for."""
    return answers(payloads, target, predict_point)


def answers(
    payloads: Sequence[Mapping[str, Any]], target: Mapping[str, Any], make: Make
) -> list[Any]:
    """What `make` predicts of each trial, or why it cannot."""
    gc.freeze()  # what the imports made is never garbage, and looking through it takes time
    trials = [Trial.from_payload(payload) for payload in payloads]
    aim = Target.model_validate(target)
    library = Library(trials, _reached, "cpu" if aim.device is None else "cuda")
    return [_answer(trial, library, aim, make) for trial in trials]


def _answer(trial: Trial, library: Library, target: Target, make: Make) -> dict[str, Any]:
    try:
        found = make(trial, library, target)
    except UserError as error:
        return {"status": "failed", "reason": str(error)}
    except Exception as error:  # a point that cannot be predicted is a finding about that point
        place = traceback.extract_tb(error.__traceback__)[-1]
        return {
            "status": "failed",
            "reason": f"{type(error).__name__}: {error} ({place.name}, line {place.lineno})",
        }
    return {"status": "ok", **found}


def predict_point(trial: Trial, library: Library, target: Target) -> dict[str, Any]:
    """Measurements, warnings and the course of a training step.

    Raises:
        UserError: the config, the data, a task or the target cannot be found or read.
    """
    record, warnings = library.record(trial)
    most = library.most(trial, record)
    measurements, timeline = of_record(record)
    if most is not None:
        measurements = reaching(measurements, of_record(most)[0])
        warnings = [*warnings, OUTLIERS]
    if target.device is not None:
        device = devices.find(target.device)
        settings = parse_settings(target.allocator)
        outside = _outside(trial, device, target)
        found, notes = on_device(trial, record, device, settings, outside)
        if most is not None:
            highest, further = on_device(trial, most, device, settings, outside)
            found = reaching(found, highest)
            notes = list(dict.fromkeys([*notes, *further]))
        measurements |= found
        warnings = [*warnings, *notes]
        if target.overheads is not None and outside.assumed:
            parts = " and ".join(outside.assumed)
            warnings.append(f"readings lack {trial.ranks} ranks: bytes of {parts} are assumed")
        calibration = load(target.calibration) if target.calibration is not None else None
        step = last_step(record, device, trial.ranks, calibration)
        if step is not None:
            tokens = library.tokens(trial)
            timed = of_step(step, tokens)
            longest = None if most is None else last_step(most, device, trial.ranks, calibration)
            if longest is not None:
                timed = reaching(timed, of_step(longest, tokens))
            measurements |= timed
            timeline["shares"] = {name: round(share, 4) for name, share in step.shares.items()}
    return {
        "measurements": {
            name: each.model_dump(mode="json", exclude_defaults=True)
            for name, each in measurements.items()
        },
        "warnings": warnings,
        "timeline": timeline,
    }


def of_record(record: Record) -> tuple[dict[str, Measurement], dict[str, Any]]:
    """Tensor peaks of every phase, the training peak by category, and a step's course."""
    level = levels(record)
    phases = {span.name: span for span in spans(record, "phase")}
    found = phase_peaks(
        "peak_tensor_bytes", {name: peak_bytes(level, span) for name, span in phases.items()}
    )
    if record.host_bytes:
        found["peak_host_bytes"] = Measurement(value=record.host_bytes, unit="B")
    timeline: dict[str, Any] = {}
    if "train" in phases:
        highest = peak(record, level, phases["train"])
        found |= {
            f"peak_{category}_bytes": Measurement(value=size, unit="B")
            for category, size in highest.categories.items()
        }
        last = list(spans(record, "step"))[-1]
        parts = [span for span in spans(record, "part") if last.start <= span.start < last.end]
        length = last.end - last.start
        timeline = {
            "moments": course(record, last),
            "parts": [
                {
                    "name": span.name,
                    "start": round((span.start - last.start) / length, 5),
                    "end": round((span.end - last.start) / length, 5),
                    "peak_bytes": peak_bytes(level, span),
                }
                for span in parts
            ],
            "largest_modules": dict(highest.modules),
        }
    return found, timeline


def of_step(step: Step, tokens: float) -> dict[str, Measurement]:
    """A step's seconds with their interval, its tokens, and the throughput that they give."""
    seconds = step.seconds
    return {
        "step_seconds": Measurement(
            value=seconds.value, unit="s", interval=(seconds.low, seconds.high)
        ),
        "tokens_per_step": Measurement(value=tokens, unit="1", better="more"),
        "tokens_per_second": Measurement(
            value=tokens / seconds.value,
            unit="1/s",
            better="more",
            interval=(tokens / seconds.high, tokens / seconds.low),
        ),
    }


def reaching(
    found: Mapping[str, Measurement], other: Mapping[str, Measurement]
) -> dict[str, Measurement]:
    """What was found, in intervals that hold what is found in the other case as well.

    Parts of a peak stay as they are: in the other case it may be another moment's.
    """
    return {name: _reaching(name, each, other.get(name, each)) for name, each in found.items()}


def _reaching(name: str, one: Measurement, other: Measurement) -> Measurement:
    ends = [end for each in (one, other) for end in each.interval or (each.value, each.value)]
    low, high = min(ends), max(ends)
    if low == high or not name.startswith(BOUNDED):
        return one
    return one.model_copy(update={"interval": (low, high)})


def on_device(
    trial: Trial,
    record: Record,
    device: Device,
    settings: AllocatorSettings,
    outside: Overhead,
) -> tuple[dict[str, Measurement], list[str]]:
    """Allocated and reserved peaks and what the device sees, by phase; and what is unverified."""
    taken = tape(record, device.architecture)
    usages = taken.usages(settings)
    found = phase_peaks(
        "peak_allocated_bytes", {name: usage.allocated for name, usage in usages.items()}
    )
    found |= phase_peaks(
        "peak_reserved_bytes", {name: usage.reserved for name, usage in usages.items()}
    )
    low, high = device.reported_bytes
    largest = max(usage.reserved for usage in usages.values())
    least = largest
    if largest + outside.high > low and max(u.requested for u in usages.values()) <= high:
        # What is reserved can shrink where it must: cached segments go back before memory runs out.
        least = taken.smallest_capacity(settings)
        found["smallest_capacity_bytes"] = Measurement(value=least, unit="B")
    for name, usage in usages.items():
        key = "peak_process_bytes" if name == "train" else f"peak_process_bytes.{name}"
        found[key] = Measurement(
            value=usage.reserved + outside.typical,
            unit="B",
            interval=(min(usage.reserved, least) + outside.low, usage.reserved + outside.high),
        )
    return found, [f"no GPU run has checked this buffer: {each}" for each in taken.unverified]


def _outside(trial: Trial, device: Device, target: Target) -> Overhead:
    """What a process holds outside the allocator: as it was read off the device, if it was."""
    measured = overheads.load(target.overheads) if target.overheads is not None else None
    return overheads.overhead(device.architecture, ranks=trial.ranks, measured=measured)
