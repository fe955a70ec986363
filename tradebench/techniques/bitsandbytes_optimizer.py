"""Optimizer states in 8 bits by bitsandbytes: one scale per 256 values, a table of 256 levels.

Each moment takes a byte and a 64th where fp32 takes four. Parameters of fewer than 4,096 elements
keep theirs in fp32, and so do most norms and narrow adapters. Lion has one moment where Adam has
two, and steps by signs: it wants a learning rate some three to ten times smaller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tradebench.techniques.protocol import ContradictionError
from tradebench.techniques.stepping import (
    BETAS,
    EPSILON,
    Note,
    Replacing,
    Stepping,
    read_note,
    state_counts,
    trainable,
)

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial

QUANTIZED_FROM = 4096  # elements, the library's own threshold
LION_BETAS = (0.9, 0.99)  # the paper's
WHOLE = "bitsandbytes cannot step on the shares of a sharded model; use adamw or torchao_adamw8bit"


class Bitsandbytes8bit(Replacing):
    """Keeps the moments of AdamW or of Lion in 8 bits."""

    cite = "Dettmers et al. 2021, arXiv:2110.02861; Lion arXiv:2302.06675; bitsandbytes"
    whole = WHOLE

    method: Literal["adamw8bit", "lion8bit"]

    def cautions(self, trial: Trial) -> list[str]:
        """What stays in fp32 and what a CPU's kernel does."""
        return narrow_states(trial)

    def stepping(self, model: nn.Module) -> Stepping:
        """The library's optimizer."""
        return Stepping(self._kind()(trainable(model), **self._rates()))

    def effect(self, model: nn.Module) -> Effect:
        """Count the states in 8 bits; one that could be and is not is an error."""
        found = read_note(model, self.label, self._kind(), in_backward=self.in_backward)
        check_formats(found, self.label)
        return state_counts(found, quantized=quantized(found))

    def _kind(self) -> Any:
        from bitsandbytes import optim

        return {"adamw8bit": optim.AdamW8bit, "lion8bit": optim.Lion8bit}[self.method]

    def _rates(self) -> dict[str, Any]:
        rates: dict[str, Any] = {"lr": 0.0, "betas": BETAS, "weight_decay": 0.0}
        if self.method == "lion8bit":
            return {**rates, "betas": LION_BETAS}
        return {**rates, "eps": EPSILON}


def narrow_states(trial: Trial) -> list[str]:
    """A caution where most of what trains may be too small to be quantized."""
    if trial.method("adapters") is None:
        return []
    return [
        f"states of fewer than {QUANTIZED_FROM} elements stay in fp32: narrow adapters save nothing"
    ]


def check_formats(found: Note, asked: str) -> None:
    """Hold every parameter to the format that its size gives it.

    Raises:
        ContradictionError: some are in another.
    """
    wrong = [size for size in found.elements.get("float32", ()) if size >= QUANTIZED_FROM]
    odd = set(found.elements) - {"float32", "uint8"}
    if wrong or odd:
        raise ContradictionError(
            f"{asked} was asked for, but {len(wrong)} of {found.parameters} parameters have states "
            f"in fp32 that are large enough for 8 bits{', others in ' * bool(odd)}"
            f"{', '.join(sorted(odd))}"
        )


def quantized(found: Note) -> int:
    """How many parameters have states in 8 bits."""
    return len(found.elements.get("uint8", ()))
