"""GPTQ: round the weights one column after the other, and let those to come make up for the error.

Inputs from the training data say which errors matter. gptqmodel does it (the maintained successor
of auto-gptq, whose checkpoints it reads), driven by optimum, and its kernel in torch computes.
Weights are packed and take no gradient, so training needs an adapter; and because that kernel
unpacks a weight with operations that autograd knows, the dense weight of every layer is kept until
its backward pass, unless the layer is recomputed.

Weights may come packed, too, from a folder that says how: in the `quantization_config` of its
config.json, or as auto-gptq wrote it, in a quantize_config.json. Where a folder of symmetric
weights names the wrong one of two formats, which shifts all weights, it is found out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tradebench.errors import UserError
from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.stored import V1, V2, packed_weights
from tradebench.techniques.targets import decoder_linears, replace_linears

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Model, Trial

# `auto` is for inference only, and `auto_trainable` loses gradients on a CPU once the model has
# been evaluated: 8 of 28 adapters train, without an error.
BACKEND = "gptq_torch"
ADAPTERS = ("lora", "rslora")
# What only quantizing takes.
MAKING = ("samples", "damp")


class GPTQ(Technique):
    """Quantizes the decoder's linear layers to `bits` bits, with an eye to what they are fed.

    Every sequence that it looks at is kept until the end as the input of the layer at hand. All
    layers are packed at the end, so compressing takes the dense model and the packed one together.
    """

    slot, stage, axis = "quantization", Stage.QUANTIZE, "bits"
    cite = "Frantar et al. 2022, arXiv:2210.17323; gptqmodel, optimum"
    aliases: ClassVar[dict[str, str]] = {"auto-gptq": "gptq"}
    extra = "gptq"
    packages = ("gptqmodel", "optimum")
    builds_with = ("tradebench.layers.gptq",)

    method: Literal["gptq"] = "gptq"
    bits: Literal[2, 3, 4, 8] = Field(4, description="bits of each weight")
    group: Literal[16, 32, 64, 128, 256, 512, 1024] = Field(
        128, description="neighbouring weights of a row that share a scale"
    )
    samples: int = Field(128, ge=1, description="training sequences that it looks at")
    damp: float = Field(
        0.1, gt=0, lt=1, description="share of the mean curvature that is added to every weight's"
    )
    desc_act: bool = Field(False, description="begin with the columns of the largest inputs")
    symmetric: bool = Field(True, description="levels around zero, without a zero point")
    source: Literal["model", "checkpoint"] = Field(
        "model", description="quantize the model, or read a checkpoint that holds packed weights"
    )

    @model_validator(mode="after")
    def _made_or_read(self) -> Self:
        given = [name for name in MAKING if name in self.model_fields_set]
        if self.source == "checkpoint" and given:
            raise ValueError(
                f"packed weights are read as they are: use source: model, or leave {given[0]} out"
            )
        return self

    def settings(self) -> dict[str, Any]:
        """The fields as JSON; how weights are quantized only where they are."""
        fields = super().settings()
        if self.source == "checkpoint":
            for name in MAKING:
                del fields[name]
        return fields

    @property
    def label(self) -> str:
        """`gptq 4-bit g128`, with whatever else is not as usual."""
        words = [f"{self.method} {self.bits}-bit g{self.group}"]
        words += [f"samples {self.samples}"] if self.samples != 128 else []
        words += [f"damp {self.damp:g}"] if self.damp != 0.1 else []
        words += ["desc_act"] * self.desc_act + ["asymmetric"] * (not self.symmetric)
        words += ["checkpoint"] if self.source == "checkpoint" else []
        return " ".join(words)

    def conflicts(self, trial: Trial) -> list[str]:
        """Packed weights cannot be trained themselves, and peft adapts them in the plain way only.

        A column's error is spread over the columns to come, pruned weights included.
        """
        reasons = self._unpacked(trial.model)
        adapter = trial.method("adapters")
        if adapter is None:
            reasons.append(
                "gptq weights are packed integers and take no gradient; add an adapter such as lora"
            )
        elif adapter not in ADAPTERS:
            reasons.append(f"peft cannot put {adapter} on gptq weights; use lora or rslora")
        if trial.settings.get("adapters", {}).get("merge"):
            reasons.append("an adapter cannot merge into packed gptq weights; set merge: false")
        if trial.method("pruning") is not None:
            reasons.append(
                "gptq spreads errors and fills the zeros of a pruned base; use rtn or nf4"
            )
        if trial.method("low_rank") is not None:
            reasons.append(
                "gptqmodel packs sides of 32 that factored matrices need not have; use rtn or nf4"
            )
        return reasons

    def _unpacked(self, model: Model) -> list[str]:
        """Why there are no packed weights to read, where that is known without the Hub."""
        if self.source == "model" or packed_weights(model) is not None:
            return []
        if model.weights == "random":
            return ["random weights are not packed; leave source: checkpoint out"]
        if model.name == "reference" or Path(model.name).expanduser().is_dir():
            return [
                f"{model.name} says neither in config.json nor in quantize_config.json that gptq "
                "has packed its weights; leave source: checkpoint out"
            ]
        return []

    def cautions(self, trial: Trial) -> list[str]:
        """Buffers are not sharded, and products keep dense weights."""
        notes = [
            "gptq keeps the dense weights of all layers from forward to backward pass: recomputed "
            "layers do without"
        ]
        if trial.method("checkpointing") is not None:
            notes.clear()
        if trial.method("sharding") is not None:
            notes.append("gptq weights are not sharded: every process holds all of them")
        return notes

    def load(self, request: LoadRequest) -> LoadRequest:
        """Read packed weights as they are; what is to be quantized here must all be there first."""
        if self.source == "model":
            return replace(request, drawn_late=False)
        from transformers import GPTQConfig

        config = GPTQConfig(
            bits=self.bits,
            group_size=self.group,
            desc_act=self.desc_act,
            act_group_aware=not self.desc_act,
            sym=self.symmetric,
            backend=BACKEND,
        )
        return replace(request, quantization=config)

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Quantize in place, unless the weights came packed; in the fake world, its stand-in."""
        import torch
        from torch._subclasses.fake_tensor import FakeTensor

        if isinstance(next(model.parameters()), FakeTensor):
            from tradebench.layers.gptq import StandIn, imitate

            if self.source == "model":
                tokens = sum(sequence.numel() for sequence in self._sequences(request))
                imitate(model, tokens, self.bits, self.group)
            elif request.quantization is None:  # while loading
                replace_linears(model, lambda linear: StandIn(linear, self.bits, self.group))
            return model.train()
        if self.source == "model":
            from optimum.gptq import GPTQQuantizer

            dataset = [
                {"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()}
                for tokens in self._sequences(request)
            ]
            quantizer = GPTQQuantizer(
                bits=self.bits,
                dataset=dataset,
                group_size=self.group,
                damp_percent=self.damp,
                desc_act=self.desc_act,
                act_group_aware=not self.desc_act,
                sym=self.symmetric,
                backend=BACKEND,
            )
            model = quantizer.quantize_model(model)
        layers = [module for module in model.modules() if hasattr(module, "qweight")]
        for layer in layers:
            _make_linear(layer)
        if self.source == "checkpoint" and self.symmetric:
            _check_zero_points(layers, self.bits)
        return model.train()

    def _sequences(self, request: LoadRequest) -> Iterator[Tensor]:
        """The first so many training sequences, each of shape (1, tokens), without padding.

        optimum counts every position of a sample, padding too.
        """
        left = self.samples
        for batch in request.calibration():
            for tokens, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                yield tokens[None, : int(mask.sum())]
                left -= 1
                if not left:
                    return

    def effect(self, model: nn.Module) -> Effect:
        """Count packed layers and their bytes, and hold them to the kernel that can train."""
        layers: list[Any] = [module for _, module in decoder_linears(model)]
        packed = [module for module in layers if hasattr(module, "qweight")]
        if not layers or len(packed) < len(layers):
            raise ContradictionError(
                f"{self.label} was asked for, but {len(layers) - len(packed)} of {len(layers)} "
                "linear layers are not packed"
            )
        found = {(layer.bits, layer.group_size) for layer in packed}
        if found != {(self.bits, self.group)}:
            raise ContradictionError(
                f"{self.label} was asked for, but layers have "
                f"{', '.join(f'{bits}-bit g{group}' for bits, group in sorted(found))}"
            )
        kernels = {str(layer.backend.value) for layer in packed}
        if kernels != {BACKEND}:
            raise ContradictionError(
                f"gptq must run on {BACKEND} to train, but layers run on {sorted(kernels)}"
            )
        return {
            "layers": len(packed),
            "weight_bytes": sum(layer.qweight.nbytes for layer in packed),
            "scale_bytes": sum(
                layer.scales.nbytes + layer.qzeros.nbytes + layer.g_idx.nbytes for layer in packed
            ),
        }


def _check_zero_points(layers: Sequence[Any], bits: int) -> None:
    """Hold symmetric weights to zero points in the middle.

    Raises:
        UserError: all are off by one, as where a folder names the wrong one of two formats.
    """
    middle = 2 ** (bits - 1)
    found = {int(value) for layer in layers for value in _zero_points(layer, bits)}
    if found in ({middle - 1}, {middle + 1}):
        said, held = (V2, V1) if found == {middle - 1} else (V1, V2)
        raise UserError(
            f"every zero point is {found.pop()} and not {middle}: the weights are in the format "
            f"{held}, but said to be in {said}; set checkpoint_format to {held} in config.json and "
            "quantize_config.json"
        )


def _zero_points(layer: Any, bits: int) -> NDArray[np.int64]:
    """The different zero points of a layer, whose words are a row of bits, the lowest first."""
    import numpy as np

    words = layer.qzeros.cpu().numpy()
    digits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    fields = digits[:, : layer.out_features * bits].reshape(-1, bits)
    return np.unique(fields @ (1 << np.arange(bits)))


def _make_linear(module: Any) -> None:
    """Let a layer of gptqmodel count as a linear layer, as those of other quantizers do.

    peft takes `all-linear` at its word and would pass it over. The layer has also arranged for its
    unpacking to be compiled, which takes minutes and changes what is measured.
    """
    from torch import nn

    vars(module).pop("dequantize_weight", None)
    kind = type(module)
    if not issubclass(kind, nn.Linear):
        module.__class__ = type(kind.__name__, (kind, nn.Linear), {})
