"""Readings: counters at moments that only published sources read, against the record's levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tradebench.predict import on_device
from tradebench.predict.allocator import AllocatorSettings
from tradebench.predict.figures import Span, levels, spans
from tradebench.predict.library import Library
from tradebench.predict.on_device import tape
from tradebench.predict.point import predict_point
from tradebench.predict.reading import predict_readings, readings
from tradebench.predict.record import Record
from tradebench.target import Target
from tradebench.trial import Trial

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]

TARGET = Target(device="a100-80gb", allocator="")
EXACT = AllocatorSettings()
BLOCK = 512  # bytes that the allocator rounds blocks up to
WIDTH = 128 * 256 * 4  # bytes of the tiny model's embedding


@pytest.fixture(scope="module", params=[1, 3], ids=["one", "accumulated"])
def trial(request: pytest.FixtureRequest, tiny_trial: Make) -> Trial:
    return tiny_trial({}, batch=4, sequence=64, accumulation=request.param)


@pytest.fixture(scope="module")
def library(trial: Trial) -> Library:
    return Library([trial], device="cuda")


@pytest.fixture(scope="module")
def record(trial: Trial, library: Library) -> Record:
    return library.record(trial)[0]


def parts(record: Record, name: str) -> list[Span]:
    return [span for span in spans(record, "part") if span.name == name]


def values(record: Record) -> dict[str, float]:
    found = readings(record, tape(record, "sm_80"), EXACT)
    assert {each.unit for each in found.values()} == {"B"}
    return {name: each.value for name, each in found.items()}


@pytest.fixture
def open_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that hide nothing."""
    monkeypatch.setattr(on_device, "hidden", lambda operation, architecture: ())
    monkeypatch.setattr(on_device, "persistent", lambda operation, architecture: ())


@pytest.mark.usefixtures("open_kernels")
def test_what_is_alive_after_the_first_forward_pass_is_read_there(record: Record) -> None:
    """Give or take what the allocator rounds each of its blocks up by."""
    alive = int(levels(record)[parts(record, "forward")[0].end - 1])
    found = values(record)["peak_allocated_bytes.after_forward"]

    assert alive <= found <= alive + BLOCK * len(record.sizes)
    assert found < 1.05 * alive


@pytest.mark.usefixtures("open_kernels")
def test_the_first_step_is_read_before_its_optimizer_has_states(record: Record) -> None:
    level = levels(record)
    train = next(span for span in spans(record, "phase") if span.name == "train")
    end = parts(record, "optimizer")[0].start
    highest = int(level[train.start : end].max())
    found = values(record)["peak_allocated_bytes.forward_backward"]

    assert highest <= found < 1.05 * highest
    assert len(parts(record, "optimizer")) > 1


def test_moments_are_ordered_as_what_they_hold(
    trial: Trial, library: Library, record: Record
) -> None:
    found = predict_readings(trial, library, TARGET)["measurements"]
    for counter in ("allocated", "reserved"):
        after, before, whole = (
            found[f"peak_{counter}_bytes{moment}"]["value"]
            for moment in (".after_forward", ".forward_backward", "")
        )

        assert WIDTH < after <= before < whole


def test_a_reading_has_all_that_a_point_has(trial: Trial, library: Library) -> None:
    plain = predict_point(trial, library, TARGET)
    found: dict[str, Any] = predict_readings(trial, library, TARGET)
    added = {
        f"peak_{counter}_bytes.{moment}"
        for counter in ("allocated", "reserved")
        for moment in ("after_forward", "forward_backward")
    }

    assert set(found["measurements"]) - set(plain["measurements"]) == added
    for name in added:
        del found["measurements"][name]
    assert found == plain
