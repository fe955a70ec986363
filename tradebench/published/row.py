"""A row of the published evidence, as its source has it.

rows.csv holds every published memory measurement that was found with enough detail to trust it, and
those times that are predicted too. Its columns are unchanged; words that differ between sources
(what a batch is, what a length is) are left as they are and given a meaning where a row is said as
a trial.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

FILE = Path(__file__).parent / "rows.csv"

# A unit in bytes or seconds. A GB is 10^9 bytes, unless expressed.yaml says why it cannot be.
UNITS = {"GB": 1e9, "GB(as labelled)": 1e9, "GiB": float(2**30), "s": 1.0, "min": 60.0}


class Row(BaseModel):
    """One measurement that somebody else has published; an empty column is None.

    `batch_per_gpu`, `seq_len`, `ckpt`, `sharding`, `targets` and `optimizer` are the source's own
    words. `confidence` is A where every setting is given by the source, B where one is inferred.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    kind: Literal["memory", "throughput"]
    model: str
    method: str
    rank: int | None
    targets: str | None
    weight_bits: int | None
    quant_scheme: str | None
    optimizer: str | None
    dtype: str | None
    batch_per_gpu: str | None
    seq_len: str | None
    ckpt: str | None
    sharding: str | None
    n_gpus: int | None
    gpu: str | None
    offload: str | None
    metric: str
    value: float
    unit: str
    confidence: Literal["A", "B"]
    source: str

    @field_validator("*", mode="before")
    @classmethod
    def _empty(cls, text: object) -> object:
        return None if text == "" else text


@lru_cache
def rows() -> tuple[Row, ...]:
    """Every row, in the order of the file."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return tuple(Row.model_validate(found) for found in csv.DictReader(file))
