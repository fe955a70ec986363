"""Round-to-nearest: every weight goes to the nearest of a few levels, and nothing looks at data.

The plainest quantization there is, and so the baseline that a cleverer one must beat at the same
bits. Weights are packed and take no gradient, so training needs an adapter; every product unpacks
them again, which costs time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import decoder_linears, replace_linears

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial


class RoundToNearest(Technique):
    """Rounds the decoder's linear layers to `bits` bits, in groups with a scale and a zero point.

    The levels of a group of neighbouring weights of a row are spread evenly between the least and
    the largest of them. Each group adds three bytes.
    """

    slot, stage, axis = "quantization", Stage.QUANTIZE, "bits"
    cite = "the baseline of Frantar et al. 2022, arXiv:2210.17323 (GPTQ)"
    builds_with = ("tradebench.layers.packed",)

    method: Literal["rtn"]
    bits: Literal[2, 3, 4, 8] = Field(4, description="bits of each weight")
    group: int = Field(128, ge=8, description="neighbouring weights of a row that share a scale")

    @property
    def label(self) -> str:
        """`rtn 4-bit g128`."""
        return f"{self.method} {self.bits}-bit g{self.group}"

    @property
    def piecemeal(self) -> bool:
        """Every layer is rounded by itself."""
        return True

    def conflicts(self, trial: Trial) -> list[str]:
        """Packed weights cannot be trained themselves, nor take an adapter in."""
        reasons = []
        if trial.method("adapters") is None:
            reasons.append(
                "rtn weights are packed integers and take no gradient; add an adapter such as lora"
            )
        if trial.settings.get("adapters", {}).get("merge"):
            reasons.append("an adapter cannot merge into packed rtn weights; set merge: false")
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """Only parameters are sharded."""
        if trial.method("sharding") is None:
            return []
        return ["scales of rtn weights are not sharded: every process holds all of them"]

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Round and pack in place, one layer after the other."""
        from tradebench.layers.packed import PackedLinear

        def quantize(linear: nn.Linear) -> nn.Module:
            return PackedLinear(linear, self.bits, self.group)

        replace_linears(model, quantize, request)
        return model

    def effect(self, model: nn.Module) -> Effect:
        """Count packed layers and their bytes, scales and zero points included."""
        from tradebench.layers.packed import PackedLinear

        layers = [module for _, module in decoder_linears(model)]
        packed = [module for module in layers if isinstance(module, PackedLinear)]
        if not layers or len(packed) < len(layers):
            raise ContradictionError(
                f"{self.label} was asked for, but {len(layers) - len(packed)} of {len(layers)} "
                "linear layers are not packed"
            )
        found = {(layer.bits, layer.group) for layer in packed}
        if found != {(self.bits, self.group)}:
            raise ContradictionError(
                f"{self.label} was asked for, but layers have "
                f"{', '.join(f'{bits}-bit g{group}' for bits, group in sorted(found))}"
            )
        return {
            "layers": len(packed),
            "weight_bytes": sum(layer.packed.nbytes for layer in packed),
            "scale_bytes": sum(layer.scales.nbytes + layer.zeros.nbytes for layer in packed),
        }
