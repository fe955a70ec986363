"""The share of a model that one rank of several loads, before the model is sharded.

A rank that will keep a share of every weight reads no more than that; only a layer that is drawn or
quantized is whole for a moment. Until the model is sharded its parameters have their whole shape,
which techniques go by, and no values: whoever looks at one finds NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tradebench.techniques.protocol import SHARE

Place = tuple[int, int]  # which rank, of how many


def rows(count: int, place: Place) -> tuple[int, int, int]:
    """The first row of a rank's share of so many, how many it has, and how many the first has."""
    number, ranks = place
    largest = -(-count // ranks)
    first = min(number * largest, count)
    return first, min(largest, count - first), largest


def cut(whole: Tensor, place: Place) -> Tensor:
    """A rank's share of a tensor, in memory of its own."""
    first, own, largest = rows(whole.shape[0], place)
    share = torch.empty((largest, *whole.shape[1:]), dtype=whole.dtype, device=whole.device)
    share[:own].copy_(whole.detach()[first : first + own])
    share[own:].zero_()
    return share


def without_values(meta: Tensor, share: Tensor) -> nn.Parameter:
    """A parameter of this shape of which the rank has its share, with whatever is noted on it."""
    value = math.nan if share.is_floating_point() else 0
    nothing = torch.full((), value, dtype=share.dtype, device=share.device).expand(meta.shape)
    made = nn.Parameter(nothing, requires_grad=meta.requires_grad)
    vars(made).update(vars(meta))  # peft asks a quantized weight for its kind
    setattr(made, SHARE, share)
    made._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers leaves it alone
    return made


def keep_share(module: nn.Module, place: Place) -> nn.Module:
    """Leave this rank its share of every parameter of a module that is whole, in place."""
    for owner, name, parameter in parameters_of(module):
        if not hasattr(parameter, SHARE) and parameter.device.type != "meta" and parameter.dim():
            owner._parameters[name] = without_values(parameter, cut(parameter, place))
    return module


def parameters_of(module: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Every place of a parameter: its module, its name there, and itself; ties come repeatedly."""
    for owner in module.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                yield owner, name, parameter
