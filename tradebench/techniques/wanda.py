"""Wanda: zero the weights whose magnitude times the norm of their input is smallest.

A small weight matters where its input is large. Weights compete within their row, the weights of
one output; those that stay are left as they are, so it takes one look at each layer's inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tradebench.techniques.calibrated_pruning import CalibratedPruning, importance, input_norms
from tradebench.techniques.layerwise import Layer
from tradebench.techniques.masks import GROUPS, smallest, zero_groups

if TYPE_CHECKING:
    import torch


class Wanda(CalibratedPruning):
    """Zeroes a share of every row, by magnitude times the norm of the input feature."""

    cite = "Sun et al. 2023, arXiv:2306.11695; OWL arXiv:2310.05175"

    # Without a default: a suite that names no method of this slot means the plain one.
    method: Literal["wanda"]

    def pruned(self, shape: torch.Size) -> int:
        """So many of every row."""
        rows, columns = shape
        return rows * self.fewest(columns * self.sparsity)

    def prune(self, layer: Layer, sparsity: float) -> None:
        """Zero the least important weights of every row."""
        for linear, norms in input_norms(layer).items():
            weight, scores = linear.weight.data, importance(linear, norms)
            if self.pattern != "unstructured":
                zero_groups(weight, scores, GROUPS[self.pattern])
            else:
                weight.scatter_(-1, smallest(scores, int(weight.shape[1] * sparsity)), 0)
