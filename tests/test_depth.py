"""Depth: few layers continued to many, against the same program recorded at its whole depth.

Twice: programs made up by hand, of any pattern and quickly; and the trial program itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.predict.depth import MARGINS, extend, least, shorten
from tradebench.predict.library import kinds_of, shallower
from tradebench.predict.operations import Operation
from tradebench.predict.record import Record
from tradebench.predict.recorder import CALL, OUTSIDE, Mark
from tradebench.predict.structure import StructureError
from tradebench.techniques.checkpointing import Checkpointing
from tradebench.trial import Evaluate, Trial

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]
Recorded = Callable[[Trial], Record]
Differences = Callable[[Record, Record], list[str]]
Settings = Mapping[str, Mapping[str, Any]]

BF16 = {"precision": {"method": "bf16"}}
LORA = {"method": "lora", "rank": 4}
NF4 = {"method": "nf4", "double": True}
FULL = {"checkpointing": {"method": "full"}}


# A program made up by hand.


class Toy:
    """Writes a record; every operation is of the size of its number."""

    def __init__(self) -> None:
        self.events: list[int] = []
        self.layers: list[int] = []
        self.sizes: list[int] = []
        self.marks: list[Mark] = []

    def make(self, layer: int, size: int) -> int:
        """An operation, and the block that it makes."""
        self.events += [CALL + size, len(self.sizes)]
        self.layers += [layer] * 2
        self.sizes.append(size)
        return len(self.sizes) - 1

    def free(self, layer: int, *blocks: int) -> None:
        self.events += [~block for block in blocks]
        self.layers += [layer] * len(blocks)

    def mark(self, name: str = "") -> None:
        self.marks.append(Mark(len(self.events), "phase", name))

    def record(self) -> Record:
        sizes = np.array(self.sizes, dtype=np.int64)
        return Record(
            events=np.array(self.events, dtype=np.int64),
            layers=np.array(self.layers, dtype=np.int64),
            sizes=sizes,
            categories=sizes % 3,
            paths=sizes % 2,
            modules=("even", "odd"),
            operations=tuple(Operation(f"of {size}", (), ()) for size in range(200)),
            marks=tuple(self.marks),
        )


def toy(kinds: Sequence[int], near: int = 0) -> Record:
    """Loading, two steps and an evaluation of layers that keep as many blocks as their kind says.

    A layer that keeps some keeps its input too; the others release it when they are through. So
    many layers `near` either end do something more, each another thing.
    """
    depth = len(kinds)
    found = Toy()
    found.mark("load")
    table = found.make(OUTSIDE, 7)
    weights = [[found.make(i, 10 + number) for number in range(1 + kinds[i])] for i in range(depth)]
    shared = found.make(0, 8)
    found.mark()
    found.mark("train")
    for step in range(2):
        flow = found.make(OUTSIDE, 20)
        kept: list[list[int]] = []
        for i, kind in enumerate(kinds):
            found.free(i, found.make(i, 21))
            if i < near or depth - 1 - i < near:
                found.free(i, found.make(i, 110 + i if i < near else 120 + depth - i))
            kept.append([found.make(i, 22 + number) for number in range(kind)])
            taken, flow = flow, found.make(i, 30 + kind)
            if kind:
                kept[i].append(taken)
            else:
                found.free(i, taken)
            if (i, step) == (0, 0):  # made once, where it is first needed
                found.free(OUTSIDE, found.make(OUTSIDE, 31))
        logits = found.make(OUTSIDE, 40)
        cast = found.make(depth - 1, 41)  # of the last layer alone, before the way back begins
        slope = found.make(OUTSIDE, 42)
        found.free(OUTSIDE, logits)
        for i, kind in reversed(list(enumerate(kinds))):
            again = [found.make(i, 50 + number) for number in range(2 - kind)]
            taken, slope = slope, found.make(i, 60 + kind)
            found.free(i, taken, *kept[i], *again)
        found.free(OUTSIDE, flow, slope, cast)
        for i in range(depth):
            found.free(i, found.make(i, 70))
    found.mark()
    found.mark("evaluate_after")
    for i in range(depth):  # each is left for a moment
        one, other = found.make(i, 80), found.make(OUTSIDE, 81)
        found.free(i, found.make(i, 82), one)
        found.free(OUTSIDE, other)
    found.free(OUTSIDE, table, shared)
    for i in range(depth):
        found.free(i, *weights[i])
    found.mark()
    return found.record()


def cases(kinds: Sequence[Hashable], margin: int = 1) -> set[tuple[Hashable, ...]]:
    """What there is among layers, said again: neighbours, None where there are none, and ends.

    A layer near an end has a number of its own, counted from there.
    """
    padded = [None, *kinds, None]
    ends = [*range(margin), *[None] * len(kinds)][: len(kinds)]
    return set(zip(padded, kinds, padded[2:], ends, ends[::-1], strict=False))


@given(kinds=st.lists(st.integers(0, 2), min_size=8, max_size=16), margin=st.sampled_from(MARGINS))
@settings(derandomize=True, max_examples=80, deadline=None)
def test_any_pattern_of_layers_is_continued_from_few_of_them(
    kinds: list[int], margin: int, differences: Differences
) -> None:
    """Layers near the ends may be unlike all others, as long as their neighbours are near too."""
    short: list[Any] = shorten(kinds, margin)
    composed = extend(toy(short, near=margin - 1), short, kinds, margin)

    assert differences(composed, toy(kinds, near=margin - 1)) == []


@pytest.mark.parametrize("margin", MARGINS)
def test_a_layer_beside_one_of_the_margin_that_is_unlike_the_others_is_unlike_them_too(
    margin: int,
) -> None:
    """It releases what the other made, which has another place there."""
    layers = least(margin)

    with pytest.raises(StructureError, match="differs from one that is treated alike"):
        extend(toy([1] * layers, near=margin), [1] * layers, [1] * 20, margin)


# Every two neighbours of a layer that is recomputed or not.
EVERY_CASE = [1, 0, 0, 0, 1, 0, 1, 1, 1, 0]


@given(middle=st.lists(st.integers(0, 1), max_size=12))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_a_record_serves_every_model_whose_layers_it_shows(
    middle: list[int], differences: Differences
) -> None:
    kinds = [1, 0, *middle, 1, 0]

    assert cases(kinds) <= cases(EVERY_CASE)
    assert differences(extend(toy(EVERY_CASE), EVERY_CASE, kinds), toy(kinds)) == []


def test_layers_of_one_kind_are_four_however_many() -> None:
    assert shorten([()] * 80) == [()] * 4
    assert [len(shorten([()] * 80, margin)) for margin in MARGINS] == [4, 6, 8]


@given(kinds=st.lists(st.booleans(), min_size=1, max_size=30), margin=st.sampled_from(MARGINS))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_the_fewest_layers_show_every_case(kinds: list[bool], margin: int) -> None:
    short = shorten(kinds, margin)
    ends = [
        [*kinds[: count - end], *kinds[len(kinds) - end :]]
        for count in range(2 * margin + 2, len(kinds))
        for end in range(2, count - 1)
    ]
    enough = [each for each in ends if cases(each, margin) >= cases(kinds, margin)]

    assert len(short) == min(map(len, [*enough, kinds]))
    assert short in [*enough, kinds]


@pytest.mark.parametrize(("ratio", "layers"), [(1.0, 4), (0.5, 4), (0.25, 7), (0.3, 7)])
def test_a_share_of_80_recomputed_layers_takes_few(ratio: float, layers: int) -> None:
    assert len(shorten(Checkpointing(ratio=ratio).kinds(80))) == layers


# What cannot be continued.


@pytest.mark.parametrize("margin", MARGINS)
def test_ends_and_one_layer_between_are_too_few(margin: int) -> None:
    few = 2 * margin + 1

    with pytest.raises(StructureError, match=f"of {few} layers cannot be extended"):
        extend(toy([1] * few), [1] * few, [1] * 20, margin)


def test_a_case_that_the_record_does_not_show_is_missed() -> None:
    with pytest.raises(StructureError, match="shows no layer like"):
        extend(toy([1] * 4), [1] * 4, [1, 1, 2, 1, 1])


def altered(change: Callable[[Toy], None]) -> Record:
    """Five layers with a walk over each of which makes a block, and something more."""
    found = Toy()
    for layer in range(5):
        found.make(layer, 10)
    change(found)
    return found.record()


def test_a_layer_of_another_size_is_not_like_the_others() -> None:
    record = altered(lambda found: None)
    sizes = record.sizes.copy()
    sizes[2] += 1

    with pytest.raises(StructureError, match="layer 2 differs from one that is treated alike"):
        extend(replace(record, sizes=sizes), [0] * 5, [0] * 9)


@pytest.mark.parametrize("field", ["categories", "paths"])
def test_a_layer_whose_blocks_are_something_else_is_not_like_the_others(field: str) -> None:
    record = altered(lambda found: None)
    values = vars(record)[field].copy()
    values[2] += 1

    with pytest.raises(StructureError, match="layer 2 differs from one that is treated alike"):
        extend(replace(record, **{field: values}), [0] * 5, [0] * 9)


def test_another_operation_is_not_like_the_others() -> None:
    record = altered(lambda found: None)
    events = record.events.copy()
    events[4] += 1

    with pytest.raises(StructureError, match="layer 2 differs from one that is treated alike"):
        extend(replace(record, events=events), [0] * 5, [0] * 9)


def test_kinds_that_differ_need_not_be_alike() -> None:
    record = altered(lambda found: None)
    sizes = record.sizes.copy()
    sizes[2] += 1
    kinds = [0, 0, 1, 0, 0]
    deep = extend(replace(record, sizes=sizes), kinds, [0, 0, 1, 0, 0, 1, 0, 0])

    assert deep.sizes.tolist() == [10, 10, 11, 10, 10, 11, 10, 10]


def walk(found: Toy, away: int) -> None:
    """Every layer releases the first block of one that is so far ahead, if there is one."""
    found.mark()
    for layer in range(5):
        found.make(layer, 11)
        if layer + away < 5:
            found.free(layer, layer + away)


def test_memory_released_two_layers_away_is_refused() -> None:
    with pytest.raises(StructureError, match="released far away"):
        extend(altered(lambda found: walk(found, 2)), [0] * 5, [0] * 9)


def test_memory_of_a_neighbour_is_not_far() -> None:
    deep = extend(altered(lambda found: walk(found, 1)), [0] * 5, [0] * 7)

    assert [~event for event in deep.events if event < 0] == [1, 2, 3, 4, 5, 6]


def test_a_layer_in_the_middle_does_nothing_alone() -> None:
    def change(found: Toy) -> None:
        found.mark()
        found.make(2, 11)

    with pytest.raises(StructureError, match="layer 2 does something that no other does"):
        extend(altered(change), [0] * 5, [0] * 9)


@pytest.mark.parametrize("layer", [0, 4])
def test_the_first_and_the_last_layer_may(layer: int) -> None:
    def change(found: Toy) -> None:
        found.mark()
        found.make(layer, 11)

    deep = extend(altered(change), [0] * 5, [0] * 9)

    assert deep.layers[-1] == (8 if layer else 0)
    assert deep.sizes.tolist() == [10] * 9 + [11]


@pytest.mark.parametrize("some", [(1, 2), (3, 2), (0, 1, 2), (4, 3)])
def test_a_walk_over_some_layers_is_refused(some: Sequence[int]) -> None:
    def change(found: Toy) -> None:
        found.mark()
        for layer in some:
            found.make(layer, 11)

    with pytest.raises(StructureError, match="leaves some of them out"):
        extend(altered(change), [0] * 5, [0] * 9)


def test_a_walk_may_leave_out_the_ends() -> None:
    def change(found: Toy) -> None:
        found.mark()
        for layer in (3, 2, 1):
            found.make(layer, 11)

    deep = extend(altered(change), [0] * 5, [0] * 7)

    assert deep.layers[-10:].tolist() == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1]


def test_memory_of_one_layer_is_not_released_by_two() -> None:
    """The layer of another kind releases what the first layer made; the model has two of them."""

    def change(found: Toy) -> None:
        found.mark()
        for layer in range(5):
            found.make(layer, 11)
            if layer == 2:
                found.free(layer, 0)

    record, kinds = altered(change), [0, 0, 1, 0, 0]

    assert len(extend(record, kinds, kinds).events) == len(record.events)
    with pytest.raises(StructureError, match="would be released by another"):
        extend(record, kinds, [0, 0, 1, 0, 0, 1, 0, 0])


# The trial program.


def at(layers: int, trial: Trial) -> Trial:
    """The trial on so many layers."""
    return trial.model_copy(update={"model": trial.model.model_copy(update={"layers": layers})})


def hold(trial: Trial, recorded: Recorded, differences: Differences) -> None:
    """The trial is composed from fewer layers than it has, and equals its own record."""
    layers = trial.model.layers
    assert layers is not None
    for margin in MARGINS:
        deep = at(max(layers, least(margin) + 1), trial)
        kinds = kinds_of(deep, deep.model.layers or 0)
        short = shorten(kinds, margin)
        try:
            composed = extend(recorded(shallower(deep, short)), short, kinds, margin)
        except StructureError:
            continue
        assert len(short) < len(kinds)
        assert differences(composed, recorded(deep)) == []
        return
    pytest.fail("no margin will do")


def judged(trial: Trial) -> Trial:
    """The trial with an evaluation by likelihoods and one that generates."""
    evaluate = Evaluate(tasks=("facts", "sort"), limit=4, batch_size=3)
    return trial.model_copy(update={"evaluate": evaluate})


def shape_of(trial: Trial) -> Trial:
    """The trial on random weights."""
    model = trial.model.model_copy(update={"config": trial.model.name, "weights": "random"})
    return trial.model_copy(update={"model": model})


@pytest.mark.slow
def test_every_technique_among_others_is_continued(
    covering_combination: Settings, tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    hold(at(5, tiny_trial(covering_combination)), recorded, differences)


def test_evaluations_and_uneven_batches_are_continued(
    tiny_trial: Make, tiny_data_path: str, recorded: Recorded, differences: Differences
) -> None:
    """With adapters that are merged, and a loss that calls the decoder without its head."""
    settings = {
        "quantization": NF4,
        "adapters": {**LORA, "merge": True},
        **FULL,
        "loss": {"method": "chunked", "tokens": 16},
    }
    trial = tiny_trial(settings, data={"file": tiny_data_path})
    hold(judged(at(5, trial)), recorded, differences)


@pytest.mark.slow
def test_random_weights_are_continued(
    tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    settings = {**BF16, "quantization": NF4, "adapters": LORA}
    hold(shape_of(at(5, tiny_trial(settings))), recorded, differences)


def test_a_pattern_of_recomputed_layers_is_continued(
    tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    settings = {"checkpointing": {"method": "full", "ratio": 0.25}, **BF16}
    hold(at(12, tiny_trial(settings)), recorded, differences)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [12, 20])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 0.3, 0.9])
@pytest.mark.parametrize("rest", [{}, {"adapters": LORA}, {"quantization": NF4, "adapters": LORA}])
def test_every_pattern_of_recomputed_layers_is_continued(
    ratio: float,
    layers: int,
    rest: Settings,
    tiny_trial: Make,
    recorded: Recorded,
    differences: Differences,
) -> None:
    """Where a pattern has no fewer layers that show it, its own record goes through unchanged."""
    trial = at(layers, tiny_trial({"checkpointing": {"method": "full", "ratio": ratio}, **rest}))
    kinds = kinds_of(trial, layers)
    short = shorten(kinds)
    composed = extend(recorded(shallower(trial, short)), short, kinds)

    assert differences(composed, recorded(trial)) == []


@pytest.mark.slow
def test_every_technique_is_continued_on_random_weights(
    every_method: Settings, tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    hold(shape_of(at(7, tiny_trial(every_method))), recorded, differences)


@pytest.mark.slow
def test_every_technique_is_continued_through_evaluations(
    every_method: Settings, tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    hold(judged(at(7, tiny_trial(every_method, data="reference"))), recorded, differences)


@pytest.mark.slow
def test_drawn_combinations_are_continued_through_evaluations(
    drawn_combination: Settings, tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    hold(judged(at(7, tiny_trial(drawn_combination, data="reference"))), recorded, differences)


@pytest.mark.slow
@pytest.mark.parametrize("degree", [3, 8, 64])
@pytest.mark.parametrize("fields", [{}, {"reshard": False}, {"offload": True}], ids=str)
@pytest.mark.parametrize("rest", [{}, {**BF16, "quantization": NF4, "adapters": LORA, **FULL}])
def test_every_degree_of_sharding_is_continued(
    degree: int,
    fields: Mapping[str, Any],
    rest: Settings,
    tiny_trial: Make,
    recorded: Recorded,
    differences: Differences,
) -> None:
    settings = {**rest, "sharding": {"method": "fsdp2", "degree": degree, **fields}}
    hold(at(7, tiny_trial(settings)), recorded, differences)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {
            "quantization": NF4,
            "adapters": {"method": "lora", "rank": 16},
            **FULL,
        },
        {"checkpointing": {"method": "full", "ratio": 0.5}},
    ],
    ids=["qlora", "half recomputed"],
)
def test_a_70b_is_continued_from_few_layers_to_all_80(
    settings: Settings, recorded: Recorded, differences: Differences
) -> None:
    trial = Trial.from_payload(
        {
            "model": {
                "name": "llama-3.3-70b",
                "config": "llama-3.3-70b",
                "weights": "random",
                "layers": 80,
            },
            "budget": {"batch": 1, "sequence": 2048, "data": "random"},
            "evaluate": {},
            "settings": {**BF16, **settings},
        }
    )

    hold(trial, recorded, differences)
