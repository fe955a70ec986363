"""Reports: what a run found, as one self-contained page, Markdown, CSV and figures.

Nothing heavy is imported before a report is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tradebench.report.answers import Adviser
    from tradebench.store import Run

__all__ = ["markdown_table", "table", "write"]


def write(
    run: Run,
    out: Path,
    beside: Run | None = None,
    *,
    pdf: bool = False,
    parquet: bool = False,
    advise: Adviser | None = None,
) -> list[Path]:
    """Write the page, Markdown, CSV, LaTeX and every figure into `out`; return what was written.

    With `pdf` every figure is written as PDF as well, with `parquet` the numbers as Parquet. The
    predictions of the run `beside` are set beside what single techniques and settings change in
    this one. What `advise` answers for a group of points, page and Markdown open with.

    Raises:
        NothingToCompareError: The run holds no Result.
        UserError: The run beside it predicts nothing.
    """
    from tradebench.report.page import write as write_page

    return write_page(run, out, beside, pdf=pdf, parquet=parquet, advise=advise)


def markdown_table(run: Run) -> str:
    """Return the short table as Markdown."""
    from tradebench.report.markdown import table as short_table

    return short_table(run)


def table(run: Run, width: int | None = None, advise: Adviser | None = None) -> RenderableType:
    """Return the short table and the summary line that end a run on the terminal.

    With the `width` of the terminal, the front is drawn above them; what `advise` answers comes
    last, where it is read first.
    """
    from tradebench.report.terminal import table as terminal_table

    return terminal_table(run, width, advise)
