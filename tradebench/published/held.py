"""What was predicted of the published rows when predictions were last held against them."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

from tradebench.published.comparison import Comparison, Prediction, compare, errors
from tradebench.published.expression import expressed

ENDS = ("low", "high")
FILE = Path(__file__).parent / "held.csv"


@lru_cache
def held() -> tuple[Comparison, ...]:
    """Every expressed row beside its prediction, from the report of the last validation.

    held.csv has a line for every row: its id, predicted over published, and both ends of the
    interval over published, empty where the prediction claims none.
    """
    figures = {one.row.id: one.value for one in expressed()}
    found: dict[str, Prediction | str] = {}
    with FILE.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            published = figures[line["row"]]
            low, high = (float(line[end]) * published if line[end] else None for end in ENDS)
            found[line["row"]] = Prediction(
                value=float(line["ratio"]) * published,
                interval=None if low is None or high is None else (low, high),
            )
    return compare(found)


def timed(one: Comparison) -> bool:
    """Whether it is about the time of a step, and not about memory."""
    return one.published.reading.counter == "step"


def sharded() -> list[Comparison]:
    """Those of memory on several GPUs."""
    return [one for one in held() if one.published.trial.ranks > 1 and not timed(one)]


@lru_cache
def sharded_error() -> float:
    """The median error of reserved memory on several GPUs, a share of what was published.

    Others shard otherwise than this program, so it is no error of a measurement that went the same
    way; it is all that is known of how far such a prediction may be off.
    """
    reserved = (one for one in sharded() if one.published.reading.counter == "reserved")
    return errors(reserved).median or 0.0
