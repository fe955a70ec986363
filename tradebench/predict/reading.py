"""What others have read of a training run, predicted: counters at the moments they read them at.

Beside the peaks of phases, sources read what is alive when the first forward pass ends, and the
peak of a first step before its optimizer has states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tradebench import devices
from tradebench.predict.allocator import AllocatorSettings, parse_settings
from tradebench.predict.figures import Span, spans
from tradebench.predict.library import Library
from tradebench.predict.on_device import Tape, tape
from tradebench.predict.point import answers, predict_point, reaching
from tradebench.predict.record import Record
from tradebench.result import Measurement
from tradebench.target import Target
from tradebench.trial import Trial


def predict(payloads: Sequence[Mapping[str, Any]], target: Mapping[str, Any]) -> list[Any]:
    """Predictions for trials, with every moment that a source may have read."""
    return answers(payloads, target, predict_readings)


def predict_readings(trial: Trial, library: Library, target: Target) -> dict[str, Any]:
    """A point's prediction, and its counters at further moments.

    Raises:
        UserError: the config or the target cannot be found or read.
    """
    found = predict_point(trial, library, target)
    record, _ = library.record(trial)
    assert target.device is not None, "what a device's counters read depends on the device"
    architecture = devices.find(target.device).architecture
    settings = parse_settings(target.allocator)
    moments = readings(record, tape(record, architecture), settings)
    most = library.most(trial, record)
    if most is not None:
        moments = reaching(moments, readings(most, tape(most, architecture), settings))
    return {
        **found,
        "measurements": found["measurements"]
        | {name: each.model_dump(mode="json") for name, each in moments.items()},
    }


def readings(record: Record, taken: Tape, settings: AllocatorSettings) -> dict[str, Measurement]:
    """Allocated and reserved bytes after the first forward pass and before the first step's end."""
    parts: dict[str, Span] = {}
    for span in spans(record, "part"):
        parts.setdefault(span.name, span)
    found: dict[str, Measurement] = {}
    forward = int(taken.places[parts["forward"].end])
    optimizer = int(taken.places[parts["optimizer"].start])
    for moment, until, window in (
        ("after_forward", forward, forward),
        ("forward_backward", optimizer, taken.windows["train"]),
    ):
        usage = taken.until(until, window, settings)
        for counter, size in (("allocated", usage.allocated), ("reserved", usage.reserved)):
            name = f"peak_{counter}_bytes.{moment}"
            found[name] = Measurement(value=size, unit="B")
    return found
