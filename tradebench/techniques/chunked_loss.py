"""Chunked cross-entropy: logits for a few hundred tokens at a time instead of for all of them.

With a vocabulary of 128,256 the fp32 logits of 2,048 tokens are 1 GiB, more than most layers keep.
Each chunk's logits are recomputed on the way back. torch's own fused variant returned a wrong
loss in bf16 (16.0 for 36.4, torch 2.13), so the chunks are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tradebench.techniques.protocol import (
    IGNORED,
    ContradictionError,
    Stage,
    Technique,
    model_inputs,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Batch, Effect, LossFunction


class ChunkedLoss(Technique):
    """Computes the loss over `tokens` tokens at a time, recomputing each chunk's logits."""

    slot, stage, axis = "loss", Stage.FEED, "tokens"
    cite = "Wijmans et al. 2024, arXiv:2411.09009"

    method: Literal["chunked"] = "chunked"
    tokens: int = Field(256, ge=1, description="tokens whose logits exist at the same time")

    def loss(self, function: LossFunction) -> LossFunction:
        """Replace the loss by one that never holds all logits."""
        import torch
        from torch.nn.functional import cross_entropy
        from torch.utils.checkpoint import checkpoint

        def chunk_loss(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(head(hidden).float(), labels, reduction="sum")

        def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
            hidden, labels = hidden_states(model, batch)
            head: Any = model.get_output_embeddings()  # type: ignore[operator]
            head.largest_chunk = max(
                getattr(head, "largest_chunk", 0), *map(len, hidden.split(self.tokens))
            )
            total = torch.zeros((), device=hidden.device)
            chunks = [*zip(hidden.split(self.tokens), labels.split(self.tokens), strict=True)]
            # A sharded head is put together for every chunk, which takes all ranks.
            chunks += [(hidden[:0], labels[:0])] * (_most(len(chunks), hidden.device) - len(chunks))
            for states, targets in chunks:
                total = total + checkpoint(chunk_loss, head, states, targets, use_reentrant=False)
            return total

        return summed_loss

    def effect(self, model: nn.Module) -> Effect:
        """The largest number of tokens whose logits existed together in training."""
        head = model.get_output_embeddings()  # type: ignore[operator]  # transformers' accessor
        largest = getattr(head, "largest_chunk", 0)
        if not 0 < largest <= self.tokens:
            raise ContradictionError(
                f"chunks of {self.tokens} tokens were asked for, but the largest had {largest}"
            )
        return {"largest_chunk": largest}


def _most(count: int, device: torch.device) -> int:
    """The largest of what all ranks have."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return count
    most = torch.tensor(count, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return max(count, int(most))  # in the fake world nobody answers


def hidden_states(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Last hidden states (tokens, width) and next-token labels (tokens,) where a label exists."""
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]  # transformers' accessor
    states = decoder(**model_inputs(batch), use_cache=False).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    kept = labels != IGNORED
    return states[kept], labels[kept]
