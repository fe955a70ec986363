"""Predictions for published rows: each is asked for once, and its source's counter is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from tradebench.plan import validate
from tradebench.plan.validate import PROGRAMS, STAND_IN, predictions
from tradebench.plan.watcher import Watcher
from tradebench.published import Expressed, expressed
from tradebench.published.comparison import Prediction
from tradebench.target import Target
from tradebench.trial import Trial

ROWS = expressed()
MOMENTS = ("", ".load", ".compress", ".after_forward", ".forward_backward")
# Values that tell which measurement they are.
VALUES = {
    f"peak_{counter}_bytes{moment}": 1000 * first + second
    for first, counter in enumerate(("allocated", "reserved", "process"), start=1)
    for second, moment in enumerate(MOMENTS)
} | {"step_seconds": 0.25}


class Pool:
    """Stands for the pool; answers every trial alike and keeps what it was asked."""

    def __init__(self, measurements: Mapping[str, Any]) -> None:
        self.answer: Mapping[str, Any] = {"status": "ok", "measurements": measurements}
        self.asked: list[tuple[str, Target, str]] = []

    def __call__(
        self, trials: Sequence[Trial], target: Target, *, processes: int, program: str
    ) -> Iterator[tuple[Trial, Mapping[str, Any]]]:
        assert processes == 3
        for trial in trials:
            self.asked.append((trial.id, target, program))
            yield trial, self.answer


def answered(
    monkeypatch: pytest.MonkeyPatch, measurements: Mapping[str, Any]
) -> tuple[dict[str, Prediction | str], Pool]:
    pool = Pool(measurements)
    monkeypatch.setattr(validate, "predict", pool)
    return predictions(processes=3), pool


def told(value: float, interval: tuple[float, float] | None = None) -> dict[str, Any]:
    return {"value": value, "unit": "B", **({"interval": interval} if interval else {})}


def measured() -> dict[str, Any]:
    return {name: told(value) for name, value in VALUES.items()}


def of(counter: str, moment: str) -> list[Expressed]:
    found = [row for row in ROWS if (row.reading.counter, row.reading.moment) == (counter, moment)]
    assert found
    return found


def test_every_expressed_row_has_a_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = answered(monkeypatch, measured())

    assert set(found) == {row.row.id for row in ROWS}
    assert [name for name, each in found.items() if isinstance(each, str)] == []


def test_a_trial_is_asked_for_once_on_each_device_with_the_libraries_of_its_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, pool = answered(monkeypatch, measured())
    expected = {(row.trial.id, row.device or STAND_IN, PROGRAMS[row.code]) for row in ROWS}

    assert len(pool.asked) == len(expected) < len(ROWS)
    assert {(trial, target.device, program) for trial, target, program in pool.asked} == expected
    assert {target.allocator for _, target, _ in pool.asked} == {""}
    assert {program for _, _, program in pool.asked} == set(PROGRAMS.values())


def test_somebody_hears_of_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    listener = Watcher()
    monkeypatch.setattr(listener, "predicted", heard.append)
    monkeypatch.setattr(validate, "predict", Pool(measured()))
    predictions(processes=3, watch=listener)

    assert sorted(heard) == sorted(row.row.id for row in ROWS)


@pytest.mark.parametrize(
    ("counter", "moment", "name"),
    [
        ("allocated", "training", "peak_allocated_bytes"),
        ("reserved", "training", "peak_reserved_bytes"),
        ("step", "training", "step_seconds"),
        ("allocated", "after_forward", "peak_allocated_bytes.after_forward"),
        ("allocated", "forward_backward", "peak_allocated_bytes.forward_backward"),
    ],
)
def test_the_counter_that_the_source_read_is_read(
    counter: str, moment: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = answered(monkeypatch, measured())

    for row in of(counter, moment):
        assert found[row.row.id] == Prediction(value=VALUES[name])


@pytest.mark.parametrize(("load", "compress"), [(5, 9), (9, 5)])
def test_a_model_is_read_once_it_is_built(
    load: int, compress: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = {"load": load, "compress": compress}
    found, _ = answered(
        monkeypatch,
        {
            f"peak_{counter}_bytes.{phase}": told(size, (size - 1, size + 2))
            for counter in ("allocated", "reserved", "process")
            for phase, size in phases.items()
        },
    )
    (row, *_) = [row for row in ROWS if row.reading.moment == "load"]

    assert found[row.row.id] == Prediction(value=9, interval=(8, 11))


def test_what_is_not_predicted_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = answered(monkeypatch, {"step_seconds": told(0.5, (0.25, 1.0))})
    (timed, *_), (counted, *_) = of("step", "training"), of("reserved", "training")

    assert found[timed.row.id] == Prediction(value=0.5, interval=(0.25, 1.0))
    assert found[counted.row.id] == "reserved at training is not predicted"


def test_a_point_that_failed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool({})
    pool.answer = {"status": "failed", "reason": "It could not be."}
    monkeypatch.setattr(validate, "predict", pool)

    assert set(predictions(processes=3).values()) == {"It could not be."}
