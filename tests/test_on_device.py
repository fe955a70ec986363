"""Hidden memory put into a record: against a device that is played event by event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.predict import on_device
from tradebench.predict.allocator import AllocatorSettings, parse_settings, simulate
from tradebench.predict.figures import levels, peak_bytes, spans
from tradebench.predict.hidden import Buffer, hidden, persistent
from tradebench.predict.on_device import Tape, tape
from tradebench.predict.operations import Operation
from tradebench.predict.record import Record
from tradebench.predict.recorder import CALL, Mark
from tradebench.target import ALLOCATOR
from tradebench.trial import Trial

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]
Recorded = Callable[[Trial], Record]

EXPANDABLE = parse_settings(ALLOCATOR)
ARCHITECTURES = ("sm_80", "sm_90", "gfx942")

# Made-up operations and what they hide: two blocks before their outputs and one after them, a
# workspace, both, nothing.
TEMPORARY = {
    "greedy": (
        Buffer(100, "greedy: first", True, "before"),
        Buffer(200, "greedy: second", False, "before"),
        Buffer(300, "greedy: last", False, "after"),
    ),
    "late": (Buffer(70, "late", True, "after"),),
}
WORKSPACES = {
    "late": (Buffer(5000, "workspace", True, "after"),),
    "roomy": (Buffer(9000, "workspace", False, "after"), Buffer(11, "own", True, "after")),
}
NAMES = ("greedy", "late", "roomy", "plain")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations hide what the tables above say."""
    monkeypatch.setattr(on_device, "hidden", _hidden)
    monkeypatch.setattr(on_device, "persistent", _persistent)


def _hidden(operation: Operation, architecture: str) -> Sequence[Buffer]:
    return TEMPORARY.get(operation.name, ())


def _persistent(operation: Operation, architecture: str) -> Sequence[Buffer]:
    return WORKSPACES.get(operation.name, ())


def written(*words: str | int) -> Record:
    """A record of operations by name, blocks and releases by number, and marks.

    `phase:name` and `part:name` begin something, `:phase` and `:part` end it.
    """
    events: list[int] = []
    marks: list[Mark] = []
    operations: dict[Operation, int] = {}
    for word in words:
        if isinstance(word, int):
            events.append(word)
        elif ":" in word:
            kind, _, name = word.partition(":")
            marks.append(Mark(len(events), kind or name, name if kind else ""))  # type: ignore[arg-type]
        else:
            operation = Operation(word, (), ())
            events.append(CALL + operations.setdefault(operation, len(operations)))
    blocks = 1 + max((event for event in events if event < CALL), default=-1)
    return Record(
        events=np.array(events, dtype=np.int64),
        layers=np.zeros(len(events), dtype=np.int64),
        sizes=np.arange(1, blocks + 1, dtype=np.int64),
        categories=np.zeros(blocks, dtype=np.int64),
        paths=np.zeros(blocks, dtype=np.int64),
        modules=("",),
        operations=tuple(operations),
        marks=tuple(marks),
    )


def said(taken: Tape) -> list[int]:
    """What is asked for and given back, in bytes; those given back are negative."""
    events = taken.events.tolist()
    return [int(taken.sizes[event] if event >= 0 else -taken.sizes[~event]) for event in events]


# By hand.


def test_buffers_lie_around_what_their_operation_makes(made_up: None) -> None:
    record = written("plain", 0, "greedy", 1, 2, ~0, "plain", 3)

    assert said(tape(record, "sm_90")) == [
        *(1, 100, 200, 2, 3, 300, -100, -200, -300),
        *(-1, 4),
    ]


def test_an_operation_that_makes_nothing_ends_before_the_next_begins(made_up: None) -> None:
    record = written("greedy", "greedy", 0)

    assert said(tape(record, "sm_90")) == [
        *(100, 200, 300, -100, -200, -300),
        *(100, 200, 1, 300, -100, -200, -300),
    ]


def test_a_workspace_is_made_once_by_each_thread_of_the_host(made_up: None) -> None:
    """The first operation that needs one decides its size, and makes it before its output."""
    record = written(
        *("part:forward", "roomy", 0, "late", 1, "roomy", 2, ":part"),
        *("part:backward", "late", 3, "roomy", 4, ":part"),
        *("late", 5),
    )

    assert said(tape(record, "sm_90")) == [
        *(9000, 11, 1, 2, 70, -70, 3),
        *(5000, 4, 70, -70, 11, 5),
        *(6, 70, -70),
    ]


