"""Records of whole trials: a stream of events that is consistent, and the work that it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tradebench.predict.operations import ITEM_BYTES, Operation
from tradebench.predict.record import Record
from tradebench.predict.recorder import CALL, Mark, Recorder
from tradebench.result import CATEGORIES, PHASES
from tradebench.trial import Evaluate, Trial

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]
Recorded = Callable[[Trial], Record]
Settings = Mapping[str, Mapping[str, Any]]

LORA = {"method": "lora", "rank": 4}
POINTS: dict[str, dict[str, Any]] = {
    "full": {},
    "qlora": {
        "precision": {"method": "bf16"},
        "quantization": {"method": "nf4", "double": True},
        "adapters": {**LORA, "merge": True},
        "checkpointing": {"method": "full", "ratio": 0.5},
    },
    "int8": {"quantization": {"method": "int8"}, "adapters": LORA},
    "chunked": {
        "pruning": {"method": "magnitude"},
        "precision": {"method": "bf16_autocast"},
        "loss": {"method": "chunked", "tokens": 16},
    },
}
LAYERS, LINEARS = 4, 7  # decoder layers, and the linear layers of each


@pytest.fixture(scope="module", params=POINTS.values(), ids=list(POINTS))
def record(request: pytest.FixtureRequest, tiny_trial: Make, recorded: Recorded) -> Record:
    """A trial with evaluations of both kinds."""
    evaluate = Evaluate(tasks=("facts", "sort"), limit=4, batch_size=3)
    return recorded(tiny_trial(request.param).model_copy(update={"evaluate": evaluate}))


def called(record: Record, start: int = 0, end: int | None = None) -> list[Operation]:
    """The operations of events [start, end), in order."""
    events = record.events[start:end].tolist()
    return [record.operations[event - CALL] for event in events if event >= CALL]


def test_blocks_are_born_in_order_and_released_once_at_most_and_later(record: Record) -> None:
    events = record.events.tolist()
    born = [event for event in events if 0 <= event < CALL]
    at = {event: index for index, event in enumerate(events) if event < CALL}
    released = [~event for event in events if event < 0]

    assert born == list(range(len(record.sizes)))
    assert len(released) == len(set(released)) > 0.9 * len(born)
    assert all(at[block] < at[~block] for block in released)


def test_every_block_has_a_size_a_category_and_a_module(record: Record) -> None:
    count = len(record.sizes)

    assert len(record.categories) == len(record.paths) == count
    assert record.sizes.min() > 0
    assert set(record.categories) <= set(range(len(CATEGORIES)))
    assert set(record.paths) == set(range(len(record.modules)))


def test_every_event_has_a_layer_and_every_layer_events(record: Record) -> None:
    assert len(record.layers) == len(record.events)
    assert Counter(record.layers.tolist()).keys() == {-1, *range(LAYERS)}


def test_the_number_of_a_layer_is_left_open(record: Record) -> None:
    assert not any(part.isdigit() for path in record.modules for part in path.split("."))
    assert any(path.endswith("layers.*.mlp.down_proj") for path in record.modules)


def test_operations_are_listed_once_and_all_of_them_run(record: Record) -> None:
    numbers = {int(event) - CALL for event in record.events if event >= CALL}

    assert numbers == set(range(len(record.operations))) == set(range(len(set(record.operations))))


def test_no_operation_is_a_view(record: Record) -> None:
    """torch's own schema says which: what they return shares memory with what they are given."""
    views = set()
    for operation in record.operations:
        namespace, name, overload = operation.name.split(".")
        schema = getattr(getattr(getattr(torch.ops, namespace), name), overload)._schema
        if not schema.is_mutable and any(each.alias_info for each in schema.returns):
            views.add(operation.name)

    # A constant of the program is seen for the first time where it is lifted into the world.
    assert views <= {"aten.lift_fresh.default"}


def test_an_allocating_operation_says_what_it_made(record: Record) -> None:
    """What is born right after an operation has the bytes of one of its outputs."""
    makers = {
        "aten.empty.memory_format",
        "aten.mm.default",
        "aten.silu.default",
        "aten.cat.default",
    }
    seen = 0
    for event, following in zip(record.events.tolist(), record.events[1:].tolist(), strict=False):
        operation = record.operations[event - CALL] if event >= CALL else None
        if operation is not None and operation.name in makers and 0 <= following < CALL:
            (output,) = operation.outputs
            assert record.sizes[following] == output.elements * ITEM_BYTES[output.dtype]
            seen += 1

    assert seen > 100


