"""A linear layer of which two in every four neighbouring weights of a row are stored: 2:4.

cuSPARSELt multiplies by such a weight as it is stored, along its rows. The way back multiplies
along its columns, of which any number may be zero, and no kernel does that: there the dense weight
is made, and exists while one product runs. A second copy that is compressed along the columns would
need no dense weight, but the two would take more than it.

What cuSPARSELt keeps beside the values is its own affair, so the places of the values are kept here
as well: two bits for each, as many as there. Together that is ten sixteenths of the dense weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tradebench.techniques import semi_structured

GROUP, KEPT = 4, 2  # neighbours of a row, and how many of them are stored
DTYPE = torch.bfloat16


class SemiStructuredLinear(nn.Linear):
    """`linear`, with the two largest of every four weights in bf16 and without the others.

    Of equal weights any are kept, and a zero that is kept becomes the least number. `packed` is
    what cuSPARSELt reads: the values, row by row, and its metadata, 9/16 of the dense weight.
    `places` has a byte for every eight columns of a row: where the values belong in their two
    groups, two bits each.
    """

    packed: Tensor
    places: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)  # nn.Linear would make a dense weight
        weight = linear.weight.detach().to(DTYPE)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        groups = weight.unflatten(1, (-1, GROUP))
        kept = groups.abs().topk(KEPT).indices.sort().values
        values = groups.gather(-1, kept).flatten(1)
        # The library tells what is kept by its not being zero.
        values.masked_fill_(values == 0, torch.finfo(DTYPE).tiny)
        self.register_buffer("places", pack(kept))
        del weight, groups, kept
        pruned = unpack(values, self.places)
        self.register_buffer("packed", semi_structured.compress(pruned, values))
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # an attribute of other linear layers
        """The dense weight, made on the spot: what is written to it is lost."""
        count = self.out_features * self.in_features // GROUP * KEPT
        values = self.packed.flatten()[:count].view(self.out_features, -1)
        return unpack(values, self.places)

    @property
    def qweight(self) -> Tensor:
        """Bytes of the layer, by the name under which peft looks for where it lies.

        Without them peft would ask for the dense weight, and have it made for nothing.
        """
        return self.places

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs @ weight.T + bias`, multiplied in bf16 and in the format of the inputs."""
        outputs: Tensor = _Product.apply(inputs, self)  # type: ignore[no-untyped-call]  # torch's
        return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)


class _Product(torch.autograd.Function):
    """Inputs times the transposed weight; only the inputs have a gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: SemiStructuredLinear) -> Tensor:
        # The layer outlives the step, so nothing of it is saved.
        ctx.layer, ctx.dtype = layer, inputs.dtype
        flat = inputs.reshape(-1, layer.in_features).to(DTYPE)
        outputs = semi_structured.multiply(flat, layer)
        return outputs.view(*inputs.shape[:-1], layer.out_features).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return (gradient.to(DTYPE) @ ctx.layer.weight).to(ctx.dtype), None


def pack(kept: Tensor) -> Tensor:
    """Places in their groups, shape (rows, groups, 2), in one byte for two groups."""
    pairs = kept.to(torch.uint8)
    groups = pairs[..., 0] | pairs[..., 1] << 2
    return groups[:, ::2] | groups[:, 1::2] << 4


def unpack(values: Tensor, places: Tensor) -> Tensor:
    """The dense weight, shape (rows, columns), of values (rows, columns / 2) and their places."""
    groups = torch.stack((places & 15, places >> 4), dim=-1).flatten(1)
    first, second = values.unflatten(1, (-1, KEPT)).unbind(-1)
    low, high = groups & 3, groups >> 2
    dense = values.new_empty(len(values), groups.shape[1], GROUP)
    for place in range(GROUP):
        column = torch.where(low == place, first, 0)
        dense[..., place] = column.add_(torch.where(high == place, second, 0))
    return dense.flatten(1)
