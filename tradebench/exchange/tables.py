"""Runs as one tidy table, CSV or Parquet: a row per Result and measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tradebench.report import tables as frames
from tradebench.store import Run

if TYPE_CHECKING:
    import pandas as pd


def write_csv(runs: Sequence[Run], out: Path) -> list[str]:
    """One CSV file, whole numbers of bytes as such."""
    _table(runs).to_csv(out, index=False)
    return [str(out)]


def write_parquet(runs: Sequence[Run], out: Path) -> list[str]:
    """One Parquet file."""
    frames.write_parquet(_table(runs), out)
    return [str(out)]


def _table(runs: Sequence[Run]) -> pd.DataFrame:
    import pandas as pd

    tables = []
    for run in runs:
        table = frames.frame(run.results)
        table.insert(0, "run", run.directory.resolve().name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
