"""The libraries of January 2024, where they kept what those of today do not keep.

Some published figures are older than the libraries that predict them. Each place below is replaced
by what the version named beside it did with memory, read in its source. Nothing is fitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import bitsandbytes.autograd._functions as products
import torch
from torch import Tensor
from transformers.models.llama import modeling_llama as llama

from tradebench.predict import reading
from tradebench.worlds.fake.world import replaced

_multiply = products.MatMul4Bit.forward
_lay_out = llama.LlamaAttention.__init__
_rotate = llama.apply_rotary_pos_emb


def predict(payloads: Sequence[Mapping[str, Any]], target: Mapping[str, Any]) -> list[Any]:
    """Predictions as `reading.predict` makes them, on the libraries of January 2024."""
    with january_2024():
        return reading.predict(payloads, target)


@contextmanager
def january_2024() -> Iterator[None]:
    """Let torch, transformers and bitsandbytes keep what they kept then, in the whole process."""
    with ExitStack() as stack:
        for owner, name, instead in PLACES:
            stack.enter_context(replaced(owner, name, instead))
        yield


class _Mean(torch.autograd.Function):
    """The mean over a dimension as torch 2.1 had it, whose backward kept the whole input.

    It asked the input for nothing but the number of its elements. torch 2.2 keeps that number.
    Every RMSNorm takes a mean of squares in fp32.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, dim: int, keepdim: bool) -> Tensor:
        ctx.save_for_backward(values)
        ctx.dim, ctx.keepdim = dim, keepdim
        return torch.mean(values, dim, keepdim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (values,) = gradients, ctx.saved_tensors
        whole = gradient if ctx.keepdim else gradient.unsqueeze(ctx.dim)
        return whole.expand(values.shape) / values.shape[ctx.dim], None, None


def _mean(values: Tensor, dim: int | None = None, keepdim: bool = False, **options: Any) -> Tensor:
    if dim is None or options:
        return torch.mean(values, dim, keepdim, **options)
    mean: Tensor = _Mean.apply(values, dim, keepdim)  # type: ignore[no-untyped-call]  # torch's
    return mean


class _MatMul4Bit(products.MatMul4Bit):  # type: ignore[misc]  # bitsandbytes is not typed
    """The product of bitsandbytes 0.42, which kept its input though its weight has no gradient.

    It kept it as an attribute, so that recomputing a layer does not spare it. 0.43.2 keeps none.
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, *others: Any) -> Tensor:
        answer: Tensor = _multiply(ctx, given, weight, *others)
        if any(ctx.needs_input_grad[:2]):
            ctx.tensors = (given, weight)
        return answer


def _lay_out_with_tables(attention: Any, config: Any, layer_idx: int) -> None:
    """Attention as transformers 4.37 had it: with its own tables, of every position's rotation."""
    _lay_out(attention, config, layer_idx)
    for name in ("cos_cached", "sin_cached"):
        table = torch.empty(config.max_position_embeddings, attention.head_dim)
        attention.register_buffer(name, table, persistent=False)


def _rotate_by_own_rows(
    query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    """Rotation as in transformers 4.37: every layer picks the rows of its positions out anew."""
    rotated: tuple[Tensor, Tensor] = _rotate(query, key, cosines.clone(), sines.clone(), *others)
    return rotated


PLACES: tuple[tuple[Any, str, Any], ...] = (
    (Tensor, "mean", _mean),
    (products, "MatMul4Bit", _MatMul4Bit),
    (llama.LlamaAttention, "__init__", _lay_out_with_tables),
    (llama, "apply_rotary_pos_emb", _rotate_by_own_rows),
)
