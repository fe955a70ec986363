"""What pruning by activations has in common: layer after layer, and how much of each layer.

OWL (arXiv:2310.05175) prunes layers with many outlying weights less: the share of weights whose
magnitude times the norm of their input is several times the layer's mean decides.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tradebench.techniques.layerwise import Layer, layers_in_turn
from tradebench.techniques.masks import MaskedPruning, check_groups
from tradebench.techniques.protocol import LoadRequest
from tradebench.techniques.targets import decoder_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from tradebench.trial import Trial

OUTLYING = 5  # times the mean of its layer (OWL's M)
SPREAD = 0.08  # how far the sparsities of layers may lie from the mean (OWL's lambda)


class CalibratedPruning(MaskedPruning):
    """Zeroes the weights that matter least to what each layer puts out on training data."""

    unusual: ClassVar[tuple[str, ...]] = (*MaskedPruning.unusual, "allocation")

    allocation: Literal["uniform", "by_layer"] = Field(
        "uniform",
        description="the same sparsity in every layer, or less in layers with many outliers (OWL)",
    )
    samples: int = Field(16, ge=1, description="training micro-batches that are looked at")

    @property
    def label(self) -> str:
        """`wanda 50%`, with whatever else is not as usual."""
        words = [super().label]
        words += ["by layer"] if self.allocation == "by_layer" else []
        words += [f"samples {self.samples}"] if self.samples != 16 else []
        return " ".join(words)

    def conflicts(self, trial: Trial) -> list[str]:
        """Groups are half zero in every layer."""
        reasons = super().conflicts(trial)
        if self.allocation == "by_layer" and self.pattern != "unstructured":
            reasons.append(
                "a pattern of groups has the same sparsity in every layer; use allocation: uniform"
            )
        return reasons

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Prune one layer after the other, each fed by those that are pruned already."""
        check_groups(model, self.pattern)
        sparsities = self._sparsities(model, request)
        for layer in self._layers(model, request):
            self.prune(layer, sparsities[layer.index])
        return model

    @abstractmethod
    def prune(self, layer: Layer, sparsity: float) -> None:
        """Zero the weights of one layer, in place."""

    def fewest(self, share: float) -> int:
        """So many of a share of a row or block, rounded down; one less where layers differ.

        Over all layers the sparsities have the mean that was asked for, and each is rounded down.
        """
        return int(share) - (self.allocation == "by_layer")

    def _layers(self, model: nn.Module, request: LoadRequest) -> Iterator[Layer]:
        return layers_in_turn(model, islice(request.calibration(), self.samples))

    def _sparsities(self, model: nn.Module, request: LoadRequest) -> list[float]:
        """Of every layer; by layer, from the model as it is before anything is pruned."""
        if self.allocation == "uniform":
            return [self.sparsity] * len(decoder_layers(model))
        return allocate([outlying(layer) for layer in self._layers(model, request)], self.sparsity)


def input_norms(layer: Layer) -> dict[nn.Linear, Tensor]:
    """The norm of every input feature of every linear layer, over all tokens, in fp32."""
    import torch

    squares = {
        linear: linear.weight.new_zeros(linear.in_features, dtype=torch.float32)
        for linear in layer.linears
    }

    def add(linear: nn.Linear, inputs: Tensor) -> None:
        norms = torch.linalg.vector_norm(inputs, dim=0, dtype=torch.float32)
        squares[linear] += norms.square_()

    layer.watch(add)
    return {linear: square.sqrt_() for linear, square in squares.items()}


def importance(linear: nn.Linear, norms: Tensor) -> Tensor:
    """Magnitude of each weight times the norm of the feature that it is multiplied with."""
    return linear.weight.data.float().abs().mul_(norms)


def outlying(layer: Layer) -> float:
    """The share of the layer's weights whose importance is several times the mean."""
    norms = input_norms(layer)
    weights = sum(linear.weight.numel() for linear in norms)
    mean = sum(importance(linear, norm).sum() for linear, norm in norms.items()) / weights
    found = sum(
        int((importance(linear, norm) > OUTLYING * mean).sum()) for linear, norm in norms.items()
    )
    return found / weights


def allocate(shares: Sequence[float], sparsity: float) -> list[float]:
    """A sparsity for each layer, the less the more outlying weights it has; their mean is given."""
    low, high = min(shares), max(shares)
    if low == high:
        return [sparsity] * len(shares)
    spread = min(SPREAD, sparsity / 2, (1 - sparsity) / 2)
    scaled = [2 * spread * (share - low) / (high - low) for share in shares]
    mean = sum(scaled) / len(scaled)
    return [sparsity + mean - each for each in scaled]
