"""The library: whatever is shared between points, each has the record it would have alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from tradebench.errors import UserError
from tradebench.predict import library
from tradebench.predict.depth import extend
from tradebench.predict.library import Library, kinds_of, shallower
from tradebench.predict.memory import Reached, perform_fake, reach
from tradebench.predict.record import Record
from tradebench.predict.structure import StructureError
from tradebench.trial import Trial

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]
Recorded = Callable[[Trial], Record]
Differences = Callable[[Record, Record], list[str]]
Rehearsals = list[tuple[str, int | None]]

BF16 = {"precision": {"method": "bf16"}}
FULL = {"checkpointing": {"method": "full"}}


def at(layers: int, trial: Trial) -> Trial:
    """The trial on so many layers."""
    return trial.model_copy(update={"model": trial.model.model_copy(update={"layers": layers})})


def lora(rank: int, **rest: Any) -> dict[str, Any]:
    return {"adapters": {"method": "lora", "rank": rank}, **rest}


@pytest.fixture
def rehearsals(monkeypatch: pytest.MonkeyPatch) -> Rehearsals:
    """Label and layers of every trial that a library records."""
    seen: Rehearsals = []

    def performed(trial: Trial, *rest: Any) -> None:
        seen.append((trial.label, trial.model.layers))
        perform_fake(trial, *rest)

    monkeypatch.setattr(library, "perform_fake", performed)
    return seen


def test_a_deep_point_is_recorded_with_few_layers(
    tiny_trial: Make,
    recorded: Recorded,
    differences: Differences,
    rehearsals: Rehearsals,
) -> None:
    trial, shared = at(6, tiny_trial({**BF16, **FULL})), Library()
    record, warnings = shared.record(trial)

    assert differences(record, recorded(trial)) == []
    assert warnings == []
    assert (shared.composed, shared.recorded) == (1, 0)
    assert [layers for _, layers in rehearsals] == [4]


def test_a_shallow_point_is_recorded_as_it_is(tiny_trial: Make, rehearsals: Rehearsals) -> None:
    shared = Library()
    record, _ = shared.record(at(3, tiny_trial(BF16)))

    assert set(record.layers) == {-1, 0, 1, 2}
    assert (shared.composed, shared.recorded) == (1, 0)
    assert rehearsals == [("bf16", 3)]


def test_points_of_any_depth_share_a_record(tiny_trial: Make, rehearsals: Rehearsals) -> None:
    shared = Library()
    sizes = [len(shared.record(at(layers, tiny_trial(BF16)))[0].sizes) for layers in (5, 9, 70)]

    assert rehearsals == [("bf16", 4)]
    assert (sizes[2] - sizes[0]) * 4 == (sizes[1] - sizes[0]) * 65


def test_the_same_point_is_recorded_once(
    tiny_trial: Make, differences: Differences, rehearsals: Rehearsals
) -> None:
    shared = Library()
    first, again = (shared.record(tiny_trial(BF16))[0] for _ in range(2))

    assert differences(first, again) == []
    assert len(rehearsals) == 1


def test_ranks_and_lengths_between_the_ends_are_composed(
    tiny_trial: Make,
    recorded: Recorded,
    differences: Differences,
    rehearsals: Rehearsals,
) -> None:
    """Four records make a grid of nine points: two ranks at two lengths."""
    trials = [
        at(6, tiny_trial(lora(rank), sequence=length))
        for rank in (4, 12, 64)
        for length in (16, 41, 120)
    ]
    shared = Library(trials)
    found = {trial.id: shared.record(trial)[0] for trial in trials}
    middle = trials[4]

    assert len(rehearsals) == 4
    assert {layers for _, layers in rehearsals} == {4}
    assert (shared.composed, shared.recorded) == (9, 0)
    assert differences(found[middle.id], recorded(middle)) == []


def test_two_ranks_are_recorded_themselves(tiny_trial: Make, rehearsals: Rehearsals) -> None:
    trials = [at(2, tiny_trial(lora(rank))) for rank in (4, 12)]
    shared = Library(trials)
    for trial in trials:
        shared.record(trial)

    assert rehearsals == [("lora r4", 2), ("lora r12", 2)]


def test_a_point_that_the_library_was_not_made_for_is_recorded_itself(
    tiny_trial: Make, rehearsals: Rehearsals
) -> None:
    shared = Library(
        [
            *(at(2, tiny_trial(lora(rank))) for rank in (4, 12, 64)),
            at(2, tiny_trial(lora(4), sequence=16)),
        ]
    )
    shared.record(at(2, tiny_trial(lora(12, **BF16))))
    shared.record(at(2, tiny_trial(lora(12), sequence=16)))

    assert rehearsals == [("bf16 + lora r12", 2), ("lora r12", 2)]


def broken(*arguments: object) -> Record:
    raise StructureError("as if layers were not alike")


def test_where_depth_does_not_hold_the_point_is_recorded_itself(
    tiny_trial: Make,
    recorded: Recorded,
    differences: Differences,
    rehearsals: Rehearsals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "extend", broken)
    monkeypatch.setattr(library, "MARGINS", (1,))
    trial, shared = at(5, tiny_trial(FULL)), Library()
    record, _ = shared.record(trial)

    assert differences(record, recorded(trial)) == []
    assert (shared.composed, shared.recorded) == (0, 1)
    assert rehearsals[-1] == ("checkpointing 1", 5)


def test_where_few_layers_will_not_do_more_are_tried(
    tiny_trial: Make,
    recorded: Recorded,
    differences: Differences,
    rehearsals: Rehearsals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def near(record: Record, kinds: Sequence[Any], deep: Sequence[Any], margin: int) -> Record:
        return broken() if margin == 1 else extend(record, kinds, deep, margin)

    monkeypatch.setattr(library, "extend", near)
    trial, shared = at(7, tiny_trial(BF16)), Library()
    record, _ = shared.record(trial)

    assert differences(record, recorded(trial)) == []
    assert rehearsals == [("bf16", 4), ("bf16", 6)]


def test_where_a_straight_line_does_not_hold_the_point_is_recorded_itself(
    tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    """Other lengths are cut into other numbers of chunks."""
    chunked = {"loss": {"method": "chunked", "tokens": 16}}
    trials = [at(2, tiny_trial(chunked, sequence=length)) for length in (16, 48, 100)]
    shared = Library(trials)
    record, _ = shared.record(trials[1])

    assert differences(record, recorded(trials[1])) == []
    assert trials[1].id in shared._records


def test_a_value_that_is_recorded_itself_serves_the_next(
    tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    """Shares of eight processes have one row of a rank of 4, and so many more of the others."""

    def sharded(rank: int) -> Trial:
        adapters = {"method": "lora", "rank": rank}
        sharding = {"method": "fsdp2", "degree": 8}
        return at(4, tiny_trial({"adapters": adapters, "sharding": sharding}))

    trials = [sharded(rank) for rank in (4, 16, 32, 64)]
    shared = Library(trials)
    records = [shared.record(trial)[0] for trial in trials]

    assert [trial.id in shared._records for trial in trials] == [True, True, False, True]
    assert differences(records[2], recorded(trials[2])) == []


def test_what_a_point_needs_is_read_once(tiny_trial: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []

    def noted(trial: Trial) -> Reached:
        reached.append(trial.id)
        return reach(trial)

    monkeypatch.setattr(library, "reach", noted)
    read: dict[str, Any] = {}
    Library(reached=read).record(at(2, tiny_trial({})))
    Library(reached=read).record(at(3, tiny_trial(BF16)))

    assert len(reached) == len(read) == 1

    Library(reached=read).record(at(2, tiny_trial({}, batch=3)))

    assert len(reached) == len(read) == 2


def test_what_could_not_be_reached_is_said_with_every_record(tiny_trial: Make) -> None:
    trial = at(2, tiny_trial({}, data={"hub": "nobody/nothing"}))
    shared = Library()
    said = [shared.record(trial)[1] for _ in range(2)]

    assert said[0] == said[1]
    assert len(said[0]) == 1
    assert said[0][0].endswith("memory is predicted for sequences of full length")


def test_a_missing_file_is_an_error(tiny_trial: Make) -> None:
    with pytest.raises(UserError, match="cannot read the training data"):
        Library().record(tiny_trial({}, data={"file": "none.jsonl"}))


# Kinds of layers.


def test_layers_are_alike_where_no_technique_says_otherwise(tiny_trial: Make) -> None:
    assert kinds_of(tiny_trial({}), 3) == [()] * 3
    assert len(set(kinds_of(tiny_trial(lora(4, **BF16)), 80))) == 1


@pytest.mark.parametrize("ratio", [0.3, 0.5, 1.0])
def test_layers_are_as_their_techniques_treat_them(ratio: float, tiny_trial: Make) -> None:
    trial = tiny_trial(lora(4, checkpointing={"method": "full", "ratio": ratio}))
    kinds: Sequence[Any] = kinds_of(trial, 10)

    assert [kind[-1] for kind in kinds] == [
        any(index * 10 // round(10 * ratio) == layer for index in range(round(10 * ratio)))
        for layer in range(10)
    ]


def test_a_shallower_trial_treats_each_layer_as_its_kind_says(tiny_trial: Make) -> None:
    trial = tiny_trial(lora(4, checkpointing={"method": "full", "ratio": 0.3}))
    kinds = [kinds_of(trial, 10)[layer] for layer in (0, 1, 3, 4)]
    short = shallower(trial, kinds)
    settings: Mapping[str, Any] = short.settings

    assert short.model.layers == 4
    assert kinds_of(short, 4) == kinds
    assert settings["checkpointing"]["layers"] == [0, 2]
    assert settings["adapters"] == trial.settings["adapters"]
    assert short.id != trial.id
