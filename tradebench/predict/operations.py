"""Operations: what the dispatcher was asked for, as the shapes and formats that decide its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
}


# How a tensor's elements lie in memory: row by row; without gaps, but with other dimensions before
# the last one (`permuted`) or with the last one not running fastest (`turned`); or with gaps, which
# leave the elements of a row side by side (`gapped`) or not (`apart`).
Layout = Literal["rows", "permuted", "turned", "gapped", "apart"]


class Spec(NamedTuple):
    """Shape, format and layout of one tensor; `dtype` is torch's name without its prefix."""

    shape: tuple[int, ...]
    dtype: str
    layout: Layout = "rows"

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the elements; what a view leaves out is not counted."""
        return self.elements * ITEM_BYTES[self.dtype]


class Operation(NamedTuple):
    """One call: the overload's name (`aten.mm.default`) and its tensors, lists laid flat.

    `inputs` keeps the order of the arguments and leaves out what is no tensor; `inputs` of an
    operation that writes into its arguments contain what is written. Operations that only look at
    memory in another way (views) are not recorded.
    """

    name: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]


def layout(shape: Sequence[int], strides: Sequence[int]) -> Layout:
    """How the elements of a tensor lie; strides count elements, 0 where one stands for many."""
    steps = [step for step in zip(strides, shape, strict=True) if step[1] != 1]
    reach = 1
    for stride, size in sorted(steps):
        if stride != reach:  # something lies between, or twice in the same place
            return "gapped" if steps[-1][0] <= 1 else "apart"
        reach *= size
    if steps == sorted(steps, reverse=True):
        return "rows"
    return "permuted" if steps[-1][0] == 1 else "turned"
