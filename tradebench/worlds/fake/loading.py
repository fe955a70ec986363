"""Loading a model into the fake world: a model on the meta device, as a checkpoint would fill it.

A checkpoint is read one tensor at a time: as it is stored, then in the format that was asked for,
then quantized, if it is to be. Each step holds its result beside the one before, as it does while
real weights are loaded, so the peak of loading is followed too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tradebench.worlds.skeleton import fill, leave_out, read

Quantize = Callable[[nn.Module], nn.Module]


def load(
    skeleton: nn.Module, stored: torch.dtype | None, quantize: Quantize | None = None
) -> nn.Module:
    """Fill a model on the meta device with fake tensors, in place; ties stay ties.

    `stored` is the format of the checkpoint, None where values are made instead of read.
    `quantize` replaces the decoder's linear layers, and finds each weight dense when it asks for
    it. Weights that are absent already stay absent.
    """
    if quantize is None:
        return fill(skeleton, stored)
    linears = leave_out(skeleton, lambda meta: read(meta, stored))
    fill(skeleton, stored)
    quantized = quantize(skeleton)
    for linear in linears:
        linear.__class__ = nn.Linear
    return fill(quantized, stored)
