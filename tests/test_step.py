"""The time of a step from a record: which operations it has, and that more work takes longer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.devices import find
from tradebench.devices.calibration import Calibration
from tradebench.errors import UserError
from tradebench.predict.cost import CALL_SECONDS
from tradebench.predict.figures import spans
from tradebench.predict.flops import flops
from tradebench.predict.operations import Operation, Spec
from tradebench.predict.record import Record
from tradebench.predict.recorder import CALL, Mark
from tradebench.predict.schedule import step_seconds
from tradebench.predict.step import last_step, segments
from tradebench.trial import Trial

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]
Recorded = Callable[[Trial], Record]

H100 = find("h100-80gb")
POINTS: dict[str, dict[str, Any]] = {
    "full": {},
    "qlora": {
        "precision": {"method": "bf16"},
        "quantization": {"method": "nf4"},
        "adapters": {"method": "lora", "rank": 4},
        "checkpointing": {"method": "full", "ratio": 1.0},
    },
}


@pytest.fixture(scope="module", params=list(POINTS.values()), ids=list(POINTS))
def record(request: pytest.FixtureRequest, tiny_trial: Make, recorded: Recorded) -> Record:
    return recorded(tiny_trial(request.param))


def called(record: Record, start: int, end: int) -> Counter[Operation]:
    """The operations of these events, one after the other."""
    return Counter(
        record.operations[event - CALL]
        for event in record.events[start:end].tolist()
        if event >= CALL
    )


def counted(record: Record) -> Counter[Operation]:
    """The operations of all segments, each as often as it is repeated."""
    found: Counter[Operation] = Counter()
    for segment in segments(record):
        for operation, count in segment.operations.items():
            found[operation] += count * segment.times
    return found


# Which operations.


def test_segments_have_the_operations_of_the_last_step(record: Record) -> None:
    *earlier, last = spans(record, "step")
    expected = called(record, last.start, last.end)

    assert earlier
    assert counted(record) == expected
    assert sum(expected.values()) > 100


def test_layers_that_do_the_same_are_one_segment(record: Record) -> None:
    """Four layers forwards, and four backwards; the first of them may do less than its fellows."""
    times = [segment.times for segment in segments(record)]

    assert max(times) in (3, 4)
    assert sum(count in (3, 4) for count in times) >= 2


@st.composite
def steps(draw: st.DrawFn) -> Record:
    """Two steps of a few kinds of operations, each in some layer, with blocks between."""
    events: list[int] = []
    layers: list[int] = []
    marks: list[Mark] = []
    for _ in range(2):
        marks.append(Mark(len(events), "step", "step"))
        for layer, kinds in draw(
            st.lists(
                st.tuples(st.integers(-1, 3), st.lists(st.integers(-1, 2), max_size=3)), max_size=8
            )
        ):
            for kind in kinds:
                events.append(CALL + kind if kind >= 0 else 0)
                layers.append(layer)
        marks.append(Mark(len(events), "step", ""))
    operations = tuple(Operation(f"aten.made_up_{kind}", (), ()) for kind in range(3))
    return Record(
        events=np.array(events, dtype=np.int64),
        layers=np.array(layers, dtype=np.int64),
        sizes=np.array([1], dtype=np.int64),
        categories=np.array([0], dtype=np.int64),
        paths=np.array([0], dtype=np.int64),
        modules=("",),
        operations=operations,
        marks=tuple(marks),
    )


def runs(record: Record) -> list[Counter[Operation]]:
    """The operations of each run of one layer in the last step, in order."""
    last = list(spans(record, "step"))[-1]
    found: list[Counter[Operation]] = []
    before: int | None = None
    for event, layer in zip(
        record.events[last.start : last.end].tolist(),
        record.layers[last.start : last.end].tolist(),
        strict=True,
    ):
        if event >= CALL:
            if layer != before:
                found.append(Counter())
            found[-1][record.operations[event - CALL]] += 1
            before = layer
    return found


@given(record=steps())
@settings(derandomize=True, max_examples=200, deadline=None)
def test_segments_unrolled_are_the_layers_in_their_order(record: Record) -> None:
    found = list(segments(record))

    assert [dict(segment.operations) for segment in found for _ in range(segment.times)] == [
        dict(run) for run in runs(record)
    ]
    assert all(one.operations != other.operations for one, other in pairwise(found))


# How long.


def test_a_step_is_timed_as_its_segments_are(record: Record) -> None:
    found = last_step(record, H100, 1)
    expected = counted(record)

    assert found == step_seconds(list(segments(record)), H100)
    assert found is not None
    assert found.operations == sum(expected.values())
    assert found.flops == sum(flops(operation) * count for operation, count in expected.items())
    assert sum(found.shares.values()) == pytest.approx(1)


def test_a_tiny_step_takes_what_the_host_needs_to_issue_it(record: Record) -> None:
    found = last_step(record, H100, 1)

    assert found is not None
    assert found.seconds.value == pytest.approx(CALL_SECONDS.value * found.operations)
    assert found.shares["host"] > 0.5


def test_a_step_takes_longer_with_every_sequence(tiny_trial: Make, recorded: Recorded) -> None:
    """Once the device has more to do than the host; the last doubling takes nearly twice."""
    found = [
        last_step(recorded(tiny_trial({}, batch=batch, sequence=128)), H100, 1)
        for batch in (2, 2048, 4096)
    ]
    taken = [step.seconds for step in found if step is not None]

    assert [each.value for each in taken] == sorted({each.value for each in taken})
    assert [each.low for each in taken] == sorted(each.low for each in taken)
    assert taken[-1].value / taken[-2].value == pytest.approx(2, rel=0.1)


def test_a_slower_device_takes_longer(tiny_trial: Make, recorded: Recorded) -> None:
    record = recorded(tiny_trial({}, batch=1024, sequence=128))
    devices = [find(name) for name in ("h200-141gb", "a100-80gb", "l4-24gb")]
    taken = [step.seconds.value for each in devices if (step := last_step(record, each, 1))]

    assert taken == sorted(set(taken))
    # Each of its kernels takes longer by a rate or by the bandwidth, or as long.
    a100, l4 = devices[1:]
    factors = [a100.bandwidth / l4.bandwidth, a100.rates["fp32"] / l4.rates["fp32"], 1.0]
    assert min(factors) < taken[2] / taken[1] < max(factors)


def test_a_trial_that_trains_nothing_has_no_step(record: Record) -> None:
    marks = tuple(mark for mark in record.marks if mark.kind != "step")

    assert last_step(replace(record, marks=marks), H100, 1) is None


def test_an_empty_step_takes_no_time() -> None:
    marks = (Mark(0, "step", "step"), Mark(0, "step", ""))
    empty = np.empty(0, dtype=np.int64)
    record = Record(
        events=empty,
        layers=empty,
        sizes=empty,
        categories=empty,
        paths=empty,
        modules=(),
        operations=(Operation("aten.relu.default", (Spec((1,), "float32"),), ()),),
        marks=marks,
    )
    found = last_step(record, H100, 1)

    assert list(segments(record)) == []
    assert found is not None
    assert (found.seconds.high, found.operations) == (0.0, 0)


def test_a_calibration_of_another_device_is_refused(record: Record) -> None:
    calibration = Calibration(device="NVIDIA L4", kernel_seconds=1e-6, call_seconds=1e-5)

    with pytest.raises(UserError, match="NVIDIA L4"):
        last_step(record, H100, 1, calibration)
