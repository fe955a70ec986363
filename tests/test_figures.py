"""Figures: peaks read from a record, against the meter of the same run and against plain loops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.predict.figures import (
    MOMENTS,
    Span,
    alive,
    course,
    levels,
    peak,
    peak_bytes,
    spans,
)
from tradebench.predict.operations import Operation
from tradebench.predict.record import Record, RecordingMeter
from tradebench.predict.recorder import CALL, Mark
from tradebench.result import CATEGORIES
from tradebench.trial import Evaluate, Trial

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]
Recording = Callable[[Trial], RecordingMeter]
Settings = Mapping[str, Mapping[str, Any]]

MODULES = ("", "layers.*.mlp", "head")


# Against the meter.


def judged(trial: Trial, *tasks: str) -> Trial:
    """The trial with evaluations."""
    evaluate = Evaluate(tasks=tasks, limit=4, batch_size=3)
    return trial.model_copy(update={"evaluate": evaluate})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "quantization": {"method": "nf4", "double": True},
            "adapters": {"method": "lora", "rank": 4, "merge": True},
            "checkpointing": {"method": "full", "ratio": 0.5},
        },
        {"precision": {"method": "bf16_autocast"}, "loss": {"method": "chunked", "tokens": 16}},
    ],
    ids=["baseline", "qlora", "chunked"],
)
def test_a_record_says_what_the_meter_measured(
    settings: Settings, tiny_trial: Make, recording: Recording
) -> None:
    meter = recording(judged(tiny_trial(settings), "facts", "sort"))
    record = Record.of(meter.tracker)
    level = levels(record)
    phases = {span.name: span for span in spans(record, "phase")}
    training = peak(record, level, phases["train"])
    parts: Counter[str] = Counter()
    for span in spans(record, "part"):
        parts[span.name] = max(parts[span.name], peak_bytes(level, span))

    assert {name: peak_bytes(level, span) for name, span in phases.items()} == meter.peaks
    assert parts == meter.parts
    assert training.categories == meter.categories
    assert training.bytes == meter.peaks["train"] == sum(training.categories.values())
    assert sum(training.modules.values()) <= training.bytes
    assert level[-1] == meter.tracker.total


def test_the_head_holds_most_of_a_shallow_model_at_its_peak(
    tiny_trial: Make, recording: Recording
) -> None:
    """The loss of so many tokens keeps their logits, and the way back makes as many slopes."""
    trial = tiny_trial({}, batch=8, sequence=64)
    shallow = trial.model_copy(update={"model": trial.model.model_copy(update={"layers": 1})})
    record = Record.of(recording(shallow).tracker)
    (train,) = [span for span in spans(record, "phase") if span.name == "train"]
    modules = peak(record, levels(record), train).modules

    assert list(modules.values()) == sorted(modules.values(), reverse=True)
    assert modules["lm_head"] >= 256 * (128 + 8 * 64) * 4  # its weight, and its logits
    assert "model.layers.*.mlp.up_proj" in modules


# Against plain loops.


@st.composite
def streams(draw: st.DrawFn) -> Record:
    """Blocks that come and go by chance, with operations between; the first is there at once."""
    events, sizes, living = [0], [5], [0]
    for choice in draw(st.lists(st.integers(0, 9), min_size=1, max_size=40)):
        if choice < 2:
            events.append(CALL)
        elif choice < 5 and living:
            events.append(~living.pop(choice % len(living)))
        else:
            events.append(len(sizes))
            living.append(len(sizes))
            sizes.append(1 + choice * 3)
    count = len(sizes)
    return Record(
        events=np.array(events),
        layers=np.zeros(len(events), dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        categories=np.arange(count) % 3,
        paths=np.arange(count) % len(MODULES),
        modules=MODULES,
        operations=(Operation("aten.relu.default", (), ()),),
        marks=(),
    )


def held(record: Record, event: int) -> set[int]:
    """The blocks that exist after an event, one event after the other."""
    living: set[int] = set()
    for each in record.events[: event + 1].tolist():
        if each < 0:
            living.remove(~each)
        elif each < CALL:
            living.add(each)
    return living


@given(record=streams())
@settings(derandomize=True, max_examples=60, deadline=None)
def test_levels_are_what_exists(record: Record) -> None:
    found = [
        sum(int(record.sizes[block]) for block in held(record, event))
        for event in range(len(record.events))
    ]

    assert levels(record).tolist() == found
    assert [set(alive(record, event).tolist()) for event in range(len(found))] == [
        held(record, event) for event in range(len(found))
    ]


@given(record=streams(), ends=st.tuples(st.integers(0, 40), st.integers(0, 40)))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_a_peak_is_the_highest_of_what_exists_and_came(
    record: Record, ends: tuple[int, int]
) -> None:
    start, end = sorted(min(each, len(record.events)) for each in ends)
    moments = [held(record, event) for event in range(start - 1, end)]
    totals = [sum(int(record.sizes[block]) for block in living) for living in moments]
    found = peak(record, levels(record), Span("phase", "train", start, end))
    there = held(record, found.event)
    categories: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for block in there:
        categories[CATEGORIES[record.categories[block]]] += int(record.sizes[block])
        modules[MODULES[record.paths[block]]] += int(record.sizes[block])

    assert found.bytes == max(totals)
    assert found.event == start - 1 + totals.index(max(totals))
    assert found.categories == {name: categories[name] for name in CATEGORIES}
    assert found.modules == modules


@given(record=streams(), start=st.integers(0, 40))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_a_course_shows_a_span_of_few_events_as_it_is(record: Record, start: int) -> None:
    start = min(start, len(record.events))
    found = course(record, Span("step", "step", start, len(record.events)))
    count = len(record.events) - start

    assert [moment["at"] for moment in found] == [round(at / count, 5) for at in range(count)]
    for at, moment in enumerate(found):
        sizes: Counter[str] = Counter()
        for block in held(record, start + at):
            sizes[CATEGORIES[record.categories[block]]] += int(record.sizes[block])
        assert sizes == {name: size for name, size in moment.items() if name != "at" and size}


def test_a_long_course_shows_its_peak_between_its_evenly_spread_moments() -> None:
    """A tower that only one of two thousand events knows."""
    sizes = np.full(1001, 1)
    sizes[700] = 5000
    pairs = [(block, ~block) for block in range(1001)]
    record = Record(
        events=np.array(pairs).ravel(),
        layers=np.zeros(2002, dtype=np.int64),
        sizes=sizes,
        categories=np.full(1001, 3),
        paths=np.zeros(1001, dtype=np.int64),
        modules=("",),
        operations=(),
        marks=(),
    )
    found = course(record, Span("step", "step", 0, 2002))

    assert len(found) == MOMENTS + 1
    assert max(moment["activations"] for moment in found) == 5000
    assert [moment for moment in found if moment["activations"] == 5000] == [
        {"at": round(1400 / 2002, 5), "activations": 5000}
    ]


def test_a_span_without_events_has_no_course() -> None:
    record = Record(
        events=np.array([0]),
        layers=np.array([0]),
        sizes=np.array([4]),
        categories=np.array([0]),
        paths=np.array([0]),
        modules=("",),
        operations=(),
        marks=(),
    )
    span = Span("step", "step", 1, 1)

    assert course(record, span) == []
    assert peak_bytes(levels(record), span) == 4


def test_spans_lie_between_their_marks() -> None:
    marks = (
        Mark(0, "phase", "load"),
        Mark(3, "phase", ""),
        Mark(3, "phase", "train"),
        Mark(4, "step", "step"),
        Mark(5, "part", "forward"),
        Mark(7, "part", ""),
        Mark(7, "part", "backward"),
        Mark(9, "part", ""),
        Mark(9, "step", ""),
        Mark(9, "phase", ""),
    )
    record = Record(
        events=np.arange(9),
        layers=np.zeros(9, dtype=np.int64),
        sizes=np.ones(9, dtype=np.int64),
        categories=np.zeros(9, dtype=np.int64),
        paths=np.zeros(9, dtype=np.int64),
        modules=("",),
        operations=(),
        marks=marks,
    )

    assert list(spans(record, "phase")) == [("phase", "load", 0, 3), ("phase", "train", 3, 9)]
    assert list(spans(record, "step")) == [("step", "step", 4, 9)]
    assert list(spans(record, "part")) == [("part", "forward", 5, 7), ("part", "backward", 7, 9)]
