"""Runs as one tidy table, CSV or Parquet: a row per Result and measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tradebench.errors import UserError
from tradebench.report.tables import frame
from tradebench.store import Run

if TYPE_CHECKING:
    import pandas as pd

WHOLE = ("repeat", "attempt", "samples")
REAL = ("value", "interval_95_low", "interval_95_high", "samples_min", "samples_max")


def write_csv(runs: Sequence[Run], out: Path) -> list[str]:
    """One CSV file, whole numbers of bytes as such."""
    _table(runs).to_csv(out, index=False)
    return [str(out)]


def write_parquet(runs: Sequence[Run], out: Path) -> list[str]:
    """One Parquet file; numbers are 64-bit floats, which hold bytes up to eight petabytes."""
    table = _table(runs)
    table = table.astype(dict.fromkeys(WHOLE, "Int64") | dict.fromkeys(REAL, "float64"))
    try:
        table.to_parquet(out, index=False)
    except ImportError:
        raise UserError("Parquet needs pyarrow: pip install pyarrow") from None
    return [str(out)]


def _table(runs: Sequence[Run]) -> pd.DataFrame:
    import pandas as pd

    tables = []
    for run in runs:
        table = frame(run.results)
        table.insert(0, "run", run.directory.resolve().name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
