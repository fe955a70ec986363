"""What stands in the fake world for gptqmodel's layers and for its quantization.

gptqmodel need not be installed to predict what it takes. `StandIn` holds the same buffers as its
`TorchLinear` and makes the same tensors on the way forward, to the byte; `imitate` makes the
large ones of a quantization by optimum, which comes within a few percent. Tests hold both to the
library.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tradebench.techniques.targets import decoder_linears
from tradebench.worlds.skeleton import Absent

WORD = 32  # bits of the integers that weights are packed into
FIELDS = 12  # shifts per word at three bits, of which 32 fill three words


class StandIn(nn.Linear):
    """Takes the bytes of a `TorchLinear`, and its time on the way forward; it knows no weights."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor
    row_shifts: Tensor
    column_shifts: Tensor

    def __init__(self, linear: nn.Linear, bits: int, group: int) -> None:
        nn.Module.__init__(self)  # nn.Linear would make a dense weight
        rows, columns = linear.in_features, linear.out_features  # gptqmodel stores the transpose
        self.in_features, self.out_features = rows, columns
        self.bits, self.group = bits, group
        self.integers = torch.int16 if bits == 8 else torch.int8
        groups = math.ceil(rows / group)
        # Made from the dense weight where there is one: a record then knows which layer it was of.
        empty = torch.zeros if isinstance(linear, Absent) else linear.weight.new_zeros
        self.register_buffer("qweight", empty((_words(rows, bits), columns), dtype=torch.int32))
        self.register_buffer("qzeros", empty((groups, _words(columns, bits)), dtype=torch.int32))
        self.register_buffer("scales", empty((groups, columns), dtype=torch.float16))
        self.register_buffer("g_idx", empty((rows,), dtype=torch.int32))
        bias = None if linear.bias is None else empty((columns,), dtype=torch.float16)
        self.register_buffer("bias", bias)
        shifts = empty((3, FIELDS) if bits == 3 else (WORD // bits,), dtype=torch.int32)
        # Two views of one tensor, as there.
        self.register_buffer("row_shifts", shifts.unsqueeze(-1).unsqueeze(0))
        self.register_buffer("column_shifts", shifts.unsqueeze(0).unsqueeze(0))
        self._zeros: Tensor | None = None
        self._groups: Tensor | None = None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # an attribute of other linear layers
        """A tensor of the format and the device that gptqmodel says its weight has."""
        return self.scales

    def forward(self, inputs: Tensor) -> Tensor:
        """A product with the unpacked weight, which autograd keeps for the way back."""
        flat = inputs.reshape(-1, self.in_features)
        weight = self._dequantized()
        if weight.dtype != flat.dtype:
            weight = weight.to(flat.dtype)
        outputs = torch.matmul(flat, weight).reshape(*inputs.shape[:-1], self.out_features)
        if self.bias is not None:
            outputs.add_(self.bias.to(outputs.dtype))
        return outputs

    def _dequantized(self) -> Tensor:
        """In training everything is unpacked anew; evaluations keep zero points and group numbers.

        What they keep stays there afterwards. Three bits are unpacked anew in either case.
        """
        if self.training or self.bits == 3:
            zeros, integers = self._unpacked_zeros(), self._unpacked_weights()
            weight: Tensor = self.scales[self.g_idx.long()] * (integers - zeros[self.g_idx.long()])
            return weight
        if self._zeros is None or self._groups is None:
            self._zeros, self._groups = self._unpacked_zeros(), self.g_idx.long()
        integers = self._unpacked_weights()
        found: Tensor = self.scales[self._groups] * (integers - self._zeros[self._groups])
        return found

    def _unpacked_zeros(self) -> Tensor:
        if self.bits == 3:
            words = self.qzeros.unflatten(1, (-1, 3)).unsqueeze(-1)
            return _three_bits(words.expand(-1, -1, -1, FIELDS), self.column_shifts, 3).flatten(1)
        words = self.qzeros.unsqueeze(2).expand(-1, -1, WORD // self.bits)
        fields: Tensor = (words >> self.column_shifts).to(self.integers)
        fields = fields & (2**self.bits - 1)
        return fields.flatten(1)[:, : self.out_features]

    def _unpacked_weights(self) -> Tensor:
        if self.bits == 3:
            words = self.qweight.unflatten(0, (-1, 3)).unsqueeze(2)
            return _three_bits(words.expand(-1, -1, FIELDS, -1), self.row_shifts, 2).flatten(0, 1)
        words = self.qweight.unsqueeze(1).expand(-1, WORD // self.bits, -1)
        fields: Tensor = (words >> self.row_shifts).to(self.integers)
        fields = fields & (2**self.bits - 1)
        return fields.flatten(0, 1)


def _words(values: int, bits: int) -> int:
    return math.ceil(values * bits / WORD)


def _three_bits(words: Tensor, shifts: Tensor, fields: int) -> Tensor:
    """32 values from every three words; `fields` is the dimension in which they lie.

    Two of them cross a word and are put together, which takes next to nothing.
    """
    found = (words >> shifts) & 7
    found = found & 7
    first, second, third = found.unbind(fields - 1)
    axis = fields - 1
    parts = (first.narrow(axis, 0, 11), second.narrow(axis, 1, 11), third.narrow(axis, 1, 10))
    return torch.cat(parts, dim=axis)


@torch.no_grad()
def imitate(model: nn.Module, tokens: int, bits: int, group: int) -> None:
    """Make the large tensors of a quantization by optimum that looks at so many tokens.

    The inputs of the layer at hand are there for all of them while its matrices are rounded, one
    after the other. All packed layers are made before the first dense one is released.
    """
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]  # a method
    inputs = embeddings.weight.new_empty(tokens, embeddings.embedding_dim)
    for _, linear in decoder_linears(model):
        _round(linear)
    del inputs
    packed = {name: StandIn(linear, bits, group) for name, linear in decoder_linears(model)}
    for name, stand_in in packed.items():
        stand_in.qweight = stand_in.qweight.clone()  # packing fills a tensor of its own
        model.set_submodule(name, stand_in)


def _round(linear: nn.Linear) -> None:
    """What GPTQ makes of one matrix, all in fp32: its Hessian, inverted, then levels and losses."""
    weight = linear.weight
    copy = weight.float().clone()
    hessian = weight.new_zeros(linear.in_features, linear.in_features, dtype=torch.float32)
    factor, inverse = torch.empty_like(hessian), torch.empty_like(hessian)
    del factor
    rounded, losses = torch.empty_like(copy), torch.empty_like(copy)
    del hessian, inverse, losses, copy
    weight.data = rounded.to(weight.dtype)
