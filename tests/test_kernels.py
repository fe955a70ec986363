"""Kernels by their tensors: which of them stream, and what the others' instructions take."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.devices import find
from tradebench.interval import NOTHING, Interval
from tradebench.predict.cost import seconds
from tradebench.predict.kernels import (
    APART,
    CASTING,
    INDEXED,
    ROW,
    TURNED,
    hidden_copy,
    instructions,
)
from tradebench.predict.operations import Layout, Operation, Spec, layout
from tradebench.predict.traffic import traffic

H200 = find("h200-141gb")
SHAPE = (28672, 256, 32)
ELEMENTS = math.prod(SHAPE)
x, narrow = Spec(SHAPE, "bfloat16"), Spec((28672, 256, 1), "bfloat16")
y, one = Spec(SHAPE, "float32"), Spec((), "float32")
RAW = Spec(SHAPE, "uint8")


def lying(how: Layout, spec: Spec = x) -> Spec:
    return spec._replace(layout=how)


CASES: dict[str, tuple[str, tuple[Spec, ...], tuple[Spec, ...], Interval]] = {
    "alike": ("aten.mul.Tensor", (x, x), (x,), NOTHING),
    "alike and transposed": (
        "aten.mul.Tensor",
        (lying("turned"), lying("turned")),
        (lying("turned"),),
        NOTHING,
    ),
    "alike in heads": ("aten.add.Tensor", (lying("permuted"),) * 2, (lying("permuted"),), NOTHING),
    "a number that is passed on": ("aten.mul.Tensor", (x,), (x,), NOTHING),
    "a number that lies on the device": ("aten.mul.Tensor", (y, one), (y,), INDEXED),
    "a factor for each group": ("aten.mul.Tensor", (x, narrow), (x,), INDEXED),
    "the same in place": ("aten.sub_.Tensor", (x, narrow), (x,), INDEXED),
    "a part of longer rows": ("aten.neg.default", (lying("gapped"),), (x,), INDEXED),
    "of two layouts": ("aten.add.Tensor", (x, lying("permuted")), (x,), INDEXED),
    "every fourth is read": ("aten.abs.default", (lying("apart"),), (x,), INDEXED),
    "every fourth is written": (
        "aten.copy_.default",
        (lying("apart"), x),
        (lying("apart"),),
        APART,
    ),
    "a transposed copy": ("aten.clone.default", (lying("turned"),), (x,), TURNED),
    "a sum with a transposed one": ("aten.add.Tensor", (x, lying("turned")), (x,), TURNED),
    "narrowed": ("aten._to_copy.default", (y,), (x,), NOTHING),
    "widened": ("aten._to_copy.default", (x,), (y,), CASTING.times(2)),
    "bytes widened": ("aten._to_copy.default", (RAW,), (x,), CASTING.times(2)),
    "a sum of two formats": ("aten.add.Tensor", (x, y), (y,), CASTING.times(3)),
    "a comparison": ("aten.ge.Tensor", (y, y), (Spec(SHAPE, "bool"),), NOTHING),
    "a product": (
        "aten.mm.default",
        (Spec((8, 9), "bfloat16", "turned"), Spec((9, 7), "bfloat16")),
        (Spec((8, 7), "bfloat16"),),
        NOTHING,
    ),
    "a table": (
        "aten.embedding.default",
        (Spec((9, 8), "float32"), Spec((4,), "int64")),
        (Spec((4, 8), "float32"),),
        NOTHING,
    ),
    "a library's own": ("bitsandbytes.int8_mm_dequant.default", (RAW,), (x,), NOTHING),
}


@pytest.mark.parametrize(("name", "inputs", "outputs", "expected"), CASES.values(), ids=CASES)
def test_an_element_takes(
    name: str, inputs: tuple[Spec, ...], outputs: tuple[Spec, ...], expected: Interval
) -> None:
    found = instructions(Operation(name, inputs, outputs), H200)

    assert found.value == pytest.approx(expected.value * ELEMENTS / 66.9e12)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(
    ("source", "made", "rows"),
    [
        (SHAPE, SHAPE[:2], 28672 * 256),
        (SHAPE, (*SHAPE[:2], 1), 28672 * 256),
        (SHAPE, (28672,), 28672),
        (SHAPE, SHAPE[1:], 0),  # columns
        (SHAPE, (), 0),  # all of it
    ],
)
def test_a_row_that_is_reduced_takes_a_warp(
    source: tuple[int, ...], made: tuple[int, ...], rows: int
) -> None:
    extremes = Operation("aten.amax.default", (x,), (Spec(made, "bfloat16"),))

    assert instructions(extremes, H200).value == pytest.approx(ROW.value * rows / 66.9e12)


def test_a_slow_kernel_outlasts_its_traffic_and_a_fast_one_does_not() -> None:
    grouped = Operation("aten.mul.Tensor", (x, narrow), (x,))
    alike = Operation("aten.mul.Tensor", (x, x), (x,))

    assert traffic(grouped) < traffic(alike)
    assert seconds(grouped, H200).value > 1.3 * seconds(alike, H200).value


def test_the_largest_of_what_does_not_lie_in_rows_is_looked_for_in_a_copy() -> None:
    largest = Operation("aten.max.default", (lying("turned"),), (Spec((), "bfloat16"),))
    in_rows = largest._replace(inputs=(x,))
    copy = hidden_copy(largest)

    assert copy == Operation("aten.clone.default", (lying("turned"),), (x,))
    assert hidden_copy(in_rows) is None
    assert seconds(largest, H200).value == pytest.approx(
        seconds(copy, H200).value + seconds(in_rows, H200).value
    )


# How tensors lie.


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.empty(3, 4, 5), "rows"),
        (torch.empty(3, 1, 5).transpose(0, 1), "rows"),
        (torch.empty(3, 4, 5).transpose(0, 1), "permuted"),
        (torch.empty(3, 4).t(), "turned"),
        (torch.empty(3, 4)[:, :3], "gapped"),
        (torch.empty(3, 1).expand(3, 4), "gapped"),
        (torch.empty(3, 8)[:, ::4], "apart"),
        (torch.empty(8, 4)[::2].t(), "apart"),
        (torch.empty(()), "rows"),
    ],
)
def test_a_tensor_lies(tensor: torch.Tensor, expected: str) -> None:
    assert layout(tensor.shape, tensor.stride()) == expected


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 4), max_size=4).flatmap(
        lambda sizes: st.tuples(st.just(sizes), st.permutations(range(len(sizes))))
    )
)
def test_what_torch_calls_contiguous_lies_in_rows(drawn: tuple[list[int], list[int]]) -> None:
    sizes, order = drawn
    tensor = torch.empty(sizes).permute(order)

    assert (layout(tensor.shape, tensor.stride()) == "rows") == tensor.is_contiguous()
