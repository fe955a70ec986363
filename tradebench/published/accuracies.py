"""Accuracies that others have published, for the techniques that change what a model says.

They stand beside predictions, which hold no accuracy, and are always those of another model, other
data and another protocol: they say what a technique has done elsewhere and nothing of a point.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

FILE = Path(__file__).parent / "accuracies.csv"

# The slots that change which function is learnt; the others change how it is computed.
SLOTS = ("pruning", "low_rank", "quantization", "adapters")
LABEL = "published, not measured"


class Accuracy(BaseModel):
    """One published accuracy; an empty slot was off.

    `value` is a share of `items` test items, `protocol` how they were asked, `training` what the
    model was fine-tuned on, `settings` what else the source says of its techniques.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    model: str
    training: str
    task: str
    protocol: str
    items: int
    pruning: str | None
    low_rank: str | None
    quantization: str | None
    adapters: str | None
    settings: str
    value: float
    source: str

    @field_validator("*", mode="before")
    @classmethod
    def _empty(cls, text: object) -> object:
        return None if text == "" else text

    @property
    def methods(self) -> tuple[str | None, ...]:
        """The method of each of `SLOTS`."""
        return (self.pruning, self.low_rank, self.quantization, self.adapters)


@dataclass(frozen=True, kw_only=True)
class Span:
    """The lowest and highest published accuracy of one model and task with the same methods."""

    model: str
    task: str
    protocol: str
    settings: tuple[str, ...]
    low: float
    high: float
    trained_on: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def told(self) -> str:
        """The model and its range."""
        low, high = f"{100 * self.low:.1f}", f"{100 * self.high:.1f}"
        return f"{self.model} {low if low == high else f'{low} to {high}'} %"

    @property
    def conditions(self) -> str:
        """What must be said beside the range."""
        return (
            f"{self.task}, {self.protocol}; {' or '.join(self.settings)}; "
            f"after {' or '.join(self.trained_on)}; {' and '.join(self.sources)}"
        )


@lru_cache
def accuracies() -> tuple[Accuracy, ...]:
    """Every row, in the order of the file."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return tuple(Accuracy.model_validate(found) for found in csv.DictReader(file))


def named(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The methods of a point in `SLOTS`, in words."""
    methods = [str(settings[slot].get("method")) for slot in SLOTS if slot in settings]
    return " + ".join(methods) or "training all weights"


def spans(settings: Mapping[str, Mapping[str, Any]]) -> tuple[Span, ...]:
    """What was published for the methods of a point, by model and task; empty where nothing was.

    `settings` maps a slot to its fields. All of `SLOTS` must agree: a quantized base is no evidence
    about a dense one.
    """
    methods = tuple(settings.get(slot, {}).get("method") for slot in SLOTS)
    found: dict[tuple[str, str, str], list[Accuracy]] = {}
    for each in accuracies():
        if each.methods == methods:
            found.setdefault((each.model, each.task, each.protocol), []).append(each)
    return tuple(
        Span(
            model=model,
            task=task,
            protocol=protocol,
            settings=tuple(dict.fromkeys(each.settings for each in rows)),
            low=min(each.value for each in rows),
            high=max(each.value for each in rows),
            trained_on=tuple(dict.fromkeys(each.training for each in rows)),
            sources=tuple(dict.fromkeys(each.source for each in rows)),
        )
        for (model, task, protocol), rows in found.items()
    )
