"""A linear layer whose weights are packed integers of 2, 3, 4 or 8 bits.

Each group of neighbouring weights of a row has a scale in fp16 and a zero point in 8 bits, and a
weight is `(integer - zero point) * scale`. The dense matrix exists only while a product runs:
autograd keeps the packed one, and the backward pass unpacks it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

# A byte holds whole values only where their width divides eight: three bits are stored as the upper
# two of all values and then the lowest one of all values.
WIDTHS = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}

SCALE = torch.float16  # as GPTQ checkpoints have it


class PackedLinear(nn.Linear):
    """`linear`, with its weights rounded to the nearest of `2**bits` levels in each group.

    The levels are spread evenly from a group's least weight to its largest; zero is always among
    them, so what is pruned stays zero.
    """

    scales: Tensor
    zeros: Tensor

    def __init__(self, linear: nn.Linear, bits: int, group: int) -> None:
        nn.Module.__init__(self)  # nn.Linear would make a dense weight
        weight = linear.weight.detach()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bits, self.group, self.dtype = bits, group, weight.dtype
        integers, scales, zeros = _round(weight, bits, group)
        # A parameter, because sharding splits those and leaves buffers whole on every process.
        self.packed = nn.Parameter(pack(integers, bits), requires_grad=False)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # an attribute of other linear layers
        """The dense weight, made on the spot: what is written to it is lost."""
        packed = self.packed.detach()
        if isinstance(packed, DTensor):  # this process holds a share of it
            packed = packed.full_tensor()
        return dequantize(
            packed, self.scales, self.zeros, self.in_features, self.bits, self.group, self.dtype
        )

    @property
    def qweight(self) -> Tensor:
        """The packed integers, by the name under which peft looks for where a layer lies.

        Without it peft would ask for the dense weight, and have it made for nothing.
        """
        return self.packed

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs @ weight.T + bias`, in the format that autocast asks for, else the inputs'."""
        device = inputs.device.type
        if torch.is_autocast_enabled(device):
            inputs = inputs.to(torch.get_autocast_dtype(device))
        outputs: Tensor = _Product.apply(  # type: ignore[no-untyped-call]  # torch's
            inputs, self.packed, self.scales, self.zeros, self.bits, self.group
        )
        return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)


class _Product(torch.autograd.Function):
    """Inputs times the transposed weight; only the inputs have a gradient.

    Autograd's own product would keep the dense weight of every layer until the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        packed: Tensor,
        scales: Tensor,
        zeros: Tensor,
        bits: int,
        group: int,
    ) -> Tensor:
        ctx.save_for_backward(packed, scales, zeros)
        ctx.bits, ctx.group, ctx.columns = bits, group, inputs.shape[-1]
        weight = dequantize(packed, scales, zeros, ctx.columns, bits, group, inputs.dtype)
        return nn.functional.linear(inputs, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        packed, scales, zeros = ctx.saved_tensors
        weight = dequantize(packed, scales, zeros, ctx.columns, ctx.bits, ctx.group, gradient.dtype)
        return gradient @ weight, None, None, None, None, None


def pack(integers: Tensor, bits: int) -> Tensor:
    """Integers of so many bits, shape (rows, columns), packed along each row into whole bytes."""
    parts, above = [], bits
    for width in WIDTHS[bits]:
        above -= width
        per_byte = 8 // width
        part = (integers >> above) & (2**width - 1)
        part = nn.functional.pad(part, (0, -part.shape[1] % per_byte)).unflatten(1, (-1, per_byte))
        bytes_ = part[..., 0].clone()
        for place in range(1, per_byte):
            bytes_ |= part[..., place] << (place * width)
        parts.append(bytes_)
    return torch.cat(parts, dim=1)


def unpack(packed: Tensor, columns: int, bits: int) -> Tensor:
    """The integers that were packed, shape (rows, columns)."""
    found, start = None, 0
    for width in WIDTHS[bits]:
        per_byte = 8 // width
        end = start + -(-columns // per_byte)
        shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
        part = packed[:, start:end].unsqueeze(-1) >> shifts
        part = part.bitwise_and_(2**width - 1).flatten(1)[:, :columns]
        found = part if found is None else (found << width).bitwise_or_(part)
        start = end
    assert found is not None, "every width has a part"
    return found


def dequantize(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor,
    columns: int,
    bits: int,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    """The dense weight, shape (rows, columns)."""
    weight = unpack(packed, columns, bits).to(dtype)
    for values, groups in _grouped(weight, group):
        values.sub_(zeros[:, groups, None].to(dtype)).mul_(scales[:, groups, None].to(dtype))
    return weight


def _round(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, scales and zero points of every group."""
    levels = 2**bits - 1
    integers = torch.empty_like(weight, dtype=torch.uint8)
    groups = -(-weight.shape[1] // group)
    scales = weight.new_empty(weight.shape[0], groups, dtype=SCALE)
    zeros = weight.new_empty(weight.shape[0], groups, dtype=torch.uint8)
    for (values, where), (rounded, _) in zip(
        _grouped(weight, group), _grouped(integers, group), strict=True
    ):
        low = values.amin(-1, keepdim=True).float().clamp_(max=0)
        high = values.amax(-1, keepdim=True).float().clamp_(min=0)
        scale = ((high - low) / levels).to(SCALE)
        # A group of zeros, or of weights below what fp16 can tell from zero.
        scale = torch.where(scale == 0, torch.finfo(SCALE).tiny, scale)
        zero = (-low / scale).round_().clamp_(0, levels)
        rounded.copy_((values / scale.float()).round_().add_(zero).clamp_(0, levels))
        scales[:, where], zeros[:, where] = scale[..., 0], zero[..., 0].to(torch.uint8)
    return integers, scales, zeros


def _grouped(matrix: Tensor, group: int) -> Iterator[tuple[Tensor, slice]]:
    """Views of shape (rows, groups, columns), and which groups: whole ones, then a shorter last."""
    columns = matrix.shape[1]
    whole = columns // group
    if whole:
        yield matrix[:, : whole * group].unflatten(1, (whole, group)), slice(0, whole)
    if columns % group:
        yield matrix[:, whole * group :].unflatten(1, (1, -1)), slice(whole, whole + 1)
