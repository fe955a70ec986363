"""Blending: a record between two others, against the record of that very number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.predict.blend import blend
from tradebench.predict.operations import Operation, Spec
from tradebench.predict.record import Record
from tradebench.predict.recorder import CALL, Mark
from tradebench.predict.structure import StructureError
from tradebench.trial import Trial

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]
Recorded = Callable[[Trial], Record]
Differences = Callable[[Record, Record], list[str]]
Settings = Mapping[str, Mapping[str, Any]]

NF4 = {"quantization": {"method": "nf4", "double": True}}
BF16 = {"precision": {"method": "bf16"}}


# Records made up by hand.


def product(*shape: int, dtype: str = "float32") -> Record:
    """An operation that makes a tensor of this shape from one of the same, in a phase."""
    spec = Spec(shape, dtype)
    return Record(
        events=np.array([CALL, 0]),
        layers=np.array([2, 2]),
        sizes=np.array([spec.bytes]),
        categories=np.array([1]),
        paths=np.array([0]),
        modules=("head",),
        operations=(Operation("aten.relu.default", (spec,), (spec,)),),
        marks=(Mark(0, "phase", "train"), Mark(2, "phase", "")),
    )


def test_half_way_between_two_numbers_is_their_mean(differences: Differences) -> None:
    blended = blend(product(3, 4), product(3, 8), Fraction(1, 2))

    assert differences(blended, product(3, 6)) == []


def test_between_a_tensor_lies_as_the_larger_one_does(differences: Differences) -> None:
    low, high = product(3, 1), product(3, 9)
    (made,) = high.operations
    turned = made._replace(inputs=(made.inputs[0]._replace(layout="turned"),))
    (found,) = blend(low, replace(high, operations=(turned,)), Fraction(1, 2)).operations

    assert found.inputs == (Spec((3, 5), "float32", "turned"),)
    assert found.outputs == (Spec((3, 5), "float32"),)


def test_beyond_both_numbers_is_a_straight_line_too(differences: Differences) -> None:
    assert differences(blend(product(3, 4), product(3, 8), Fraction(3)), product(3, 16)) == []


@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=6
    ),
    low=st.integers(1, 20),
    high=st.integers(21, 60),
    between=st.integers(1, 100),
)
@settings(derandomize=True, max_examples=60, deadline=None)
def test_every_dimension_that_is_a_straight_line_is_blended(
    shapes: list[tuple[int, int, int]],
    low: int,
    high: int,
    between: int,
    differences: Differences,
) -> None:
    """Shapes (rows, a + b·number), where an operation may be the same for one number alone."""

    def at(number: int) -> Record:
        made = [Spec((rows, 1 + a + b * number), "bfloat16") for rows, a, b in shapes]
        known = tuple(dict.fromkeys(Operation("aten.relu.default", (), (spec,)) for spec in made))
        calls = [CALL + known.index(Operation("aten.relu.default", (), (spec,))) for spec in made]
        count = len(made)
        return replace(
            product(1),
            events=np.array([calls, list(range(count))]).T.ravel(),
            layers=np.repeat(np.arange(count), 2),
            sizes=np.array([spec.bytes for spec in made]),
            categories=np.arange(count) % 3,
            paths=np.zeros(count, dtype=np.int64),
            operations=known,
        )

    weight = Fraction(between - low, high - low)

    assert differences(blend(at(low), at(high), weight), at(between)) == []


def test_modules_may_be_numbered_otherwise(differences: Differences) -> None:
    low = product(4)
    high = replace(product(8), modules=("embed", "head"), paths=np.array([1]))

    assert differences(blend(low, high, Fraction(1, 4)), product(5)) == []


OTHER_EVENTS = {
    "another order": {"events": np.array([0, CALL])},
    "another layer": {"layers": np.array([2, 3])},
    "another category": {"categories": np.array([0])},
    "another module": {"modules": ("tail",)},
    "another mark": {"marks": (Mark(0, "phase", "train"), Mark(1, "phase", ""))},
    "one more event": {"events": np.array([CALL, 0, ~0]), "layers": np.array([2, 2, 2])},
}


@pytest.mark.parametrize("change", OTHER_EVENTS.values(), ids=OTHER_EVENTS)
def test_records_that_do_something_else_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StructureError, match="do not do the same"):
        blend(product(4), replace(product(8), **change), Fraction(1, 2))


def test_another_operation_is_refused() -> None:
    other = Operation("aten.tanh.default", *product(8).operations[0][1:])

    with pytest.raises(StructureError, match=r"aten\.relu\.default in one record is aten\.tanh"):
        blend(product(4), replace(product(8), operations=(other,)), Fraction(1, 2))


def test_an_operation_with_another_number_of_tensors_is_refused() -> None:
    spec = Spec((8,), "float32")
    other = Operation("aten.relu.default", (spec, spec), (spec,))

    with pytest.raises(StructureError, match="in one record is"):
        blend(product(4), replace(product(8), operations=(other,)), Fraction(1, 2))


@pytest.mark.parametrize("other", [product(1, 8), product(8, dtype="int32")])
def test_another_kind_of_tensor_is_refused(other: Record) -> None:
    with pytest.raises(StructureError, match="another format or number of dimensions"):
        blend(product(4), other, Fraction(1, 2))


def test_a_square_of_the_number_is_refused() -> None:
    with pytest.raises(StructureError, match="shows twice"):
        blend(product(4, 4), product(8, 8), Fraction(1, 2))


def test_a_dimension_between_whole_numbers_is_refused() -> None:
    with pytest.raises(StructureError, match="no whole number"):
        blend(product(4), product(7), Fraction(1, 2))


def test_a_size_between_whole_numbers_is_refused() -> None:
    low, high = (replace(product(4), sizes=np.array([size])) for size in (16, 17))

    with pytest.raises(StructureError, match="a size between the two is no whole number"):
        blend(low, high, Fraction(1, 2))


# The trial program.


def at(layers: int, trial: Trial) -> Trial:
    """The trial on so many layers."""
    return trial.model_copy(update={"model": trial.model.model_copy(update={"layers": layers})})


def hold(
    trials: Sequence[Trial], weight: Fraction, recorded: Recorded, differences: Differences
) -> None:
    """The last trial equals what lies between the first two."""
    low, high, between = (recorded(at(2, trial)) for trial in trials)

    assert differences(blend(low, high, weight), between) == []


@pytest.mark.parametrize(
    ("method", "rest"),
    [("lora", {}), ("rslora", BF16), ("dora", {**BF16, **NF4})],
    ids=["lora", "rslora", "dora"],
)
def test_ranks_are_blended(
    method: str, rest: Settings, tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    trials = [
        tiny_trial({**rest, "adapters": {"method": method, "rank": rank}}) for rank in (4, 256, 16)
    ]
    hold(trials, Fraction(16 - 4, 256 - 4), recorded, differences)


@pytest.mark.parametrize(
    "settings",
    [
        {"checkpointing": {"method": "full"}},
        {**BF16, **NF4, "adapters": {"method": "lora", "rank": 4}},
    ],
    ids=["recomputed", "qlora"],
)
def test_lengths_are_blended(
    settings: Settings, tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    trials = [tiny_trial(settings, sequence=length) for length in (16, 100, 37)]
    hold(trials, Fraction(37 - 16, 100 - 16), recorded, differences)


@pytest.mark.slow
@pytest.mark.parametrize("rest", [{}, BF16, NF4, {**BF16, **NF4}])
@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("merge", [False, True])
def test_ranks_and_lengths_are_blended_beside_other_techniques(
    method: str,
    rest: Settings,
    merge: bool,
    tiny_trial: Make,
    recorded: Recorded,
    differences: Differences,
) -> None:
    def trial(rank: int, length: int) -> Trial:
        adapters = {"method": method, "rank": rank, "merge": merge}
        return tiny_trial({**rest, "adapters": adapters}, sequence=length)

    hold(
        [trial(1, 32), trial(300, 32), trial(64, 32)],
        Fraction(64 - 1, 300 - 1),
        recorded,
        differences,
    )
    hold(
        [trial(4, 8), trial(4, 120), trial(4, 50)],
        Fraction(50 - 8, 120 - 8),
        recorded,
        differences,
    )


def test_a_loss_in_another_number_of_chunks_is_refused(
    tiny_trial: Make, recorded: Recorded
) -> None:
    settings = {"loss": {"method": "chunked", "tokens": 16}}
    low, high = (recorded(at(2, tiny_trial(settings, sequence=n))) for n in (16, 100))

    with pytest.raises(StructureError, match="do not do the same"):
        blend(low, high, Fraction(1, 2))
