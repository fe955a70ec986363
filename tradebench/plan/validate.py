"""Predictions held against what others have published: `tradebench plan --validate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tradebench import devices
from tradebench.plan.pool import predict
from tradebench.plan.watcher import Watcher
from tradebench.published import Expressed, expressed
from tradebench.published import results as figures
from tradebench.published.comparison import Prediction
from tradebench.published.expression import Code
from tradebench.result import Environment, Measurement, Result
from tradebench.target import Target

# By the month whose libraries a source ran.
PROGRAMS: Mapping[Code | None, str] = {
    None: "tradebench.predict.reading:predict",
    "2024-01": "tradebench.predict.past:predict",
}
# The sources ran torch's allocator as it comes, unless a row says otherwise.
ALLOCATOR = ""
# For rows that do not name their GPU: most others ran on this one.
STAND_IN = "a100-80gb"
ALIKE = {"active": "allocated", "device": "process"}


def predictions(*, processes: int, watch: Watcher | None = None) -> dict[str, Prediction | str]:
    """What is predicted for every published row that can be said as a trial, or why nothing is."""
    watcher = watch or Watcher()
    found: dict[str, Prediction | str] = {}
    for (device, code), rows in _by_machine(expressed()).items():
        of_trial: dict[str, list[Expressed]] = {}
        for row in rows:
            of_trial.setdefault(row.trial.id, []).append(row)
        trials = list({row.trial.id: row.trial for row in rows}.values())
        target = Target(device=device, allocator=ALLOCATOR)
        program = PROGRAMS[code]
        for trial, answer in predict(trials, target, processes=processes, program=program):
            for row in of_trial[trial.id]:
                found[row.row.id] = _read(row, answer)
                watcher.predicted(row.row.id)
    return found


def _by_machine(
    rows: Iterable[Expressed],
) -> Mapping[tuple[str, Code | None], Sequence[Expressed]]:
    """Rows by the device they ran on and the libraries they ran with."""
    groups: dict[tuple[str, Code | None], list[Expressed]] = {}
    for row in rows:
        groups.setdefault((row.device or STAND_IN, row.code), []).append(row)
    return groups


def _read(row: Expressed, answer: Mapping[str, Any]) -> Prediction | str:
    """The counter that the source read, from a prediction."""
    if answer["status"] != "ok":
        return str(answer["reason"])
    measurements = answer["measurements"]
    reading = row.reading
    counter = ALIKE.get(reading.counter, reading.counter)
    stem = "step_seconds" if counter == "step" else f"peak_{counter}_bytes"
    # Sources read the model once it is built, with whatever building it took.
    phases = (".load", ".compress") if reading.moment == "load" else (f".{reading.moment}",)
    names = (stem,) if reading.moment == "training" else tuple(stem + each for each in phases)
    values = [measurements[name] for name in names if name in measurements]
    if not values:
        return f"{reading.counter} at {reading.moment} is not predicted"
    highest = max(values, key=lambda each: float(each["value"]))
    interval = highest.get("interval")
    return Prediction(
        value=float(highest["value"]), interval=(interval[0], interval[1]) if interval else None
    )


def results(found: Mapping[str, Prediction | str]) -> tuple[Result, ...]:
    """The predictions as Results: each the twin of a published one, with the same one quantity."""
    return tuple(
        _twin(figure, row, found[row.row.id])
        for figure, row in zip(figures(), expressed(), strict=True)
    )


def _twin(figure: Result, row: Expressed, prediction: Prediction | str) -> Result:
    device = devices.find(row.device or STAND_IN)
    measurements = {}
    if isinstance(prediction, Prediction):
        measurements[row.reading.measurement] = Measurement(
            value=prediction.value, unit=row.reading.unit, interval=prediction.interval
        )
    return figure.model_copy(
        update={
            "kind": "predicted",
            "status": "ok" if measurements else "failed",
            "reason": None if measurements else str(prediction),
            "measurements": measurements,
            "environment": Environment(hardware={"predicted_for": device.name}),
        }
    )
