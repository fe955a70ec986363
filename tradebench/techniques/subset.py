"""A subset of the training data: fewer examples, seen more often in as many steps.

A step takes what it took. What changes is what can be learnt, so this answers how much data the
other techniques' accuracies rest on. An example belongs to the subset, or not, by a digest of its
tokens alone: the same ones in every epoch, and all of a smaller subset in every larger one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tradebench.errors import UserError
from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import Batch, Effect, Example
    from tradebench.trial import Budget


class Subset(Technique):
    """Trains on a fraction of the examples, chosen by their contents."""

    slot, stage, axis = "data", Stage.FEED, "fraction"
    cite = "Zhou et al. 2023, arXiv:2305.11206 (LIMA)"

    method: Literal["subset"] = "subset"
    fraction: float = Field(0.5, gt=0, lt=1, description="share of the examples, about")

    def examples(self, examples: Sequence[Example], budget: Budget) -> Sequence[Example]:
        """Leave out what does not belong to the subset."""
        found = [each for each in examples if place(each.tokens) < self.fraction]
        if not found:
            raise UserError(
                f"no example of the training data falls into {self.label}: raise data.fraction"
            )
        return found

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Note on every micro-batch how many of its sequences belong to the subset."""
        for batch in batches:
            lengths: list[int] = batch["attention_mask"].sum(1).tolist()
            rows = zip(batch["input_ids"].tolist(), lengths, strict=True)
            inside = sum(place(tokens[:length]) < self.fraction for tokens, length in rows)
            setattr(batch["input_ids"], NOTE, inside)
            yield batch

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Count the sequences that the decoder is given while it trains."""
        decoder: nn.Module = model.get_decoder()  # type: ignore[operator]  # transformers' accessor
        decoder.subset_sequences = decoder.subset_inside = 0  # type: ignore[assignment]  # counters
        decoder.register_forward_pre_hook(_count, with_kwargs=True)
        return model

    def effect(self, model: nn.Module) -> Effect:
        """How many sequences were trained on, all of which belong to the subset."""
        decoder = model.get_decoder()  # type: ignore[operator]  # transformers' accessor
        sequences = getattr(decoder, "subset_sequences", 0)
        inside = getattr(decoder, "subset_inside", 0)
        if not sequences or inside < sequences:
            raise ContradictionError(
                f"{self.label} was asked for, but {inside} of {sequences} sequences belong to it"
            )
        return {"sequences": sequences}


def place(tokens: Sequence[int]) -> float:
    """Where an example lies between 0 and 1, by its tokens."""
    digest = hashlib.sha256(" ".join(map(str, tokens)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


NOTE = "inside_subset"  # the attribute of a batch's tokens that says how many of its rows belong


def _count(decoder: Any, inputs: object, keywords: Mapping[str, Any]) -> None:
    """Note what a batch holds, if it was looked at."""
    given = keywords.get("input_ids")
    inside = getattr(given, NOTE, None)
    if given is not None and inside is not None:
        decoder.subset_inside += inside
        decoder.subset_sequences += len(given)
