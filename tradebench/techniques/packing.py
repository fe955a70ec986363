"""Packing: several short sequences share a row, where padding would have been.

The sequences of a micro-batch are laid into as few rows as its longest one allows. Each keeps its
own positions, counted from 0, and sees itself only: transformers finds where positions start again
and masks attention there. So loss and gradients are those of the padded batch, and what is saved is
the padding. A cache of keys and values would leak from one sequence into the next; the program
never uses one in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tradebench.techniques.protocol import (
    IGNORED,
    ContradictionError,
    LoadRequest,
    Stage,
    Technique,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Batch, Effect
    from tradebench.trial import Trial


class Packing(Technique):
    """Lays the sequences of each micro-batch into as few rows as its longest one allows."""

    slot, stage, axis = "data", Stage.FEED, "method"
    cite = "Krell et al. 2021, arXiv:2107.02027"

    method: Literal["packing"] = "packing"

    def cautions(self, trial: Trial) -> list[str]:
        """What the mask costs, and where there is nothing to pack."""
        notes = [
            "attention in packed rows runs under a mask: it looks at every pair of tokens of a row "
            "and repeats shared keys and values"
        ]
        if trial.budget.batch == 1:
            notes.append("a micro-batch of one sequence is a row already: there is nothing to pack")
        if trial.budget.data == "random":
            notes.append("random sequences all have full length: there is nothing to pack")
        return notes

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pack every micro-batch."""
        return map(packed, batches)

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Count the rows and sequences that the decoder is given while it trains."""
        decoder: nn.Module = model.get_decoder()  # type: ignore[operator]  # transformers' accessor
        decoder.packed_rows = decoder.packed_sequences = 0  # type: ignore[assignment]  # counters
        decoder.register_forward_pre_hook(_count, with_kwargs=True)
        return model

    def effect(self, model: nn.Module) -> Effect:
        """How many sequences were trained on, and in how many rows."""
        decoder = model.get_decoder()  # type: ignore[operator]  # transformers' accessor
        rows = getattr(decoder, "packed_rows", 0)
        if not rows:
            raise ContradictionError("packing was asked for, but no batch came packed")
        return {"sequences": decoder.packed_sequences, "rows": rows}


NOTE = "sequences"  # the attribute of a batch's positions that says how many sequences it packs


def packed(batch: Batch) -> Batch:
    """The same sequences in fewer rows, with the positions of each.

    The first token of a sequence follows from nothing, so it carries no label here: in a row of its
    own the shift by one would have left it out.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    lengths: list[int] = batch["attention_mask"].sum(1).tolist()
    rows = first_fit(lengths)
    labels = batch["labels"].clone()
    labels[:, 0] = IGNORED

    def joined(values: Tensor, padding: int) -> Tensor:
        lines = [torch.cat([values[index, : lengths[index]] for index in row]) for row in rows]
        return pad_sequence(lines, batch_first=True, padding_value=padding)

    tokens = joined(batch["input_ids"], 0)
    result = {
        "input_ids": tokens,
        "labels": joined(labels, IGNORED),
        "attention_mask": joined(batch["attention_mask"], 0),
        "position_ids": _positions([[lengths[i] for i in row] for row in rows], tokens),
    }
    setattr(result["position_ids"], NOTE, len(lengths))
    return result


def first_fit(lengths: Sequence[int]) -> list[list[int]]:
    """Which sequences share a row, none of which is longer than the longest sequence.

    The longest come first, and each goes into the first row that has room.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        place = next((at for at, left in enumerate(room) if left >= length), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(max(lengths))
        rows[place].append(index)
        room[place] -= length
    return rows


def _positions(rows: Sequence[Sequence[int]], tokens: Tensor) -> Tensor:
    """The place of each token in its sequence; padding goes on where the last one ends.

    So a batch in which no row is shared looks as if it were not packed, and needs no mask.
    """
    import torch

    width = tokens.shape[1]
    lines = []
    for lengths in rows:
        line = [place for length in lengths for place in range(length)]
        lines.append([*line, *range(lengths[-1], lengths[-1] + width - len(line))])
    return torch.tensor(lines, device=tokens.device)


def _count(decoder: Any, inputs: object, keywords: Mapping[str, Any]) -> None:
    """Note what a batch holds, if it came packed."""
    sequences = getattr(keywords.get("position_ids"), NOTE, None)
    if sequences is not None:
        decoder.packed_sequences += sequences
        decoder.packed_rows += len(keywords["position_ids"])
