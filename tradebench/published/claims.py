"""What is said about techniques: claims with their sources, and what could decide them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator
from ruamel.yaml import YAML

FILE = Path(__file__).parent / "claims.yaml"

Quantity = Literal["memory", "weights", "activations", "optimizer", "time", "accuracy"]


class Claim(BaseModel):
    """What a source says about one technique; claims.yaml says what the fields mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slot: str
    methods: tuple[str, ...]
    says: str
    about: str
    source: str
    quantity: Quantity
    change: float | None = None
    evidence: Literal["measured", "predicted"] | None = None
    cannot: str | None = None

    @model_validator(mode="after")
    def _decidable(self) -> Self:
        """A number needs evidence; accuracy and what cannot be decided have neither."""
        undecided = self.cannot is not None or self.quantity == "accuracy"
        if (self.change is None) != undecided or (self.evidence is None) != undecided:
            raise ValueError(f"{self.says!r} needs change and evidence, or cannot")
        return self


@lru_cache
def claims() -> tuple[Claim, ...]:
    """Every claim, in the order of the file."""
    return tuple(Claim.model_validate(said) for said in YAML(typ="safe").load(FILE))


def claims_about(slot: str, method: str) -> tuple[Claim, ...]:
    """What is said about a method of a slot."""
    return tuple(each for each in claims() if each.slot == slot and method in each.methods)
