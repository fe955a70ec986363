"""Magnitude pruning: zero the smallest weights of every matrix and keep them zero.

It looks at no data, which makes it the baseline of every method that does. A pruned dense matrix
saves no memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tradebench.techniques.masks import GROUPS, MaskedPruning, check_groups, zero_groups
from tradebench.techniques.protocol import LoadRequest
from tradebench.techniques.targets import decoder_linears

if TYPE_CHECKING:
    import torch
    from torch import nn


class Magnitude(MaskedPruning):
    """Zeroes the `sparsity` smallest weights of each decoder matrix; the mask holds in training."""

    cite = "Han et al. 2015, arXiv:1506.02626"

    method: Literal["magnitude"] = "magnitude"

    def pruned(self, shape: torch.Size) -> int:
        """So many of the whole matrix, or half of it."""
        return int(shape.numel() * self.sparsity)

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Zero the smallest weights of each decoder matrix, in place."""
        import torch

        check_groups(model, self.pattern)
        for _, linear in decoder_linears(model):
            weight = linear.weight.data
            if self.pattern != "unstructured":
                zero_groups(weight, weight.abs(), GROUPS[self.pattern])
                continue
            count = self.pruned(weight.shape)
            places = weight.abs().flatten().topk(count, largest=False, sorted=False).indices
            weight.view(-1)[places] = torch.zeros((), dtype=weight.dtype, device=weight.device)
        return model
