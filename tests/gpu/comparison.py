"""Measured against predicted: how far a rung's prediction may be off, and whether it is.

Predictions are made anew each time, by the code of today, from what a Result says about its trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tradebench import devices
from tradebench.devices import Device
from tradebench.predict.library import Library
from tradebench.predict.point import predict_point
from tradebench.predict.reading import predict_readings
from tradebench.result import Measurement, Result
from tradebench.target import Target
from tradebench.trial import Trial

# The share by which a prediction may be off: what was promised before any was held against a
# device. Segments that do not grow leave more to chance. A measurement inside the interval of its
# prediction is right, whatever the share: the interval says what is not known.
LIMITS: Mapping[str, float] = {
    "peak_allocated_bytes": 0.01,
    "peak_reserved_bytes": 0.03,
    "peak_process_bytes": 0.03,
    "step_seconds": 0.25,
}
FIXED_SEGMENTS = 0.05  # for what is reserved, and what follows from it


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One measurement of a trial and its prediction."""

    name: str
    measured: float
    predicted: float
    interval: tuple[float, float] | None
    limit: float

    @property
    def error(self) -> float:
        """The share of the measurement by which the prediction is too large."""
        return self.predicted / self.measured - 1

    @property
    def within(self) -> bool:
        """Whether that is allowed."""
        inside = self.interval is not None and self.interval[0] <= self.measured <= self.interval[1]
        return inside or abs(self.error) <= self.limit

    def __str__(self) -> str:
        return (
            f"{self.name} was {self.measured:.6g} and is predicted as {self.predicted:.6g}: "
            f"{self.error:+.1%}, where {self.limit:.0%} is allowed"
        )


def trial_of(result: Result) -> Trial:
    """The trial that a Result is of."""
    parts = ("model", "budget", "evaluate", "settings")
    return Trial.from_payload({name: getattr(result, name) for name in parts})


def allocator_of(result: Result) -> str:
    """What PYTORCH_ALLOC_CONF said; nothing where it was not set."""
    return result.environment.variables.get("PYTORCH_ALLOC_CONF", "")


def prediction(
    result: Result, device: str, calibration: Path | None, library: Library
) -> dict[str, Measurement]:
    """What would be predicted of this Result's trial on a device of the catalogue."""
    target = Target(
        device=device,
        allocator=allocator_of(result),
        calibration=None if calibration is None else str(calibration),
    )
    return _measurements(predict_point(trial_of(result), library, target))


def row_prediction(
    payload: Mapping[str, Any], device: str, library: Library
) -> dict[str, Measurement]:
    """What would be predicted at the moments that published rows were read at."""
    trial = Trial.from_payload(payload)
    return _measurements(predict_readings(trial, library, Target(device=device)))


def _measurements(found: Mapping[str, Any]) -> dict[str, Measurement]:
    return {
        name: Measurement.model_validate(value) for name, value in found["measurements"].items()
    }


def compare(result: Result, predicted: Mapping[str, Measurement]) -> Iterator[Compared]:
    """Every measurement that has a limit and a prediction, in all phases."""
    grows = "expandable_segments:True" in allocator_of(result)
    for name, measurement in result.measurements.items():
        stem = name.split(".")[0]
        if stem not in LIMITS or name not in predicted:
            continue
        fixed = not grows and stem in ("peak_reserved_bytes", "peak_process_bytes")
        yield Compared(
            name=name,
            measured=float(measurement.value),
            predicted=float(predicted[name].value),
            interval=predicted[name].interval,
            limit=FIXED_SEGMENTS if fixed else LIMITS[stem],
        )


def misses(result: Result, predicted: Mapping[str, Measurement], device: str) -> list[str]:
    """A sentence for everything in which the prediction is wrong; none where it is right."""
    if result.status == "oom":
        return _fits(result, predicted, devices.find(device))
    found = [str(compared) for compared in compare(result, predicted) if not compared.within]
    return [f"{result.label}: {sentence}" for sentence in found]


def _fits(result: Result, predicted: Mapping[str, Measurement], device: Device) -> list[str]:
    """A sentence where memory ran out although the prediction, at its highest, has room."""
    peaks = [
        measurement.value if measurement.interval is None else measurement.interval[1]
        for name, measurement in predicted.items()
        if name.startswith("peak_process_bytes")
    ]
    if max(peaks) > device.reported_bytes[0]:
        return []
    return [
        f"{result.label}: memory ran out, yet {max(peaks):.6g} bytes are predicted of "
        f"{device.reported_bytes[0]:.6g}"
    ]
