"""Where libraries take another way for tensors on CUDA: the places that a fake CPU would miss.

Fake tensors lie on a CPU in name, since backward passes of fake CUDA tensors need a build of torch
for CUDA. A few functions look at that name; for a GPU's sake they are answered otherwise.

Read, and left as they are, because both ways take the same bytes of the device:

- 4-bit layers repack their weight for the CPU's kernel: the technique forbids it anyway.
- peft casts 16-bit adapters to fp32 when it merges on a CPU: they are in fp32 unless told to take
  the model's format, and then it is one layer's update at a time, after training.
- transformers repeats keys and values, or lets attention share them, by mask and head alone.
- Autocast has other lists for CUDA: what it adds there is given fp32 by the models themselves.
- Gradient scaling and the fused optimizer have one code for both devices.
- Checkpoints keep the random state of each device, and keep it on the host.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes.autograd._functions as products
import torch
from torch import Tensor
from torch.nn import functional

from tradebench.techniques import fused_loss, semi_structured

_attend = functional.scaled_dot_product_attention
_drop = functional.dropout


def _attend_as_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention that writes all scores down where no kernel of torch 2.13 shares keys.

    Flash attention and cuDNN do and take 16 bits; the memory-efficient kernel takes fp32 and learns
    it later (pytorch#191085). The CPU's kernel takes both.
    """
    half = (
        torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    ) in (torch.bfloat16, torch.float16)
    if half or not enable_gqa or query.shape[-3] == key.shape[-3]:
        return _attend(
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
    attended, _ = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=True
    )
    return attended  # type: ignore[no-any-return]  # torch leaves it untyped


def _drop_as_cuda(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Dropout by CUDA's fused kernel, whose mask has one byte for every element.

    A CPU's is a tensor of the input's format (aten/src/ATen/native/Dropout.cpp).
    """
    if not training or inplace or p in (0.0, 1.0):
        return _drop(input, p, training, inplace)
    dropped, _ = torch.native_dropout(input, p, train=True)
    return dropped


def _into_gradient_as_triton(logits: Tensor, labels: Tensor, losses: Tensor) -> None:
    """One kernel, which reads and writes logits where they are and allocates nothing."""
    losses.copy_(labels)
    logits.sub_(losses[:, None])


def _multiply_as_cusparselt(inputs: Tensor, layer: Any) -> Tensor:
    """One product with the packed weight, and what torch 2.13 pads and cuts around it.

    Tokens come in multiples of eight (torch/sparse/semi_structured.py).
    """
    missing = -len(inputs) % 8
    padded = functional.pad(inputs, (0, 0, 0, missing)) if missing else inputs
    packed = layer.packed.view(layer.out_features, -1)
    outputs = torch._cslt_sparse_mm(packed, padded.t(), transpose_result=True)
    return outputs[: len(inputs)].clone() if missing else outputs


CUDA: tuple[tuple[Any, str, Any], ...] = (
    # LLM.int8() multiplies integers on CUDA; on a CPU training dequantizes the weight instead.
    (products, "MatMul8bitFp", products.MatMul8bitLt),
    # It tells of every cast to fp16, which is every product.
    (products.logger, "disabled", True),
    (functional, "scaled_dot_product_attention", _attend_as_cuda),
    (functional, "dropout", _drop_as_cuda),
    (fused_loss, "into_gradient", _into_gradient_as_triton),
    (semi_structured, "multiply", _multiply_as_cusparselt),
)