def test_phases_begin_where_their_first_operation_does(made_up: None) -> None:
    """What the operation before a mark hides belongs to the phase before it."""
    record = written(
        *("phase:load", "plain", 0, "late", 1, ":phase"),
        *("phase:train", "greedy", 2, ":phase"),
    )
    taken = tape(record, "sm_90")

    assert said(taken) == [1, 5000, 2, 70, -70, 100, 200, 3, 300, -100, -200, -300]
    assert taken.windows == {"load": 0, "train": 5}
    assert taken.places.tolist() == [0, 0, 1, 2, 5, 7, 12]


def test_what_nobody_has_confirmed_is_named_once(made_up: None) -> None:
    record = written("greedy", "roomy", "greedy", "late")

    assert set(tape(record, "sm_90").unverified) == {"greedy: second", "greedy: last", "workspace"}
    assert len(tape(record, "sm_90").unverified) == 3
    assert tape(written("late", 0), "sm_90").unverified == ()


def test_a_record_without_operations_is_asked_for_as_it_is() -> None:
    record = written("phase:load", 0, 1, ~0, 2, ":phase")

    assert said(tape(record, "sm_90")) == [1, 2, -1, 3]
    assert tape(record, "sm_90").places.tolist() == [0, 1, 2, 3, 4]


# Against a device that is played.


@st.composite
def programs(draw: st.DrawFn) -> Record:
    """Operations that make and leave blocks, forwards and backwards, in up to three phases."""
    words: list[str | int] = []
    living: list[int] = []
    blocks = 0
    for phase in draw(
        st.sampled_from([("load",), ("load", "train"), ("load", "compress", "train")])
    ):
        words.append(f"phase:{phase}")
        for part in draw(st.lists(st.sampled_from(["forward", "backward", ""]), max_size=3)):
            words += [f"part:{part}"] if part else []
            for name in draw(st.lists(st.sampled_from(NAMES), max_size=5)):
                words.append(name)
                for _ in range(draw(st.integers(0, 2))):
                    words.append(blocks)
                    living.append(blocks)
                    blocks += 1
                for _ in range(draw(st.integers(0, 2))):
                    if living:
                        words.append(~living.pop(draw(st.integers(0, len(living) - 1))))
            words += [":part"] if part else []
        words.append(":phase")
    return written(*words)


def played(record: Record) -> tuple[list[int], dict[str, int]]:
    """What a device is asked for, operation by operation, and where each phase begins."""
    found: list[int] = []
    windows: dict[str, int] = {}
    made: set[tuple[str, bool]] = set()
    backward = False
    ending: list[Buffer] = []
    marks = sorted(record.marks, key=lambda mark: mark.position)

    def end() -> None:
        found.extend(buffer.bytes for buffer in ending if buffer.when == "after")
        found.extend(-buffer.bytes for buffer in ending)
        ending.clear()

    for position, event in enumerate([*record.events.tolist(), CALL]):
        if not 0 <= event < CALL:
            end()
        while marks and marks[0].position == position:
            mark = marks.pop(0)
            if mark.kind == "phase" and mark.name:
                windows[mark.name] = len(found)
            if mark.kind == "part":
                backward = mark.name == "backward"
        if position == len(record.events):
            break
        if event < CALL:
            size = int(record.sizes[event if event >= 0 else ~event])
            found.append(size if event >= 0 else -size)
            continue
        operation = record.operations[event - CALL]
        ending.extend(_hidden(operation, ""))
        found.extend(buffer.bytes for buffer in ending if buffer.when == "before")
        for buffer in _persistent(operation, ""):
            if (buffer.provenance, backward) not in made:
                made.add((buffer.provenance, backward))
                found.append(buffer.bytes)
    return found, windows


@given(record=programs())
@settings(derandomize=True, max_examples=150, deadline=None)
def test_a_tape_is_what_a_device_is_asked_for(record: Record) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_device, "hidden", _hidden)
        patch.setattr(on_device, "persistent", _persistent)
        taken = tape(record, "sm_90")
    expected, windows = played(record)

    assert said(taken) == expected
    assert taken.windows == windows


