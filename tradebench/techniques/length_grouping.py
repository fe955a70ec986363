"""Length grouping: sequences of about equal length share a micro-batch, so that little is padded.

Only which sequences go together changes, not which are trained on. An epoch is cut into windows of
many micro-batches; inside each, sequences are sorted by length and dealt out in that order. The
micro-batches of a window are then shuffled, so that a few steps see long ones and short ones alike.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import Batch, Effect, Example
    from tradebench.trial import Budget, Trial


class LengthGrouping(Technique):
    """Puts sequences of about equal length into a micro-batch, within a window of many."""

    slot, stage, axis = "data", Stage.FEED, "method"
    cite = "https://huggingface.co/docs/transformers/main_classes/trainer"

    method: Literal["grouping"] = "grouping"
    window: int = Field(50, ge=2, description="micro-batches within which sequences are sorted")

    @property
    def label(self) -> str:
        """`grouping`, with its window where that is not the default."""
        default = type(self).model_fields["window"].default
        return self.method if self.window == default else f"{self.method} over {self.window}"

    def cautions(self, trial: Trial) -> list[str]:
        """Where there is nothing to group."""
        notes = []
        if trial.budget.batch == 1:
            notes.append("a micro-batch of one sequence has no padding: there is nothing to group")
        if trial.budget.data == "random":
            notes.append("random sequences all have full length: there is nothing to group")
        return notes

    def examples(self, examples: Sequence[Example], budget: Budget) -> Sequence[Example]:
        """Sort the examples of every window, and shuffle its micro-batches."""
        batch = budget.batch
        chance = random.Random(0)  # the examples come shuffled by the trial's seed
        width = self.window * batch
        found: list[Example] = []
        for start in range(0, len(examples), width):
            ordered = sorted(examples[start : start + width], key=lambda each: len(each.tokens))
            together = [ordered[at : at + batch] for at in range(0, len(ordered), batch)]
            # What is left over at the end of an epoch stays there, where the next one fills it up.
            whole, rest = (
                (together, []) if len(together[-1]) == batch else (together[:-1], together[-1])
            )
            chance.shuffle(whole)
            found += [example for each in whole for example in each] + rest
        return found

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Note on every micro-batch how many of its tokens are no padding."""
        for batch in batches:
            setattr(batch["input_ids"], NOTE, int(batch["attention_mask"].sum()))
            yield batch

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Count the tokens and the padding that the decoder is given while it trains."""
        decoder: nn.Module = model.get_decoder()  # type: ignore[operator]  # transformers' accessor
        decoder.grouped_tokens = decoder.grouped_padding = 0  # type: ignore[assignment]  # counters
        decoder.register_forward_pre_hook(_count, with_kwargs=True)
        return model

    def effect(self, model: nn.Module) -> Effect:
        """How many tokens were trained on, and how much padding beside them."""
        decoder = model.get_decoder()  # type: ignore[operator]  # transformers' accessor
        tokens = getattr(decoder, "grouped_tokens", 0)
        if not tokens:
            raise ContradictionError("grouping was asked for, but no batch came grouped")
        return {"tokens": tokens, "padding": decoder.grouped_padding}


NOTE = "real_tokens"  # the attribute of a batch's tokens that says how many are no padding


def _count(decoder: Any, inputs: object, keywords: Mapping[str, Any]) -> None:
    """Note what a batch holds, if it came grouped."""
    given = keywords.get("input_ids")
    tokens = getattr(given, NOTE, None)
    if given is not None and tokens is not None:
        decoder.grouped_tokens += tokens
        decoder.grouped_padding += given.numel() - tokens
