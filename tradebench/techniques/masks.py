"""What all techniques that zero weights have in common: which zeros, upkeep in training, and proof.

A pruned dense matrix saves no memory: these measure what sparsity costs in accuracy, which is the
price of any format that would save the bytes. A file for each method chooses the weights.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tradebench.errors import UserError
from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import decoder_linears
from tradebench.techniques.torchao_library import is_torchao

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Effect, Optimizer, OptimizerFactory
    from tradebench.trial import Trial

GROUPS = {"2:4": 4, "4:8": 8}  # how many neighbours of a row half of which are zeroed
MASK = "pruning_mask"  # the buffer of a layer that is True where its weight is kept


class MaskedPruning(Technique):
    """Zeroes weights of the decoder's matrices and keeps them zero through training.

    Every matrix that trains gets a mask of one byte per weight; a frozen base needs none, unless an
    adapter is to be merged into it. Under FSDP2 a mask is sharded as its weight is.
    """

    slot, stage, axis = "pruning", Stage.PRUNE, "sparsity"

    # Settings that are written down only where they are not as usual: trials of old keep their ids.
    unusual: ClassVar[tuple[str, ...]] = ("pattern", "remask")

    sparsity: float = Field(0.5, gt=0, lt=1, description="share of weights set to zero")
    pattern: Literal["unstructured", "2:4", "4:8"] = Field(
        "unstructured", description="zeros anywhere, or in half of every 4 or 8 neighbours of a row"
    )
    remask: bool = Field(
        False, description="zero the pruned weights again once an adapter is merged into them"
    )

    @property
    def label(self) -> str:
        """`magnitude 50%`, with whatever else is not as usual."""
        words = [f"{self.method} {self.sparsity:.0%}"]
        words += [self.pattern] if self.pattern != "unstructured" else []
        words += ["remask"] * self.remask
        return " ".join(words)

    def settings(self) -> dict[str, Any]:
        """The fields as JSON, those that a trial of old did not have only where not as usual."""
        fields = super().settings()
        for name in self.unusual:
            if fields[name] == type(self).model_fields[name].default:
                del fields[name]
        return fields

    def conflicts(self, trial: Trial) -> list[str]:
        """Merging fills zeros, packed weights take no mask, and a pattern has a sparsity."""
        reasons = []
        merged = trial.settings.get("adapters", {}).get("merge", False)
        if merged and not self.remask:
            reasons.append(
                "merging an adapter fills the zeros of a pruned base; set merge: false or "
                "remask: true"
            )
        if self.remask and trial.method("quantization") is not None:
            reasons.append("a mask cannot be applied to quantized weights; set remask: false")
        if self.pattern != "unstructured" and self.sparsity != 0.5:
            reasons.append("a pattern of groups zeroes half of all weights; set sparsity to a half")
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """Zeros in a dense matrix take as many bytes as any other number."""
        return ["pruned weights are stored densely: sparsity costs accuracy here and saves 0 bytes"]

    @abstractmethod
    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Zero weights of every decoder matrix, in place."""

    @abstractmethod
    def pruned(self, shape: torch.Size) -> int:
        """How many weights of a matrix of this shape are zeroed at least."""

    def optimizer(self, factory: OptimizerFactory) -> OptimizerFactory:
        """Hold the zeros of every matrix that trains or that an adapter is merged into."""

        def make(model: nn.Module) -> Optimizer:
            for _, linear in decoder_linears(model):
                if _trains(linear) or self.remask:
                    linear.register_buffer(MASK, linear.weight != 0, persistent=False)
                if _trains(linear):
                    _mask_gradient(linear.weight, linear.get_buffer(MASK))
            return factory(model)

        return make

    def stepped(self, model: nn.Module) -> None:
        """Zero the pruned weights again: momentum and weight decay may have moved them."""
        for _, linear in decoder_linears(model):
            if _trains(linear):
                linear.weight.data.mul_(linear.get_buffer(MASK))

    def trained(self, model: nn.Module) -> nn.Module:
        """Zero the pruned weights again, of which a merged adapter has made other numbers."""
        if self.remask:
            for _, linear in decoder_linears(model):
                linear.weight.data.mul_(linear.get_buffer(MASK))
        return model

    def effect(self, model: nn.Module) -> Effect:
        """The share of zeros in the decoder's matrices, dequantized where they are quantized."""
        zeros = total = expected = broken = 0
        for _, linear in decoder_linears(model):
            weight = dense(linear)
            zero = weight == 0
            zeros += int(zero.sum())
            total += weight.numel()
            expected += self.pruned(weight.shape)
            if self.pattern != "unstructured":
                size = GROUPS[self.pattern]
                broken += int((zero.reshape(-1, size).sum(1) < size // 2).sum())
        if total == 0 or zeros < expected:
            raise ContradictionError(
                f"sparsity {self.sparsity:g} was asked for, but {zeros} of the decoder's {total} "
                "weights are zero"
            )
        if broken:
            raise ContradictionError(
                f"pattern {self.pattern} was asked for, but {broken} groups hold too few zeros"
            )
        found: Effect = {"zero_share": round(zeros / total, 6), "bytes_saved": 0}
        if self.remask and (dropped := _update_dropped(model)) is not None:
            found["update_dropped"] = dropped
        return found


def smallest(scores: Tensor, count: int) -> Tensor:
    """The places of the `count` smallest scores along the last dimension.

    All of them are sorted, so that the memory is the same whatever the count.
    """
    return scores.argsort(-1)[..., :count]


def zero_groups(weight: Tensor, scores: Tensor, size: int) -> None:
    """Zero the half with the smallest scores of every `size` neighbours of a row."""
    places = smallest(scores.view(len(scores), -1, size), size // 2)
    weight.view(len(weight), -1, size).scatter_(-1, places, 0)


def check_groups(model: nn.Module, pattern: str) -> None:
    """Hold every row to a whole number of groups.

    Raises:
        UserError: a row is no multiple of the group's size.
    """
    size = GROUPS.get(pattern, 1)
    for name, linear in decoder_linears(model):
        if linear.in_features % size:
            raise UserError(
                f"pattern {pattern} takes rows in groups of {size}, but {name} has rows of "
                f"{linear.in_features}"
            )


def dense(linear: nn.Linear) -> Tensor:
    """The weight as it is used in a product, shape (out, in); the layer is left as it is.

    peft's function for whole modules puts a new weight into an int8 layer and loses its scales.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
    from peft.utils.integrations import dequantize_bnb_weight, get_bnb_param_type
    from torch.distributed.tensor import DTensor

    if isinstance(linear.weight, DTensor):  # sharded, and without what bitsandbytes noted on it
        whole: Tensor = linear.weight.full_tensor()
        return (
            dequantize_4bit(whole, linear.quant_state) if isinstance(linear, Linear4bit) else whole
        )
    if is_torchao(linear.weight):
        return linear.weight.dequantize()
    if not get_bnb_param_type(linear.weight):
        return linear.weight
    weight: Tensor = dequantize_bnb_weight(linear.weight, state=getattr(linear, "state", None))
    return weight


def _trains(linear: nn.Linear) -> bool:
    """Whether the weight takes a gradient; a packed one is not unpacked to be asked."""
    return any(parameter.requires_grad for parameter in linear.parameters(recurse=False))


def _mask_gradient(weight: Tensor, mask: Tensor) -> None:
    """Zero the gradient of pruned weights as it is accumulated, so that no momentum builds up."""

    def hold(parameter: Tensor) -> None:
        assert parameter.grad is not None, "the hook runs after accumulation"
        parameter.grad.mul_(mask)

    weight.register_post_accumulate_grad_hook(hold)


def _update_dropped(model: nn.Module) -> float | None:
    """The share of the adapters' squared update that lies on pruned weights, which masks drop.

    None where no adapter can tell its update before it is merged: what OFT has is a rotation.
    """
    from peft.tuners.oft.layer import OFTLayer

    dropped = total = 0.0
    layers: list[Any] = [
        part
        for part in model.modules()
        if hasattr(part, "get_delta_weight") and not isinstance(part, OFTLayer)
    ]
    for layer in layers:
        mask = layer.base_layer.get_buffer(MASK)
        for name in layer.active_adapters:
            update = layer.get_delta_weight(name).detach().square()
            total += float(update.sum())
            dropped += float(update.mul(~mask).sum())
    return round(dropped / total, 6) if total else None
