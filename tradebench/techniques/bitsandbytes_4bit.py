"""4-bit weights by bitsandbytes: NF4 or FP4 with one scale per block of 64 weights.

Weights shrink to about 0.56 bytes each (0.516 with double quantization, which quantizes the scales
as well); every use dequantizes them, which costs time, and they take no gradient, so training
needs an adapter.
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


class FourBit(Technique):
    """Quantizes the decoder's linear layers to 4 bits, in blocks of 64 weights."""

    slot, stage, axis = "quantization", Stage.QUANTIZE, "method"
    cite = "Dettmers et al. 2023, arXiv:2305.14314 (QLoRA); bitsandbytes"

    method: Literal["nf4", "fp4"]
    double: bool = Field(False, description="quantize the scales as well")

    @property
    def label(self) -> str:
        """`nf4`, or `nf4 double` where the scales are quantized too."""
        return f"{self.method} double" if self.double else self.method

    @property
    def piecemeal(self) -> bool:
        """Every layer is quantized by itself."""
        return True

    def conflicts(self, trial: Trial) -> list[str]:
        """Packed weights cannot be trained themselves."""
        if trial.method("adapters") is None:
            return [
                f"{self.method} weights are packed integers and take no gradient; "
                "add an adapter such as lora"
            ]
        return []

    def cautions(self, trial: Trial) -> list[str]:
        """These layers answer in the format of their input, whatever they compute in."""
        if trial.method("precision") in ("bf16_autocast", "fp16"):
            return [
                f"{self.method} layers answer in the format of their input: under autocast "
                "activations stay in fp32, with precision bf16 they do not"
            ]
        return []

    def load(self, request: LoadRequest) -> LoadRequest:
        """Quantize while loading, unless an earlier technique needs the dense weights."""
        from transformers import BitsAndBytesConfig

        if request.dense_first:
            return request
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.method,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=request.compute_dtype,
        )
        return replace(request, quantization=config)

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Quantize in place what is still dense, and keep the CPU kernel from repacking weights."""
        from bitsandbytes.nn import Linear4bit, Params4bit

        def quantize(linear: nn.Linear) -> nn.Module:
            packed: Any = Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=request.compute_dtype,
                compress_statistics=self.double,
                quant_type=self.method,
                device="meta",
            )
            packed.weight = Params4bit(
                linear.weight.data,
                requires_grad=False,
                quant_type=self.method,
                compress_statistics=self.double,
                module=packed,
            ).to(request.device)
            packed.bias = linear.bias
            return packed  # type: ignore[no-any-return]  # bitsandbytes is untyped

        if request.quantization is None:
            replace_linears(model, quantize, request)
            # peft asks for this before it wraps a layer.
            model.is_loaded_in_4bit = True  # type: ignore[assignment]  # a flag
        for module in model.modules():
            if isinstance(module, Linear4bit):
                # On CPUs with avx512_bf16 the first forward in evaluation mode repacks the weight
                # in place; backward, merging and saving then read the packed layout as if it were
                # not (gradient cosine 0.41, loss unchanged).
                module.support_avx512bf16_for_cpu = False
        return model

    def effect(self, model: nn.Module) -> Effect:
        """Count quantized layers and their bytes, scales included."""
        from bitsandbytes.nn import Linear4bit

        layers = [module for _, module in decoder_linears(model)]
        packed = [module for module in layers if isinstance(module, Linear4bit)]
        if not layers or len(packed) < len(layers):
            raise ContradictionError(
                f"{self.method} was asked for, but {len(layers) - len(packed)} of {len(layers)} "
                "linear layers are still dense"
            )
        states = [module.quant_state for module in packed]
        kinds = {(state.quant_type, state.nested) for state in states}
        if kinds != {(self.method, self.double)}:
            raise ContradictionError(
                f"{self.label} was asked for, but the layers hold "
                f"{', '.join(kind + ' double' * nested for kind, nested in sorted(kinds))}"
            )
        if any(getattr(state, "packing_format_for_cpu", False) for state in states):
            raise ContradictionError(
                "the CPU kernel has repacked the weights for inference, which corrupts gradients"
            )
        return {
            "layers": len(packed),
            "weight_bytes": sum(module.weight.nbytes for module in packed),
            "scale_bytes": sum(_scale_bytes(state) for state in states),
        }


def _scale_bytes(state: Any) -> int:
    """Bytes of a quant_state's scales: attributes of the weight, neither parameters nor buffers."""
    nested = state.state2.absmax.nbytes if state.nested else 0
    return int(state.absmax.nbytes + nested)
