"""Knobs: the numbers of a trial in which memory is a straight line.

An adapter's rank and the length of sequences are dimensions of tensors, so the bytes between two
values of such a number follow from those at both. Techniques say which of their settings are knobs.
"""

from __future__ import annotations

from typing import NamedTuple

from tradebench.result import digest
from tradebench.trial import BUDGET, Trial


class Knob(NamedTuple):
    """A field of a slot's technique, or of the budget."""

    part: str
    field: str


def knobs(trial: Trial) -> dict[Knob, int]:
    """The numbers of a trial in which sizes are affine, with their values.

    The length of sequences is one where every sequence has it: where data is random.
    """
    found = {
        Knob(part.slot, field): int(getattr(part, field))
        for part in trial.techniques
        for field in part.affine
    }
    if trial.budget.data == "random":
        found[Knob(BUDGET, "sequence")] = trial.budget.sequence
    return found


def turned(trial: Trial, knob: Knob, value: int) -> Trial:
    """The trial with another value of a knob."""
    update = {knob.field: value}
    if knob.part == BUDGET:
        return trial.model_copy(update={"budget": trial.budget.model_copy(update=update)})
    techniques = tuple(
        part.model_copy(update=update) if part.slot == knob.part else part
        for part in trial.techniques
    )
    return trial.model_copy(update={"techniques": techniques})


def family(trial: Trial, *turnable: Knob) -> str:
    """Names what a trial has in common with those that differ in these knobs alone."""
    for knob in turnable:
        trial = turned(trial, knob, 0)
    return digest([sorted(turnable), trial.payload()])
