"""fp8 training: products of 8-bit floats on bf16 parameters, with scales found anew at every use.

The decoder's linear layers multiply rounded copies of weights, activations and gradients, forward
and backward, which GPUs with units for them do at twice the rate of 16 bits. What is stored stays
in bf16, the output head computes in bf16, and the copies take memory of their own. Nor is time
saved for certain: without a compiler that fuses them, finding the scales and rounding takes several
passes over every factor. On a CPU the same operations run without such units.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import decoder_linears, replace_linears

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial


class Float8(Technique):
    """Multiplies 8-bit floats in the decoder's linear layers, by torchao; stores bf16.

    It comes where layers would be quantized: once they are pruned and factored, and before they are
    adapted.
    """

    slot, stage, axis = "precision", Stage.QUANTIZE, "method"
    cite = "Micikevicius et al. 2022, arXiv:2209.05433; https://github.com/pytorch/ao"
    extra = "torchao"
    packages = ("torchao",)
    capability = (8, 9)  # NVIDIA's first architecture with units for 8-bit floats is Ada

    method: Literal["fp8"]
    scaling: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] = Field(
        "tensorwise",
        description="a scale per tensor, or per row; gw_hp leaves gradients of weights in bf16",
    )

    @property
    def label(self) -> str:
        """`fp8`, or `fp8 rowwise`."""
        return self.method if self.scaling == "tensorwise" else f"{self.method} {self.scaling}"

    @property
    def piecemeal(self) -> bool:
        """Every layer is converted by itself."""
        return True

    def conflicts(self, trial: Trial) -> list[str]:
        """Quantized layers multiply in their own way."""
        if trial.method("quantization") is not None:
            return [
                "fp8 multiplies in dense layers and a quantized base has none; use bf16 instead"
            ]
        return []

    def cautions(self, trial: Trial) -> list[str]:
        """What it does not save, and what it wastes on a frozen base."""
        notes = [
            "fp8 saves no memory and saves time only where a compiler fuses the rounding: "
            "eager kernels scale and round every factor by themselves",
            "fp8 has units of its own on GPUs from Ada and Hopper on: "
            "its time on a CPU says nothing about them",
        ]
        if trial.method("adapters") is not None:
            notes.append(
                "fp8 layers compute gradients for frozen weights as well and drop them: "
                "a third of their products is wasted beside an adapter"
            )
        return notes

    def load(self, request: LoadRequest) -> LoadRequest:
        """Ask for bf16 parameters."""
        import torch

        return replace(request, dtype=torch.bfloat16, compute_dtype=torch.bfloat16)

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Let the decoder's linear layers multiply 8-bit floats; their weights stay as they are."""
        self.need_packages()
        from torchao.float8.float8_linear import Float8Linear

        config = self._config()

        def convert(linear: nn.Linear) -> nn.Module:
            converted: nn.Module = Float8Linear.from_float(linear, config)
            return converted

        replace_linears(model, convert, request)
        return model

    def effect(self, model: nn.Module) -> Effect:
        """Count the layers that multiply 8-bit floats with these scales, and weights in bf16."""
        import torch
        from torchao.float8.float8_linear import Float8Linear

        config = self._config()
        layers = [linear for _, linear in decoder_linears(model)]
        converted = [
            linear
            for linear in layers
            if isinstance(linear, Float8Linear) and linear.config == config
        ]
        if not layers or len(converted) < len(layers):
            raise ContradictionError(
                f"{self.label} was asked for, but {len(layers) - len(converted)} of {len(layers)} "
                "linear layers multiply otherwise"
            )
        wide = [linear for linear in layers if linear.weight.dtype != torch.bfloat16]
        if wide:
            raise ContradictionError(
                f"{self.label} was asked for, but {len(wide)} weights are not stored in bf16"
            )
        return {"layers": len(converted), "scaling": self.scaling}

    def _config(self) -> Any:
        from torchao.float8 import Float8LinearConfig

        recipe = Float8LinearConfig.from_recipe_name(self.scaling)
        # Kernels want multiples of 16, and a batch may have any number of tokens.
        return replace(recipe, pad_inner_dim=True)