@given(record=programs())
@settings(derandomize=True, max_examples=60, deadline=None)
def test_every_event_of_the_record_has_its_place(record: Record) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_device, "hidden", _hidden)
        patch.setattr(on_device, "persistent", _persistent)
        taken = tape(record, "sm_90")
    events, places = record.events, taken.places.tolist()
    blocks = np.flatnonzero(events < CALL)

    assert len(places) == len(events) + 1
    assert places == sorted(places)
    assert places[-1] == len(taken.events)
    assert [
        events[index] in taken.events[places[index] : places[index + 1]] for index in blocks
    ] == [True] * len(blocks)


# Whole trials.

POINTS: dict[str, dict[str, Any]] = {
    "full": {},
    "qlora": {
        "precision": {"method": "bf16"},
        "quantization": {"method": "nf4", "double": True},
        "adapters": {"method": "lora", "rank": 4},
        "checkpointing": {"method": "full", "ratio": 0.5},
    },
    "int8": {"quantization": {"method": "int8"}, "adapters": {"method": "lora", "rank": 4}},
}


@pytest.fixture(scope="module", params=list(POINTS.values()), ids=list(POINTS))
def record(request: pytest.FixtureRequest, tiny_trial: Make, recorded: Recorded) -> Record:
    return recorded(tiny_trial(request.param, batch=4, sequence=64))


def phase_peaks(record: Record) -> dict[str, int]:
    level = levels(record)
    return {span.name: peak_bytes(level, span) for span in spans(record, "phase")}


def test_without_hidden_memory_a_device_is_asked_for_what_tensors_take(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_device, "hidden", lambda operation, architecture: ())
    monkeypatch.setattr(on_device, "persistent", lambda operation, architecture: ())
    taken = tape(record, "sm_90")

    assert taken.events.tolist() == record.events[record.events < CALL].tolist()
    assert taken.sizes.tolist() == record.sizes.tolist()
    assert {
        name: usage.requested for name, usage in taken.usages(EXPANDABLE).items()
    } == phase_peaks(record)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_memory_comes_on_top_and_goes_again(record: Record, architecture: str) -> None:
    taken, peaks = tape(record, architecture), phase_peaks(record)
    workspaces = {
        (buffer.provenance, buffer.bytes)
        for operation in record.operations
        for buffer in persistent(operation, architecture)
    }
    largest = max(
        sum(buffer.bytes for buffer in hidden(operation, architecture))
        for operation in record.operations
    )
    lasting = sum(said(taken)) - int(levels(record)[-1])

    # One workspace for the forward passes, and one for autograd's thread.
    assert len(workspaces) == 1
    assert lasting == 2 * sum(size for _, size in workspaces)
    for name, usage in taken.usages(EXPANDABLE).items():
        assert peaks[name] <= usage.requested <= peaks[name] + lasting + largest
        assert usage.requested <= usage.allocated <= usage.reserved


@pytest.mark.parametrize("text", ["", ALLOCATOR])
def test_up_to_a_moment_a_device_comes_to_what_a_shorter_program_would(
    record: Record, text: str
) -> None:
    taken, how = tape(record, "sm_90"), parse_settings(text)
    forward = next(span for span in spans(record, "part") if span.name == "forward")
    end, start = int(taken.places[forward.end]), taken.windows["train"]
    starts = [place for place in taken.windows.values() if place <= start]
    short = replace(taken, events=taken.events[:end], windows=dict(enumerate(starts)))  # type: ignore[arg-type]
    alive = taken.until(end, end, how)

    assert taken.until(end, start, how) == list(short.usages(how).values())[-1]
    assert alive.requested == sum(said(taken)[:end])
    assert alive.requested <= taken.until(end, start, how).requested


def test_a_phase_begins_with_an_empty_cache(record: Record) -> None:
    """As the windows of the simulation do; without them the cache of one phase serves the next."""
    taken, how = tape(record, "sm_90"), AllocatorSettings()
    (whole,) = simulate(taken.events, taken.sizes, settings=how).windows
    phases = taken.usages(how)

    assert max(usage.requested for usage in phases.values()) == whole.requested
    assert list(phases) == ["load", "compress", "train"]
    assert phases["load"].reserved < whole.reserved
