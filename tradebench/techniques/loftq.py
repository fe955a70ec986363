"""LoftQ: start low-rank adapters from what quantization takes away from the weights.

LoRA starts as the quantized model, errors and all. Here the largest singular values of each
matrix's error go into its adapter at once, so that training starts nearer the dense model; after
that everything is as with LoRA. It costs one singular value decomposition of every matrix, in fp32,
and dense weights to take it of: all of them are loaded before they are quantized, one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tradebench.techniques.lora import STARTS, UPDATE, Lora, size
from tradebench.techniques.protocol import ContradictionError, LoadRequest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Effect, Quantize
    from tradebench.trial import Trial

BASES = ("nf4", "fp4", "rtn")
START = "loftq_start"  # the attribute of a quantized layer that holds its adapter's start
ERRORS = "loftq_errors"  # the attribute of a model: squares of what was lost, what is, and of all


@dataclass(frozen=True)
class Start:
    """Where an adapter starts: (out, rank) and (rank, in).

    `squares` are sums of squares: of the error without it and with it, and of the dense weight.
    """

    up: Tensor
    down: Tensor
    squares: tuple[float, float, float]


class LoftQ(Lora):
    """Trains adapters that start from the error of quantization, on a frozen quantized base.

    More than one of `iterations` quantize what the adapters leave of the weights, in turns with
    fitting the adapters to the error.
    """

    cite = "Li et al. 2023, arXiv:2310.08659; peft"

    method: Literal["loftq"]  # type: ignore[assignment]  # none of LoRA's
    iterations: int = Field(1, ge=1, description="rounds of quantizing and fitting the adapters")

    @property
    def from_weights(self) -> bool:
        """Adapters start from the error, and are scaled by one unless `alpha` says otherwise."""
        return True

    @property
    def piecemeal(self) -> bool:
        """Every adapter starts from the error of one layer."""
        return True

    @property
    def label(self) -> str:
        """As of lora, with the rounds where there are several."""
        words = [super().label]
        words += [f"iterations {self.iterations}"] if self.iterations > 1 else []
        return " ".join(words)

    def conflicts(self, trial: Trial) -> list[str]:
        """There must be an error, of weights that are at hand one by one."""
        reasons = super().conflicts(trial)
        method = trial.method("quantization")
        if method is None:
            reasons.append(
                "loftq starts from the error of quantization; add nf4, fp4 or rtn, or use lora"
            )
        elif method not in BASES:
            reasons.append(
                f"{method} gives loftq no dense weights beside quantized ones; "
                "use nf4, fp4 or rtn, or lora instead"
            )
        if self.iterations > 1 and trial.method("pruning") is not None:
            reasons.append(
                "what adapters leave of pruned weights has none of their zeros; set iterations: 1"
            )
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """What loading takes, and what scores before training are of."""
        found = super().cautions(trial)
        if trial.model.weights != "random" and not trial.in_shares:
            found.append(
                "loftq needs the dense weights: all of them are loaded before they are quantized"
            )
        if self.iterations > 1:
            found.append("scores before training are of the base alone: it counts on its adapters")
        return found

    def load(self, request: LoadRequest) -> LoadRequest:
        """Quantize nothing while loading, and look on while it is quantized in place."""
        import torch

        dtype = torch.float32 if self.dtype == "fp32" else request.dtype
        around = partial(self._around, dtype)
        return replace(request, quantization=None, dense_first=True, around=around)

    def _around(
        self, dtype: torch.dtype, name: str, linear: nn.Linear, quantize: Quantize
    ) -> nn.Module:
        """Quantize a layer that will get an adapter, and leave the adapter's start with it."""
        if self.targets != "all-linear" and name.rpartition(".")[2] not in self.targets:
            return quantize(linear)
        from peft.utils.integrations import dequantize_module_weight

        dense = linear.weight.detach()
        packed = quantize(_holding(linear, dense))
        error = dense.float() - dequantize_module_weight(packed).float()
        lost = _square(error)
        up, down = self._fit(error, dtype)
        for _ in range(self.iterations - 1):
            packed = quantize(_holding(linear, dense - self._update(up, down).to(dense.dtype)))
            error = dense.float() - dequantize_module_weight(packed).float()
            up, down = self._fit(error, dtype)
        error -= self._update(up, down)
        setattr(packed, START, Start(up, down, (lost, _square(error), _square(dense.float()))))
        return packed

    @property
    def _scale(self) -> float:
        return (self.alpha or self.rank) / self.rank

    def _update(self, up: Tensor, down: Tensor) -> Tensor:
        """What an adapter adds to the weight."""
        return up.float() @ down.float() * self._scale

    def _fit(self, error: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The two matrices whose update is nearest the error: (out, rank) and (rank, in).

        A matrix that is thinner than the adapter has fewer singular values: the rest is zero.
        """
        import torch

        left, values, right = torch.linalg.svd(error, full_matrices=False)
        roots = (values[: self.rank] / self._scale).sqrt()
        up, down = left[:, : self.rank] * roots, roots[:, None] * right[: self.rank]
        missing = self.rank - len(roots)
        if missing > 0:
            pad = torch.nn.functional.pad
            up, down = pad(up, (0, missing)), pad(down, (0, 0, 0, missing))
        return up.to(dtype), down.to(dtype)

    def start(self, model: nn.Module) -> None:
        """Put what was left beside each layer into its adapter, and let go of it."""
        from peft.tuners.lora import LoraLayer

        starts, sums = {}, [0.0, 0.0, 0.0]
        modules: Any = model.named_modules()
        for name, layer in [each for each in modules if isinstance(each[1], LoraLayer)]:
            found: Start = vars(layer.get_base_layer()).pop(START)
            (adapter,) = layer.lora_B
            up, down = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
            up.data.copy_(found.up)
            down.data.copy_(found.down)
            starts[f"{name}{UPDATE}{adapter}.weight"] = size(up)
            sums = [sum(pair) for pair in zip(sums, found.squares, strict=True)]
            del found
        setattr(model, STARTS, starts)
        setattr(model, ERRORS, sums)

    def effect(self, model: nn.Module) -> Effect:
        """As of lora, and the error of all adapted weights, with and without their adapters."""
        found = super().effect(model)
        lost, left, whole = getattr(model, ERRORS)
        if not left < lost:
            raise ContradictionError(
                f"loftq was asked for, but its adapters do not bring the weights nearer: their "
                f"squared error is {left:g} with them and {lost:g} without"
            )
        return {
            **found,
            "relative_error": (left / whole) ** 0.5,
            "relative_error_without": (lost / whole) ** 0.5,
        }


def _holding(linear: nn.Linear, weight: Tensor) -> nn.Linear:
    """A layer like this one with another weight."""
    from torch import nn

    other = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    other.weight = nn.Parameter(weight, requires_grad=False)
    other.bias = linear.bias
    return other


def _square(matrix: Tensor) -> float:
    """The sum of squares."""
    norm: Any = matrix.norm()
    return float(norm) ** 2
