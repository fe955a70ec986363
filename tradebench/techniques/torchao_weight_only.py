"""8-bit weights by torchao: integers or 8-bit floats, one scale per row, no outliers apart.

Weights take one byte each and no gradient, so training needs an adapter. Every product dequantizes
its weight, and autograd keeps the result for the backward pass: unless layers are recomputed, all
dense weights lie beside the quantized ones when it begins, and training takes more memory than it
would on a dense base.

Nothing below 8 bits is offered: torchao stores its narrower integers (Intx) in a byte each, which
saves nothing, and its packed 4-bit formats need kernels of another package.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import decoder_linears, replace_linears
from tradebench.techniques.torchao_library import is_torchao

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial


class TorchaoWeightOnly(Technique):
    """Quantizes the decoder's linear layers by row, to integers or to floats of 8 bits (e4m3)."""

    slot, stage, axis = "quantization", Stage.QUANTIZE, "method"
    cite = "Micikevicius et al. 2022, arXiv:2209.05433 (e4m3); https://github.com/pytorch/ao"
    extra = "torchao"
    packages = ("torchao",)

    method: Literal["torchao_int8", "torchao_fp8"]

    def conflicts(self, trial: Trial) -> list[str]:
        """Quantized weights cannot be trained themselves, nor cut into shares."""
        reasons = []
        if trial.method("adapters") is None:
            reasons.append(
                f"{self.method} weights are quantized and take no gradient; "
                "add an adapter such as lora"
            )
        if trial.method("sharding") is not None:
            reasons.append(
                f"torchao cannot split {self.method} weights into shares; use nf4 or fp4 instead"
            )
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """What the dequantized weights take, and what int8 layers answer in."""
        notes = []
        if trial.method("checkpointing") is None and trial.method("offload") is None:
            notes.append(
                f"{self.method} layers keep their dequantized weights for the backward pass: "
                "without checkpointing training takes more memory than on a dense base"
            )
        if self.method == "torchao_int8" and trial.method("precision") in ("bf16_autocast", "fp16"):
            notes.append(
                "torchao_int8 layers answer in the format of their input: under autocast "
                "activations stay in fp32, with precision bf16 they do not"
            )
        return notes

    def load(self, request: LoadRequest) -> LoadRequest:
        """Quantize while loading, unless an earlier technique needs the dense weights."""
        from transformers import TorchAoConfig

        if request.dense_first:
            return request
        return replace(request, quantization=TorchAoConfig(self._config()))

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Quantize in place what is still dense."""
        from torch import nn
        from torchao.quantization import quantize_
        from transformers import TorchAoConfig
        from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

        config = self._config()

        def quantize(linear: nn.Linear) -> nn.Module:
            packed = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
            packed.weight = nn.Parameter(linear.weight.data, requires_grad=False)
            packed.bias = linear.bias
            quantize_(packed, config)
            return packed

        if request.quantization is None:
            replace_linears(model, quantize)
            # peft asks it how to quantize a weight again that an adapter was merged into.
            model.hf_quantizer = TorchAoHfQuantizer(TorchAoConfig(config))
        return model

    def effect(self, model: nn.Module) -> Effect:
        """Count quantized layers and their bytes, scales included.

        Only the tensors that a weight is made of take memory: the weight itself says that it is
        dense, and so does the count that transformers offers.
        """
        stored = self._stored()
        weights: list[Any] = [linear.weight for _, linear in decoder_linears(model)]
        packed = [weight for weight in weights if _format(weight) == stored]
        if not weights or len(packed) < len(weights):
            raise ContradictionError(
                f"{self.method} was asked for, but {len(weights) - len(packed)} of {len(weights)} "
                f"linear layers are not in {str(stored).removeprefix('torch.')}"
            )
        return {
            "layers": len(packed),
            "weight_bytes": sum(weight.qdata.nbytes for weight in packed),
            "scale_bytes": sum(map(_scale_bytes, packed)),
        }

    def _stored(self) -> torch.dtype:
        import torch

        return {"torchao_int8": torch.int8, "torchao_fp8": torch.float8_e4m3fn}[self.method]

    def _config(self) -> Any:
        self.need_packages()
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

        kind = {"torchao_int8": Int8WeightOnlyConfig, "torchao_fp8": Float8WeightOnlyConfig}
        # Otherwise it tunes torch's compiler for the whole process.
        return kind[self.method](set_inductor_config=False)


def _format(weight: Any) -> torch.dtype | None:
    """What a weight of torchao is stored in; None for any other weight."""
    return weight.qdata.dtype if is_torchao(weight) else None


def _scale_bytes(weight: Any) -> int:
    """Bytes of everything that a quantized weight is made of, save its values."""
    names, _ = weight.__tensor_flatten__()
    return sum(getattr(weight, name).nbytes for name in names if name != "qdata")
