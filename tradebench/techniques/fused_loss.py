"""Fused linear cross-entropy: the output head and the loss in one, as liger-kernel has it.

Logits exist for a few tokens at a time, in one buffer that a kernel turns into their gradient in
place. Both products of the backward pass follow at once, so nothing is computed twice; what is kept
for the way back is the gradient itself. liger-kernel is written in Triton and runs on a GPU. The
same steps in plain torch stand in for it elsewhere. In the fake world of a GPU they allocate what
it allocates, to a byte for each token; on a CPU the stand-in for its kernel needs more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tradebench.techniques.chunked_loss import hidden_states
from tradebench.techniques.protocol import ContradictionError, Stage, Technique

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Batch, Effect, LossFunction
    from tradebench.trial import Trial


class FusedLoss(Technique):
    """Computes the loss and its gradient together, by liger-kernel, and never holds all logits."""

    slot, stage, axis = "loss", Stage.FEED, "method"
    cite = "Hsu et al. 2024, arXiv:2410.10989"
    cuda_only: ClassVar[str | None] = "liger-kernel is written in Triton and runs on a GPU only"
    extra = "liger"
    packages = ("liger_kernel",)

    # Without a default: a suite that names no method of this slot means the plain one.
    method: Literal["fused"]

    def conflicts(self, trial: Trial) -> list[str]:
        """It takes the head's weight itself, past whatever surrounds a call of the head."""
        reasons = []
        if trial.method("sharding") is not None:
            reasons.append(
                "fused cross entropy reads the whole weight of the output head and sharding "
                "splits it; use loss: chunked"
            )
        if trial.method("precision") in ("bf16_autocast", "fp16"):
            reasons.append(
                "fused cross entropy under autocast would cast the weight of the output head anew "
                "for every chunk; use loss: chunked or precision: bf16"
            )
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """What a format of 16 bits does to it."""
        if trial.method("adapters") is None and trial.method("precision") == "bf16":
            return [
                "the gradient of the output head is added up over chunks in bf16: digits are lost"
            ]
        return []

    def loss(self, function: LossFunction) -> LossFunction:
        """Replace the loss by the fused one."""

        def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
            hidden, labels = hidden_states(model, batch)
            head: Any = model.get_output_embeddings()  # type: ignore[operator]  # transformers'
            head.fused_tokens = getattr(head, "fused_tokens", 0) + len(labels)
            if hidden.device.type == "cuda":
                return _liger(hidden, head.weight, labels)
            return _in_plain_torch()(hidden, head.weight, labels)

        return summed_loss

    def effect(self, model: nn.Module) -> Effect:
        """How many tokens went through the fused loss in training."""
        head = model.get_output_embeddings()  # type: ignore[operator]  # transformers' accessor
        tokens = getattr(head, "fused_tokens", 0)
        if not tokens:
            raise ContradictionError("a fused loss was asked for, but no token went through it")
        return {"tokens": tokens}


def _liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The library's own, with the signature of version 0.8."""
    from liger_kernel.transformers.functional import (
        liger_fused_linear_cross_entropy,
    )

    loss: Tensor = liger_fused_linear_cross_entropy(hidden, weight, labels, reduction="sum")
    return loss


def chunk_of(tokens: int, width: int, vocabulary: int) -> int:
    """How many tokens have logits at a time: about as many values as all hidden states have."""
    parts = -(-vocabulary // width)
    share = -(-tokens // parts)
    return min(1 << (share - 1).bit_length(), tokens)


def _in_plain_torch() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What liger-kernel 0.8.5 does on a GPU in one format throughout, allocation by allocation."""
    import torch
    from torch.autograd import Function

    class FusedCrossEntropy(Function):
        """The summed loss of hidden states (tokens, width), and its gradients in the same pass."""

        @staticmethod
        def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            chunk = chunk_of(len(hidden), hidden.shape[1], len(weight))
            to_hidden = torch.zeros_like(hidden)
            to_weight = torch.zeros_like(weight) if weight.requires_grad else None
            losses = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)
            logits = torch.empty(chunk, len(weight), dtype=hidden.dtype, device=hidden.device)
            for start in range(0, len(hidden), chunk):
                part = slice(start, start + chunk)
                states = hidden[part]
                gradient = logits[: len(states)]
                torch.mm(states, weight.t(), out=gradient)
                into_gradient(gradient, labels[part], losses[part])
                torch.mm(gradient, weight, out=to_hidden[part])
                if to_weight is None:
                    continue
                if weight.dtype == torch.float32:
                    to_weight += torch.mm(gradient.t(), states)
                else:
                    torch.addmm(to_weight, gradient.t(), states, out=to_weight)
            ctx.gradients = to_hidden, to_weight
            return losses.sum()

        @staticmethod
        def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor | None, None]:
            to_hidden, to_weight = ctx.gradients
            del ctx.gradients
            to_hidden.mul_(slopes[0])
            if to_weight is not None:
                to_weight.mul_(slopes[0])
            return to_hidden, to_weight, None

    return FusedCrossEntropy.apply


def into_gradient(logits: Tensor, labels: Tensor, losses: Tensor) -> None:
    """Put the gradient in the place of logits, and each token's loss into `losses`."""
    wide = logits.float()
    sums = wide.logsumexp(1)
    rows = wide.new_ones(len(labels), dtype=labels.dtype).cumsum(0) - 1
    losses.copy_(sums - wide[rows, labels])
    logits.copy_((wide - sums[:, None]).exp_())
    logits[rows, labels] -= 1
