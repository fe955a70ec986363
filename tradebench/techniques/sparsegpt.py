"""SparseGPT: zero weights column after column, and let those to come make up for the error.

The inputs of a layer say how the error of one weight is best undone by the others of its row: the
inverse of their second moments, the Hessian of the layer's squared error, is that recipe. Each
weight is judged by the error that is left after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tradebench.techniques.calibrated_pruning import CalibratedPruning
from tradebench.techniques.layerwise import Layer
from tradebench.techniques.masks import GROUPS, smallest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BLOCK = 128  # columns among which the weights to be zeroed are chosen at once


class SparseGPT(CalibratedPruning):
    """Zeroes a share of every 128 columns and moves what is left, by the layer's Hessian.

    A layer's Hessians, fp32 and as wide as the inputs, are in memory together.
    """

    cite = "Frantar & Alistarh 2023, arXiv:2301.00774; OWL arXiv:2310.05175"

    unusual: ClassVar[tuple[str, ...]] = (*CalibratedPruning.unusual, "damp")

    # Without a default: a suite that names no method of this slot means the plain one.
    method: Literal["sparsegpt"]
    damp: float = Field(
        0.01, gt=0, lt=1, description="share of the mean curvature that is added to every weight's"
    )

    @property
    def label(self) -> str:
        """`sparsegpt 50%`, with whatever else is not as usual."""
        return super().label + (f" damp {self.damp:g}" if self.damp != 0.01 else "")

    def pruned(self, shape: torch.Size) -> int:
        """So many of every 128 columns together."""
        rows, columns = shape
        widths = [min(BLOCK, columns - first) for first in range(0, columns, BLOCK)]
        return sum(self.fewest(rows * width * self.sparsity) for width in widths)

    def prune(self, layer: Layer, sparsity: float) -> None:
        """Zero and move the weights of each matrix by the Hessian of its inputs."""
        size = GROUPS.get(self.pattern)
        found = hessians(layer)
        for linear in layer.linears:
            hessian = found.pop(linear)  # so that it goes once it has been used
            weight = linear.weight.data.float()  # in fp32 it is the weight itself
            # A feature that never occurs has no say; its weights are zeroed first.
            weight.masked_fill_(hessian.diagonal() == 0, 0)
            factor = inverse_factor(hessian, self.damp)
            eliminate(weight, factor, sparsity, size)
            linear.weight.data.copy_(weight)


def hessians(layer: Layer) -> dict[nn.Linear, Tensor]:
    """The second moments of every linear layer's inputs, (features, features) in fp32."""
    import torch

    found = {
        linear: linear.weight.new_zeros(linear.in_features, linear.in_features, dtype=torch.float32)
        for linear in layer.linears
    }

    def add(linear: nn.Linear, inputs: Tensor) -> None:
        inputs = inputs.float()
        found[linear].addmm_(inputs.T, inputs)

    layer.watch(add)
    return found


def inverse_factor(hessian: Tensor, damp: float) -> Tensor:
    """The upper triangular U with U'U the inverse of the damped Hessian, which is overwritten.

    Row i of U holds, but for a factor, how an error in column i is undone by the columns after it.
    Factoring the Hessian from its last column on gives U without inverting it first.
    """
    import torch

    diagonal = hessian.diagonal()
    diagonal += damp * diagonal.mean()
    diagonal.masked_fill_(diagonal == 0, 1)  # nothing was ever put in
    lower = torch.linalg.cholesky(hessian.flip(0, 1))
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse.flip(0, 1)


def eliminate(weight: Tensor, factor: Tensor, sparsity: float, size: int | None) -> None:
    """Zero a share of the weights, or half of every `size` neighbours, and move the rest in place.

    Within a block each error is undone at once, beyond it when the block is through.
    """
    import torch

    columns = weight.shape[1]
    for first in _enough(range(0, columns, BLOCK), weight):
        last = min(first + BLOCK, columns)
        block, inner = weight[:, first:last], factor[first:last, first:last]
        errors = torch.empty_like(block, memory_format=torch.contiguous_format)
        zeroed = torch.zeros_like(errors, dtype=torch.bool)
        if size is None:
            scores = remaining_error(block, inner).flatten()
            zeroed.view(-1)[smallest(scores, int(scores.numel() * sparsity))] = True
        for column in _enough(range(last - first), weight):
            if size is not None and column % size == 0:
                group = slice(column, column + size)
                scores = remaining_error(block[:, group], inner[group, group])
                zeroed[:, group].scatter_(-1, smallest(scores, size // 2), True)
            error = errors[:, column]
            torch.mul(block[:, column], zeroed[:, column], out=error)
            error.div_(inner[column, column])
            block[:, column:].addr_(error, inner[column, column:], alpha=-1)
        block.masked_fill_(zeroed, 0)  # where rounding has left a trace
        weight[:, last:].addmm_(errors, factor[first:last, last:], alpha=-1)


def remaining_error(weight: Tensor, factor: Tensor) -> Tensor:
    """The squared error that is left when a weight is zeroed and the later ones make up for it."""
    return (weight / factor.diagonal()).square_()


def _enough(steps: range, tensor: Tensor) -> range:
    """All steps; where there are no values the first, since every one takes the same memory.

    The columns of a large model are tens of thousands, each a few operations.
    """
    from torch._subclasses.fake_tensor import FakeTensor

    return steps[:1] if isinstance(tensor, FakeTensor) else steps
