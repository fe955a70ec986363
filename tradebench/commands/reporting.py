"""Reports as the commands write them: with what to run on which machine at their head."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tradebench.report.answers import Adviser
    from tradebench.store import Run


def write(
    run: Run,
    out: Path,
    beside: Run | None = None,
    *,
    pdf: bool = False,
    parquet: bool = False,
    price: float | None = None,
) -> list[Path]:
    """Do what `tradebench.report.write` does; `price` is that of a GPU for an hour."""
    from tradebench import report

    return report.write(run, out, beside, pdf=pdf, parquet=parquet, advise=_adviser(price))


def table(run: Run, width: int, price: float | None = None) -> RenderableType:
    """Return what ends a run on a terminal of so many columns."""
    from tradebench import report

    return report.table(run, width, _adviser(price))


def _adviser(price: float | None) -> Adviser:
    from tradebench.recommend.machine_words import answers

    return partial(answers, price=price)
