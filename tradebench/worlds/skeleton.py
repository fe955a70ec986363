"""Skeletons: models on the meta device, with shapes and no values yet, and how they are filled.

A 70B model in 16 bits is larger than the device that its quantized form is meant for. The weights
of its linear layers therefore come one at a time, each when the quantizer asks for it: read from a
checkpoint, or drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tradebench.techniques.targets import decoder_linears

Make = Callable[[Tensor], Tensor]


class Absent(nn.Linear):
    """A linear layer that keeps the shape of its weight, on the meta device, and no values.

    `make` gives the weight that belongs to such a shape. Nobody keeps a copy of it, so whoever asks
    twice has it made twice.
    """

    make: Make

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # an attribute of other linear layers
        """The dense weight, made on the spot."""
        shape = self._parameters["weight"]
        assert shape is not None, "every linear layer has a weight"
        return self.make(shape)


def leave_out(skeleton: nn.Module, make: Make) -> list[nn.Linear]:
    """Let the decoder's linear layers go without their weights; returns them, in order.

    Whoever gives them their class back expects their weights again.
    """
    linears = [linear for _, linear in decoder_linears(skeleton) if type(linear) is nn.Linear]
    for linear in linears:
        linear.__class__ = Absent
        linear.make = make  # type: ignore[assignment]  # what its new class asks for
    return linears


def fill(skeleton: nn.Module, stored: torch.dtype | None = None) -> nn.Module:
    """Put a tensor of the current device in the place of every meta tensor, in place.

    The tensors hold whatever is in memory; ties stay ties. `stored` is the format of the checkpoint
    from which they come, None where they come from nowhere. Weights that are absent stay absent.
    """
    return fill_by(skeleton, lambda name, meta: read(meta, stored))


def fill_by(skeleton: nn.Module, make: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Put `make(name, meta)` in the place of every meta tensor, in the order of a checkpoint.

    Ties stay ties, by the name that comes first. Weights that are absent stay absent.
    """
    filled: dict[Tensor, Tensor] = {}
    places = [
        (f"{path}.{name}" if path else name, tensors, name)
        for path, module in skeleton.named_modules()
        for tensors, name in _missing(module)
    ]
    for path, tensors, name in sorted(places, key=lambda place: _natural(place[0])):
        meta = tensors[name]
        if meta not in filled:
            filled[meta] = make(path, meta)
        tensors[name] = filled[meta]
    return skeleton


def fill_each(
    skeleton: nn.Module,
    start: Callable[[nn.Module], object],
    keep: Callable[[nn.Module], object],
) -> nn.Module:
    """Fill a skeleton module by module, in place: give it values by `start`, then `keep` it.

    What is kept may be less. Ties stay ties; weights that are absent stay absent.
    """
    filled: dict[Tensor, Tensor] = {}
    for module in skeleton.modules():
        metas = [(tensors, name, tensors[name]) for tensors, name in _missing(module)]
        for tensors, name, meta in metas:
            tensors[name] = filled[meta] if meta in filled else read(meta, None)
        start(module)
        keep(module)
        filled |= {meta: tensors[name] for tensors, name, meta in metas}
    return skeleton


def _missing(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """The places of a module's own tensors that have no values yet."""
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            absent = name == "weight" and isinstance(module, Absent)
            if tensor is not None and tensor.device.type == "meta" and not absent:
                yield tensors, name


def read(meta: Tensor, stored: torch.dtype | None) -> Tensor:
    """One tensor as it comes out of the checkpoint; buffers are not part of it."""
    if not isinstance(meta, nn.Parameter):
        return torch.empty(meta.shape, dtype=meta.dtype)
    data = torch.empty(meta.shape, dtype=stored or meta.dtype).to(meta.dtype)
    return nn.Parameter(data, requires_grad=meta.requires_grad)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts names by their numbers' values: layer 2 before layer 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
