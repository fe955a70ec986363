"""Floating-point operations of one call, from its shapes: matrix products and attention.

A multiply-add counts as two. Whatever works element by element counts as none: memory decides its
time. Attention is counted as a flash kernel computes it: two products forward and five backward,
because the scores are computed again (Dao 2023, arXiv:2307.08691, section 4.1). torch's
FlopCounterMode counts likewise, but the whole square of scores; a causal kernel skips the half
above the diagonal.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tradebench.devices import Format
from tradebench.predict.operations import Operation, Spec

FORMATS: dict[str, Format] = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "int8": "int8",
}

# Where the two factors of a product stand among an operation's tensors.
PRODUCTS = {
    "aten.mm": (0, 1),
    "aten._int_mm": (0, 1),
    "aten._scaled_mm": (0, 1),
    "aten.addmm": (1, 2),
    "aten.bmm": (0, 1),
    "aten.baddbmm": (1, 2),
}
# A weight without half of its numbers (2:4), as cuSPARSELt packs it, times inputs that lie
# transposed: half of the products are made.
SPARSE = "aten._cslt_sparse_mm"
# Where the left factor stands; the right one lies packed, or transposed, and the output's last
# dimension is its width.
LIBRARY_PRODUCTS = {
    "bitsandbytes.gemm_4bit": 0,
    "bitsandbytes.gemv_4bit": 0,
    "bitsandbytes.int8_linear_matmul": 0,
    "bitsandbytes.int8_scaled_mm": 0,
    "bitsandbytes.int8_mixed_scaled_mm": 1,
}
ATTENTION = (
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
)


class Attention(NamedTuple):
    """The tensors of an attention, whether it has a mask, and whether it is the backward."""

    query: Spec
    key: Spec
    value: Spec
    masked: bool
    backward: bool


def packet(operation: Operation) -> str:
    """The operation's name without its overload: `aten.mm`."""
    return operation.name.rpartition(".")[0]


def product(operation: Operation) -> tuple[int, int, int, int] | None:
    """Batch, m, n, k of an operation that multiplies matrices; None for any other."""
    name = packet(operation)
    if name in PRODUCTS:
        left, right = (operation.inputs[index].shape for index in PRODUCTS[name])
        return math.prod(left[:-2]), left[-2], right[-1], left[-1]
    if name in LIBRARY_PRODUCTS:
        rows = operation.inputs[LIBRARY_PRODUCTS[name]]
        # An `.out` overload returns nothing; what it writes is its last argument.
        written = (operation.outputs or operation.inputs[-1:])[0]
        return 1, rows.elements // rows.shape[-1], written.shape[-1], rows.shape[-1]
    if name == SPARSE:
        packed, inputs = operation.inputs[:2]
        return 1, inputs.shape[1], packed.shape[0], inputs.shape[0] // 2
    return None


def flops(operation: Operation, *, causal: bool = True) -> int:
    """Floating-point operations of one call; integer ones for products of int8.

    Whether attention is causal is no tensor, so an operation does not say: with `causal`, attention
    over as many keys as queries and without a mask looks back only and counts half, as it does in
    every decoder.
    """
    shape = product(operation)
    if shape is not None:
        return 2 * math.prod(shape)
    attended = attention(operation)
    if attended is None:
        return 0
    batch, heads, queries, width = attended.query.shape
    keys, depth = attended.key.shape[-2], attended.value.shape[-1]
    widths = 3 * width + 2 * depth if attended.backward else width + depth
    whole = 2 * batch * heads * queries * keys * widths
    return whole // 2 if causal and not attended.masked and queries == keys else whole


def attention(operation: Operation) -> Attention | None:
    """What an operation attends with; None for any other operation."""
    name = packet(operation)
    backward = name.endswith("_backward")
    if name.removesuffix("_backward") not in ATTENTION:
        return None
    # Backward, the output's gradient comes first and the output itself after the values.
    query, key, value = operation.inputs[backward : 3 + backward]
    squares = sum(len(each.shape) == 4 for each in operation.inputs)
    return Attention(query, key, value, squares > (5 if backward else 3), backward)


def arithmetic(operation: Operation) -> Format:
    """The format whose rate an operation runs at: that of its left factor, or its first tensor."""
    name = packet(operation)
    place = LIBRARY_PRODUCTS.get(name, PRODUCTS.get(name, (0, 1))[0])
    factors = operation.inputs[place : place + 1]
    return FORMATS.get(factors[0].dtype, "fp32") if factors else "fp32"
