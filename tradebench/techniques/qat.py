"""Quantization-aware training: train on weights rounded as they will be, then quantize them.

Every product uses the weight rounded to few bits and back; gradients pass the rounding as if it
were not there and reach the dense weight, which learns to be rounded. The last evaluation is of the
quantized model. Training takes more memory than without: the dense weights, gradients and optimizer
states remain, and autograd keeps every rounded weight, with a mask, for the backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tradebench.errors import UserError
from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import decoder_linears, replace_linears

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial


class QAT(Technique):
    """Rounds the decoder's linear weights to `bits` in training and quantizes them afterwards."""

    slot, stage, axis = "quantization", Stage.QUANTIZE, "bits"
    cite = "Jacob et al. 2017, arXiv:1712.05877; https://github.com/pytorch/ao"
    extra = "torchao"
    packages = ("torchao",)

    method: Literal["qat"]
    bits: Literal[4, 8] = Field(4, description="bits that each weight is rounded to")
    group: int = Field(32, ge=2, description="weights of a row that share a scale")
    activations: bool = Field(
        False, description="round the inputs of these layers too, to 8 bits, per token"
    )

    @property
    def label(self) -> str:
        """`qat bits 4`, with the group where it is not 32, and with `activations`."""
        words = [f"{self.method} bits {self.bits}"]
        words += [f"group {self.group}"] * (self.group != 32)
        return " ".join(words + ["activations"] * self.activations)

    def conflicts(self, trial: Trial) -> list[str]:
        """What would not be evaluated as it was trained, or could not be quantized."""
        reasons = []
        if trial.method("adapters") == "dora":
            reasons.append(
                "dora divides by the norm of the dense weight in training and of the rounded one "
                "after qat; use lora instead"
            )
        if trial.settings.get("adapters", {}).get("merge"):
            reasons.append("an adapter cannot merge into weights that qat rounds; set merge: false")
        factored = trial.settings.get("low_rank")
        if factored is not None and (factored.get("rank") or 1) % self.group:
            reasons.append(
                f"groups of {self.group} weights do not divide the rows of factored layers; "
                f"set rank: a multiple of {self.group}"
            )
        if trial.method("sharding") is not None:
            reasons.append(
                "qat cannot quantize weights that are split over processes; set sharding: off"
            )
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """What it takes, and what its result takes."""
        return [
            "qat saves no memory: training keeps the dense weights and rounded copies of them, and "
            "torchao then stores a byte for every weight of 8 bits or fewer"
        ]

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Put a layer that rounds in the place of each decoder linear; the weight is the same."""
        from torch import nn
        from torchao.quantization import quantize_
        from torchao.quantization.qat import QATConfig

        config = QATConfig(self._target(), step="prepare")

        def prepare(linear: nn.Linear) -> nn.Module:
            if linear.in_features % self.group:
                raise UserError(
                    f"a group of {self.group} does not divide the {linear.in_features} weights of "
                    "a row; choose another group for qat"
                )
            # torchao makes another weight before it takes the layer's, so it gets one of no bytes.
            holder = nn.Sequential(
                nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
            )
            quantize_(holder, config)
            (rounding,) = holder
            rounding.weight, rounding.bias = linear.weight, linear.bias
            return rounding

        replace_linears(model, prepare)
        return model

    def trained(self, model: nn.Module) -> nn.Module:
        """Quantize the weights for good."""
        from torchao.quantization import quantize_
        from torchao.quantization.qat import QATConfig

        quantize_(model, QATConfig(self._target(), step="convert"))
        return model

    def effect(self, model: nn.Module) -> Effect:
        """Count the layers that have rounded their weights, and the scales of the last rounding."""
        layers: list[Any] = [linear for _, linear in decoder_linears(model)]
        rounding = [layer for layer in layers if self._rounds(layer)]
        if not layers or len(rounding) < len(layers):
            raise ContradictionError(
                f"{self.label} was asked for, but {len(layers) - len(rounding)} of {len(layers)} "
                "linear layers have not rounded like that"
            )
        scales = sum(layer.weight_fake_quantizer.scale.numel() for layer in rounding)
        return {"layers": len(rounding), "scales": scales}

    def _rounds(self, layer: Any) -> bool:
        """Whether a layer rounds as the settings say and has done so: scales come with use."""
        from torchao.quantization.qat import FakeQuantizedLinear

        if not isinstance(layer, FakeQuantizedLinear):
            return False
        weights, inputs = layer.weight_fake_quantizer, layer.activation_fake_quantizer
        return (
            weights.enabled
            and weights.scale is not None
            and weights.config.dtype == self._dtype()
            and weights.config.group_size == self.group
            and (inputs is not None) == self.activations
        )

    def _dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, f"int{self.bits}")
        return dtype

    def _target(self) -> Any:
        """What the weights become in the end."""
        self.need_packages()
        from torchao.quantization import (
            Int8DynamicActivationIntxWeightConfig,
            IntxWeightOnlyConfig,
            PerGroup,
        )

        group = PerGroup(self.group)
        if self.activations:
            return Int8DynamicActivationIntxWeightConfig(
                weight_dtype=self._dtype(), weight_granularity=group
            )
        return IntxWeightOnlyConfig(weight_dtype=self._dtype(), granularity=group)
