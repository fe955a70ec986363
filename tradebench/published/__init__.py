"""What others have measured and published, each figure with its source.

A row is said as a trial where this program could have run it, so that a prediction can be held
against it; every other row says why not.
"""

from __future__ import annotations

from tradebench.published.evidence import results
from tradebench.published.expression import (
    Expressed,
    Reading,
    Unexpressed,
    expressed,
    unexpressed,
)
from tradebench.published.promise import Promise, promise
from tradebench.published.row import Row, rows

__all__ = [
    "Expressed",
    "Promise",
    "Reading",
    "Row",
    "Unexpressed",
    "expressed",
    "promise",
    "results",
    "rows",
    "unexpressed",
]
