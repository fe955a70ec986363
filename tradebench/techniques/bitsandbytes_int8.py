"""8-bit weights by bitsandbytes: LLM.int8(), one scale per row, outlier columns in 16 bits.

Weights take one byte each. They take no gradient, so training needs an adapter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import decoder_linears, replace_linears

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial

OUTLIER_THRESHOLD = 6.0  # the paper's, and the default of transformers


class Int8(Technique):
    """Quantizes the decoder's linear layers to 8 bits by row."""

    slot, stage, axis = "quantization", Stage.QUANTIZE, "method"
    cite = "Dettmers et al. 2022, arXiv:2208.07339; bitsandbytes"

    method: Literal["int8"]

    def conflicts(self, trial: Trial) -> list[str]:
        """Integers cannot be trained, and DoRA reads a norm that int8 layers do not offer."""
        reasons = []
        if trial.method("adapters") is None:
            reasons.append(
                "int8 weights are integers and take no gradient; add an adapter such as lora"
            )
        if trial.method("adapters") == "dora":
            reasons.append("dora crashes on an int8 base in peft; use nf4, or lora on int8")
        return reasons

    def load(self, request: LoadRequest) -> LoadRequest:
        """Quantize while loading, unless an earlier technique needs the dense weights."""
        from transformers import BitsAndBytesConfig

        if request.dense_first:
            return request
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=OUTLIER_THRESHOLD)
        return replace(request, quantization=config)

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Quantize in place what is still dense."""
        import torch
        from bitsandbytes.functional import int8_vectorwise_quant
        from bitsandbytes.nn import Int8Params, Linear8bitLt

        def quantize(linear: nn.Linear) -> nn.Module:
            packed: Any = Linear8bitLt(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                has_fp16_weights=False,
                threshold=OUTLIER_THRESHOLD,
                device="meta",
            )
            if request.drawn_late:
                # As on the way from the CPU to the device, without the way.
                rows, scales, _ = int8_vectorwise_quant(linear.weight.data.to(torch.float16))
                packed.weight = Int8Params(
                    rows, requires_grad=False, has_fp16_weights=False, CB=rows, SCB=scales
                )
            else:
                # Quantization happens on the way from the CPU to the device.
                packed.weight = Int8Params(
                    linear.weight.data.to("cpu"), requires_grad=False, has_fp16_weights=False
                ).to(request.device)
            packed.bias = linear.bias
            return packed  # type: ignore[no-any-return]  # bitsandbytes is untyped

        if request.quantization is None:
            replace_linears(model, quantize)
            # peft asks for this before it wraps a layer.
            model.is_loaded_in_8bit = True  # type: ignore[assignment]  # a flag
        return model

    def effect(self, model: nn.Module) -> Effect:
        """Count quantized layers and their bytes, scales included."""
        import torch
        from bitsandbytes.nn import Linear8bitLt

        layers = [module for _, module in decoder_linears(model)]
        packed = [
            module
            for module in layers
            if isinstance(module, Linear8bitLt) and module.weight.dtype == torch.int8
        ]
        if not layers or len(packed) < len(layers):
            raise ContradictionError(
                f"int8 was asked for, but {len(layers) - len(packed)} of {len(layers)} linear "
                "layers are still dense"
            )
        return {
            "layers": len(packed),
            "weight_bytes": sum(module.weight.nbytes for module in packed),
            "scale_bytes": sum(_scales(module).nbytes for module in packed),
        }


def _scales(linear: Any) -> Tensor:
    """One scale per row: beside the weight, and in the layer's state once it has run."""
    scales: Tensor = linear.weight.SCB if linear.state.SCB is None else linear.state.SCB
    return scales
