"""The share of a model that one process of several reads, before it is sharded.

A process that will keep a share of every weight reads no more than that; only a layer that is
quantized is whole for a moment. Until the model is sharded its parameters therefore have their
whole shape, which every technique goes by, and a storage of their share's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partialmethod
from typing import Any

from torch import Tensor, nn

_set_submodule = nn.Module.set_submodule


def share_out(module: nn.Module, ranks: int) -> None:
    """Leave the memory of one share, the first and largest, to every parameter of a module."""
    for parameter in module.parameters():
        if parameter.device.type != "meta" and parameter.dim() > 0:
            storage = parameter.untyped_storage()
            storage.resize_(0)  # released first: the two never exist beside each other
            storage.resize_(share_bytes(parameter, ranks))


def share_bytes(tensor: Tensor, ranks: int) -> int:
    """Bytes of the largest of so many shares: rows are dealt out whole."""
    rows = -(-tensor.shape[0] // ranks)
    return rows * (tensor.numel() // tensor.shape[0]) * tensor.itemsize


def shared_out(ranks: int) -> Iterator[tuple[Any, str, Any]]:
    """Where a module takes another's place, as a quantized one does: it is shared out at once."""
    if ranks > 1:
        yield nn.Module, "set_submodule", partialmethod(_set_and_share_out, ranks)


def _set_and_share_out(
    model: nn.Module, ranks: int, target: str, module: nn.Module, strict: bool = False
) -> None:
    _set_submodule(model, target, module, strict)
    share_out(module, ranks)
