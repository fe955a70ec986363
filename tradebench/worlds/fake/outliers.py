"""Outliers of LLM.int8(): columns of activations that it keeps in 16 bits, if values are large.

bitsandbytes looks for numbers of 6 and more, and multiplies their columns, and those of the weight
that meet them, apart from the rest. In trained models few of thousands of columns hold one
(Dettmers et al. 2022, arXiv:2208.07339); in random ones it may be all. A world without values can
have none of them or all, which are the least and the most memory and work that they can come to.
"""

from __future__ import annotations

from typing import Any, Literal

import bitsandbytes  # noqa: F401  # it registers the operations
import torch
from torch import Tensor
from torch._library.fake_impl import FakeImplCtx
from torch._library.simple_registry import singleton as registered
from torch._library.utils import Kernel

Outliers = Literal["none", "all"]


def _least_size(context: object, *, min: int = 0, max: int | None = None) -> int:
    """The size of a result that a custom operation finds in values: the least that it can be."""
    return min


def _quantize(states: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows in 8 bits, their scales, and a list of every column where outliers are looked for."""
    rows = torch.empty_like(states, dtype=torch.int8, memory_format=torch.contiguous_format)
    scales = states.new_empty(states.numel() // states.shape[-1], dtype=torch.float32)
    listed = states.new_empty(states.shape[-1], dtype=torch.int64) if threshold else None
    return rows, scales, listed


def _multiply(
    states: Tensor,
    rows: Tensor,
    weight: Tensor,
    row_scales: Tensor,
    weight_scales: Tensor,
    listed: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The product, and the listed columns of the activations in their own format.

    The shape function of bitsandbytes 0.50.2 gives the latter one dimension, and integers.
    """
    columns = 0 if listed is None else listed.numel()
    product = states.new_empty((*rows.shape[:-1], weight.shape[0]))
    return product, states.new_empty((*states.shape[:-1], columns))


def _shaped(name: str, function: Any) -> tuple[Any, str, Any]:
    return registered.find(f"bitsandbytes::{name}").fake_impl, "kernels", [Kernel(function, name)]


OUTLIERS: dict[Outliers, tuple[tuple[Any, str, Any], ...]] = {
    "none": ((FakeImplCtx, "new_dynamic_size", _least_size),),
    "all": (
        _shaped("int8_vectorwise_quant", _quantize),
        _shaped("int8_mixed_scaled_mm", _multiply),
    ),
}
