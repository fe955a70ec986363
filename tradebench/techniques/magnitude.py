"""Magnitude pruning: zero the smallest weights of every matrix and keep them zero.

A pruned dense matrix saves no memory: this measures what sparsity costs in accuracy, which is the
price of any format that would save the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import decoder_linears
from tradebench.techniques.torchao_library import is_torchao

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Effect, Optimizer, OptimizerFactory
    from tradebench.trial import Trial


class Magnitude(Technique):
    """Zeroes the `sparsity` smallest weights of each decoder matrix; the mask holds in training."""

    slot, stage, axis = "pruning", Stage.PRUNE, "sparsity"
    cite = "Han et al. 2015, arXiv:1506.02626"

    method: Literal["magnitude"] = "magnitude"
    sparsity: float = Field(0.5, gt=0, lt=1, description="share of weights set to zero")

    @property
    def label(self) -> str:
        """`magnitude 50%`."""
        return f"{self.method} {self.sparsity:.0%}"

    def cautions(self, trial: Trial) -> list[str]:
        """Zeros in a dense matrix take as many bytes as any other number."""
        return ["pruned weights are stored densely: sparsity costs accuracy here and saves 0 bytes"]

    def pruned(self, weights: int) -> int:
        """How many weights of a matrix with so many are zeroed."""
        return int(weights * self.sparsity)

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Zero the smallest weights of each decoder matrix, in place."""
        import torch

        for _, linear in decoder_linears(model):
            weight = linear.weight.data
            count = self.pruned(weight.numel())
            smallest = weight.abs().flatten().topk(count, largest=False, sorted=False).indices
            weight.view(-1)[smallest] = torch.zeros((), dtype=weight.dtype, device=weight.device)
        return model

    def optimizer(self, factory: OptimizerFactory) -> OptimizerFactory:
        """Hold the zeros of every matrix that trains; a frozen base needs no mask."""

        def make(model: nn.Module) -> Optimizer:
            for _, linear in decoder_linears(model):
                if linear.weight.requires_grad:
                    linear.register_buffer("pruning_mask", linear.weight != 0, persistent=False)
                    _mask_gradient(linear.weight, linear.get_buffer("pruning_mask"))
            return factory(model)

        return make

    def stepped(self, model: nn.Module) -> None:
        """Zero the pruned weights again: momentum and weight decay may have moved them."""
        for _, linear in decoder_linears(model):
            if linear.weight.requires_grad:
                linear.weight.data.mul_(linear.get_buffer("pruning_mask"))

    def effect(self, model: nn.Module) -> Effect:
        """The share of zeros in the decoder's matrices, dequantized where they are quantized."""
        zeros = total = expected = 0
        for _, linear in decoder_linears(model):
            weight = _dense(linear)
            zeros += int((weight == 0).sum())
            total += weight.numel()
            expected += self.pruned(weight.numel())
        if total == 0 or zeros < expected:
            raise ContradictionError(
                f"sparsity {self.sparsity:g} was asked for, but {zeros} of the decoder's {total} "
                "weights are zero"
            )
        return {"zero_share": round(zeros / total, 6), "bytes_saved": 0}


def _mask_gradient(weight: Tensor, mask: Tensor) -> None:
    """Zero the gradient of pruned weights as it is accumulated, so that no momentum builds up."""

    def hold(parameter: Tensor) -> None:
        assert parameter.grad is not None, "the hook runs after accumulation"
        parameter.grad.mul_(mask)

    weight.register_post_accumulate_grad_hook(hold)


def _dense(linear: nn.Linear) -> Tensor:
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
