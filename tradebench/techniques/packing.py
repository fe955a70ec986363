"""Packing: several sequences share a row of the budget's length, where padding would have been.

The sequences of an epoch are laid into rows of at most `sequence` tokens by best-fit decreasing:
none is cut, and hardly any room is left. A micro-batch is `batch` such rows, so a step trains on
more sequences than one of padded rows does. Each keeps its own positions, counted from 0, and sees
itself only: loss and gradients of a packed batch are those of the same sequences padded, and what
is saved is the padding. A cache of keys and values would leak from one sequence into the next; the
program never uses one in training.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tradebench.techniques.protocol import (
    IGNORED,
    ContradictionError,
    Example,
    LoadRequest,
    Stage,
    Technique,
)

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import Batch, Effect
    from tradebench.trial import Budget, Trial


class Packing(Technique):
    """Lays the sequences of an epoch into as few rows of the budget's length as it can."""

    slot, stage, axis = "data", Stage.FEED, "method"
    cite = "Krell et al. 2021, arXiv:2107.02027; Ding et al. 2024, arXiv:2404.10830 (best fit)"

    method: Literal["packing"] = "packing"

    def cautions(self, trial: Trial) -> list[str]:
        """What a step sees and what the mask costs; and where there is nothing to pack."""
        notes = [
            "a packed row holds as many sequences as there is room for: a step trains on more of "
            "them than one of padded rows, so throughput compares and step time does not",
            "attention in packed rows runs under a mask: it looks at every pair of tokens of a row "
            "and repeats shared keys and values",
        ]
        if trial.budget.data == "random":
            notes.append("random sequences all have full length: there is nothing to pack")
        return notes

    def examples(self, examples: Sequence[Example], budget: Budget) -> Sequence[Example]:
        """Join the examples that share a row, in the order of the longest of each."""
        rows = best_fit([len(each.tokens) for each in examples], budget.sequence)
        # The examples come shuffled, so the place of one of a row's is as good as any chance.
        return [joined([examples[index] for index in row]) for row in sorted(rows)]

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Note on every micro-batch what it holds."""
        for batch in batches:
            setattr(batch["input_ids"], NOTE, _held(batch))
            yield batch

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Count what the decoder is given while it trains."""
        decoder: nn.Module = model.get_decoder()  # type: ignore[operator]  # transformers' accessor
        decoder.packed = dict.fromkeys(COUNTS, 0)  # type: ignore[assignment]  # counters
        decoder.register_forward_pre_hook(_count, with_kwargs=True)
        return model

    def effect(self, model: nn.Module) -> Effect:
        """How many sequences were trained on in how many rows, and tokens and padding in these."""
        decoder = model.get_decoder()  # type: ignore[operator]  # transformers' accessor
        found: dict[str, int] = getattr(decoder, "packed", {})
        if not found.get("rows"):
            raise ContradictionError("packing was asked for, but no batch came packed")
        return dict(found)


NOTE = "held"  # the attribute of a batch's tokens that says what it holds
COUNTS = ("sequences", "rows", "tokens", "padding")


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which sequences share a row of `room` tokens, in which every one of them fits.

    The longest come first, and each goes into the row that has least room left for it.
    """
    rows: list[list[int]] = []
    rooms: list[int] = []  # every different room that some row has left, rising
    having: dict[int, list[list[int]]] = {}  # and the rows that have it
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(rooms, lengths[index])
        if place < len(rooms):
            left = rooms[place]
            row = having[left].pop()
            if not having[left]:
                del having[left], rooms[place]
        else:
            left, row = room, []
            rows.append(row)
        row.append(index)
        left -= lengths[index]
        if left not in having:
            insort(rooms, left)
            having[left] = []
        having[left].append(row)
    return rows


def joined(examples: Sequence[Example]) -> Example:
    """These examples in one row.

    The first token of a sequence follows from nothing, so it carries no label here: in a row of its
    own the shift by one would have left it out.
    """
    if len(examples) == 1:
        return examples[0]
    return Example(
        tokens=tuple(token for each in examples for token in each.tokens),
        labels=tuple(label for each in examples for label in (IGNORED, *each.labels[1:])),
        packed=tuple(len(each.tokens) for each in examples),
    )


def _held(batch: Batch) -> dict[str, int]:
    """How many sequences, rows, tokens and places of padding a batch has."""
    real = batch["attention_mask"] > 0
    rows, tokens = len(real), int(real.sum())
    positions = batch.get("position_ids")
    begun = rows if positions is None else int((real & (positions == 0)).sum())
    counts = (begun, rows, tokens, real.numel() - tokens)
    return dict(zip(COUNTS, counts, strict=True))


def _count(decoder: Any, inputs: object, keywords: Mapping[str, Any]) -> None:
    """Note what a batch holds, if it came through packing."""
    held = getattr(keywords.get("input_ids"), NOTE, None)
    for name, number in (held or {}).items():
        decoder.packed[name] += number
