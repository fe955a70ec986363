"""Bytes that operations move: each kind against what its kernel must touch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.predict.operations import Operation, Spec
from tradebench.predict.traffic import traffic

ROWS, WIDTH, WORDS = 100, 64, 1000
x, y = Spec((ROWS, WIDTH), "bfloat16"), Spec((ROWS, WIDTH), "float32")
table, tokens = Spec((WORDS, WIDTH), "bfloat16"), Spec((ROWS,), "int64")
scores, one = Spec((ROWS, WORDS), "float32"), Spec((), "float32")
LONG = 128_256
long = Spec((ROWS, LONG), "float32")
NARROW, WIDE = ROWS * WIDTH * 2, ROWS * WIDTH * 4

CASES = {
    "a sum reads both and writes one": ("aten.add.Tensor", (x, y), (y,), NARROW + 2 * WIDE),
    "a cast reads one format and writes the other": (
        "aten._to_copy.default",
        (x,),
        (y,),
        NARROW + WIDE,
    ),
    "a product reads its factors": ("aten.mm.default", (x, table), (scores,), None),
    "in place is read and written": ("aten.mul_.Tensor", (y, one), (y,), 2 * WIDE + 4),
    "what is copied over is not read": ("aten.copy_.default", (x, y), (x,), WIDE + NARROW),
    "zeros are written": ("aten.zero_.default", (y,), (y,), WIDE),
    "a shape alone is not read": ("aten.zeros_like.default", (y,), (y,), WIDE),
    "reserving moves nothing": ("aten.empty.memory_format", (), (y,), 0),
    "a lookup reads its rows, not the table": (
        "aten.embedding.default",
        (table, tokens),
        (x,),
        2 * NARROW + ROWS * 8,
    ),
    "a loss reads one score of each row": (
        "aten.nll_loss_forward.default",
        (scores, tokens),
        (one, one),
        ROWS * 8 + 8,
    ),
    "its gradient is written whole and reads no scores": (
        "aten.nll_loss_backward.default",
        (one, scores, tokens, one),
        (scores,),
        ROWS * WORDS * 4,
    ),
    "a softmax reads short rows once": (
        "aten._softmax.default",
        (scores,),
        (scores,),
        2 * ROWS * WORDS * 4,
    ),
    "and long rows thrice": (
        "aten._log_softmax.default",
        (long,),
        (long,),
        (3 + 1) * ROWS * LONG * 4,
    ),
    "backward it reads their gradient twice": (
        "aten._log_softmax_backward_data.default",
        (long, long),
        (long,),
        (2 + 1 + 1) * ROWS * LONG * 4,
    ),
    "a part's gradient is written into zeros": (
        "aten.slice_backward.default",
        (x,),
        (y,),
        2 * NARROW + WIDE,
    ),
    "an output given is written, not read": ("aten.mul.out", (x, one, x), (), 2 * NARROW + 4),
    "lists with a number are read and written": (
        "aten._foreach_mul_.Scalar",
        (x, y),
        (),
        2 * (NARROW + WIDE),
    ),
    "of two lists the first is written": (
        "aten._foreach_add_.List",
        (x, y, x, y),
        (),
        3 * (NARROW + WIDE),
    ),
    "a list copied over is not read": (
        "aten._foreach_copy_.default",
        (x, y, x, y),
        (),
        2 * (NARROW + WIDE),
    ),
}


@pytest.mark.parametrize(("name", "inputs", "outputs", "expected"), CASES.values(), ids=CASES)
def test_an_operation_moves(
    name: str, inputs: tuple[Spec, ...], outputs: tuple[Spec, ...], expected: int | None
) -> None:
    if expected is None:
        expected = sum(each.bytes for each in (*inputs, *outputs))

    assert traffic(Operation(name, inputs, outputs)) == expected


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5), st.booleans()
)
def test_adamw_moves_seven_numbers_per_parameter(
    shapes: list[tuple[int, int]], counted: bool
) -> None:
    """It reads parameter, gradient and two moments, and writes all but the gradient."""
    parameters = [Spec(shape, "float32") for shape in shapes]
    counters = [one] * len(parameters) if counted else []
    step = Operation("aten._fused_adamw_.default", (*(parameters * 4), *counters), ())
    numbers = sum(each.elements for each in parameters)

    assert traffic(step) == 4 * (7 * numbers + len(counters))


def test_adamw_keeps_narrow_gradients_apart_from_wide_moments() -> None:
    parameter, moment = Spec((10,), "bfloat16"), Spec((10,), "float32")
    step = Operation("aten._fused_adamw_.default", (parameter, parameter, moment, moment, one), ())

    assert traffic(step) == 10 * (2 + 2 + 4 + 4) + 4 + 10 * (2 + 4 + 4)


def test_attention_moves_its_tensors_and_no_scores() -> None:
    query, key = Spec((1, 8, 512, 64), "bfloat16"), Spec((1, 2, 512, 64), "bfloat16")
    sums = Spec((1, 8, 512), "float32")
    call = Operation(
        "aten._scaled_dot_product_flash_attention.default", (query, key, key), (query, sums)
    )

    assert traffic(call) == 2 * query.bytes + 2 * key.bytes + sums.bytes
    assert traffic(call) < 512 * 512 * 8 * 2
