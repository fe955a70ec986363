"""Loading a model into the fake world: a model on the meta device, as a checkpoint would fill it.

A checkpoint is read one tensor at a time: as it is stored, then in the format that was asked for,
then quantized, if it is to be. Each step holds its result beside the one before, as it does while
real weights are loaded, so the peak of loading is followed too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tradebench.techniques.targets import decoder_linears

Quantize = Callable[[nn.Module], nn.Module]


def load(
    skeleton: nn.Module, stored: torch.dtype | None, quantize: Quantize | None = None
) -> nn.Module:
    """Fill a model on the meta device with fake tensors, in place; ties stay ties.

    `stored` is the format of the checkpoint, None where values are made instead of read.
    `quantize` replaces the decoder's linear layers, and finds each weight dense when it asks for
    it.
    """
    if quantize is None:
        return _fill(skeleton, stored)
    linears = [linear for _, linear in decoder_linears(skeleton) if type(linear) is nn.Linear]
    for linear in linears:
        linear.__class__ = _Unread
        linear.stored = stored  # type: ignore[assignment]  # how to read it
    _fill(skeleton, stored)
    quantized = quantize(skeleton)
    for linear in linears:
        linear.__class__ = nn.Linear
    return _fill(quantized, stored)


class _Unread(nn.Linear):
    """A linear layer whose weight still lies in the checkpoint and is read whenever asked for."""

    stored: torch.dtype | None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # an attribute of other linear layers
        """The dense weight, of which nobody keeps a copy."""
        meta = self._parameters["weight"]
        assert meta is not None, "every linear layer has a weight"
        return _read(meta, self.stored)


def _fill(model: nn.Module, stored: torch.dtype | None) -> nn.Module:
    """Put a fake tensor in the place of every meta tensor but those that are left unread."""
    read: dict[Tensor, Tensor] = {}
    places = [
        (f"{path}.{name}", tensors, name)
        for path, module in model.named_modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
        and tensor.device.type == "meta"
        and not (name == "weight" and isinstance(module, _Unread))
    ]
    for _, tensors, name in sorted(places, key=lambda place: _natural(place[0])):
        meta = tensors[name]
        if meta not in read:
            read[meta] = _read(meta, stored)
        tensors[name] = read[meta]
    return model


def _read(meta: Tensor, stored: torch.dtype | None) -> Tensor:
    """One tensor as it comes out of the checkpoint; buffers are not part of it."""
    if not isinstance(meta, nn.Parameter):
        return torch.empty(meta.shape, dtype=meta.dtype)
    data = torch.empty(meta.shape, dtype=stored or meta.dtype).to(meta.dtype)
    return nn.Parameter(data, requires_grad=meta.requires_grad)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts names by their numbers' values: layer 2 before layer 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
