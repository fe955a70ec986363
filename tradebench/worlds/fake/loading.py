"""Loading a model into the fake world: a model on the meta device, as a checkpoint would fill it.

A checkpoint is read one tensor at a time: as it is stored, then in the format that was asked for,
then quantized, if it is to be. Each step holds its result beside the one before, as it does while
real weights are loaded, so the peak of loading is followed too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tradebench.techniques.targets import decoder_layers
from tradebench.worlds.fake.shares import share_out
from tradebench.worlds.skeleton import fill, leave_out, read

Quantize = Callable[[nn.Module], nn.Module]


def load(
    skeleton: nn.Module,
    stored: torch.dtype | None,
    quantize: Quantize | None = None,
    ranks: int = 1,
) -> nn.Module:
    """Fill a model on the meta device with fake tensors, in place; ties stay ties.

    `stored` is the format of the checkpoint, None where values are made instead of read.
    `quantize` replaces the decoder's linear layers, and finds each weight dense when it asks for
    it. Weights that are absent already stay absent. A process that is one of several `ranks` keeps
    its share of every parameter.
    """
    if quantize is None:
        return _fill(skeleton, stored, ranks)
    linears = leave_out(skeleton, lambda meta: read(meta, stored))
    _fill(skeleton, stored, ranks)
    quantized = quantize(skeleton)
    for linear in linears:
        linear.__class__ = nn.Linear
    return _fill(quantized, stored, ranks)


def _fill(model: Any, stored: torch.dtype | None, ranks: int) -> nn.Module:
    """Fill a model; one process of several goes layer by layer and keeps its share of each."""
    if ranks == 1:
        return fill(model, stored)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends = [] if embedding.weight is head.weight else [embedding, head]
    for unit in (*decoder_layers(model), *ends, model):
        share_out(fill(unit, stored), ranks)
    return model  # type: ignore[no-any-return]  # transformers makes its classes at run time