def order(record: Record) -> list[str]:
    """What begins, one after the other, with the number of things that it is inside of."""
    opened: list[Mark] = []
    found: list[str] = []
    for mark in record.marks:
        if mark.name:
            found.append(f"{len(opened)} {mark.name}")
            opened.append(mark)
        else:
            assert opened.pop().kind == mark.kind
    assert opened == []
    return found


STEPS = ["1 step", "2 forward", "2 backward", "2 optimizer"] * 2


def test_marks_nest_and_follow_the_trial(record: Record) -> None:
    positions = [mark.position for mark in record.marks]

    assert positions == sorted(positions)
    assert (positions[0], positions[-1] <= len(record.events)) == (0, True)
    assert order(record) == [*(f"0 {phase}" for phase in PHASES[:4]), *STEPS, "0 evaluate_after"]


def test_the_longest_of_uneven_batches_takes_no_step(
    tiny_trial: Make, tiny_data_path: str, recorded: Recorded
) -> None:
    record = recorded(tiny_trial({}, data={"file": tiny_data_path}))

    assert order(record) == [
        "0 load",
        "0 compress",
        "0 train",
        *STEPS,
        "1 forward",
        "1 backward",
    ]


def test_the_optimizer_takes_a_step_for_every_layer_apart(
    tiny_trial: Make, recorded: Recorded
) -> None:
    record = recorded(tiny_trial({}))
    fused = [
        (int(layer), operation)
        for event, layer in zip(record.events.tolist(), record.layers, strict=True)
        if event >= CALL
        and (operation := record.operations[event - CALL]).name.startswith("aten._fused_adamw_")
    ]
    moments = Counter(layer for layer, _ in fused)

    assert moments == dict.fromkeys((-1, *range(LAYERS)), 2)
    # Parameter, gradient, both moments and the counter of nine tensors, or of three outside.
    assert {(layer == -1, len(operation.inputs)) for layer, operation in fused} == {
        (True, 3 * 5),
        (False, 9 * 5),
    }


@pytest.mark.parametrize(
    ("settings", "forward", "backward"),
    [
        # Every product has two on the way back: slopes of its input and of its weight.
        ({}, LAYERS * LINEARS + 1, 2 * (LAYERS * LINEARS + 1)),
        # A recomputed layer does all its products again but the last, of which nothing is kept.
        (
            {"checkpointing": {"method": "full", "ratio": 0.5}},
            LAYERS * LINEARS + 1,
            2 * (LAYERS * LINEARS + 1) + 2 * (LINEARS - 1),
        ),
        # A frozen matrix has one slope, and two thin ones beside it have two each. Nobody asks for
        # the slope of what the first layer's query, key and value are given.
        ({"adapters": LORA}, 3 * LAYERS * LINEARS + 1, 5 * LAYERS * LINEARS + 1 - 2 * 3),
    ],
    ids=["full", "half", "lora"],
)
def test_a_step_has_the_products_that_its_layers_ask_for(
    settings: Settings, forward: int, backward: int, tiny_trial: Make, recorded: Recorded
) -> None:
    record = recorded(tiny_trial(settings))
    starts: dict[str, int] = {}
    for mark, end in zip(record.marks, record.marks[1:], strict=False):
        if mark.kind == "part" and mark.name:
            products = [
                operation
                for operation in called(record, mark.position, end.position)
                if operation.name == "aten.mm.default"
            ]
            starts.setdefault(mark.name, len(products))

    assert (starts["forward"], starts["backward"]) == (forward, backward)


def test_a_record_of_nothing_is_empty() -> None:
    record = Record.of(Recorder("cpu"))

    assert (record.modules, record.operations, record.marks) == ((), (), ())
    assert all(
        values.dtype == np.int64 and len(values) == 0
        for values in (record.events, record.layers, record.sizes, record.categories, record.paths)
    )


def test_what_is_let_go_of_when_all_is_over_goes_by_layers(
    tiny_trial: Callable[..., Trial], recorded: Callable[[Trial], Record]
) -> None:
    """LLM.int8() lets go of recomputed layers last, and no depth could be told from that order."""
    settings = {
        "precision": {"method": "bf16"},
        "quantization": {"method": "int8"},
        "adapters": {"method": "lora", "rank": 4},
        "checkpointing": {"method": "full", "ratio": 0.5},
    }
    record = recorded(tiny_trial(settings))
    over = record.marks[-1].position

    assert len(record.events) > over
    assert (record.events[over:] < 0).all()
    assert (np.diff(record.layers[over:]) >= 0).all()
