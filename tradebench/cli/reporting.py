"""The command that writes reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tradebench.cli import options
from tradebench.cli.options import (
    FAILED,
    INTERRUPTED,
    Format,
    FormatOption,
    PriceOption,
    ResultsOption,
)
from tradebench.errors import UserError

if TYPE_CHECKING:
    from tradebench.store import Run


def report(
    run: Annotated[str, typer.Argument(help="a run directory, or latest")] = "latest",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="where to write; in the run when absent")
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            help="a plan of the same techniques or settings, whose predictions to set beside this"
        ),
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="every figure as PDF as well")] = False,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="the numbers as Parquet as well")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="show a run while it goes on, then report it")
    ] = False,
    price: PriceOption = None,
    results: ResultsOption = Path("results"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Write the report of a run: one page, Markdown, CSV, a LaTeX table and figures.

    With --format markdown only the short table is printed, to be pasted elsewhere. With --watch the
    table and the front are drawn as results come, until the run ends; Ctrl-C stops that with 130
    and leaves the run alone. A run that was killed ends it with 5, once what there is of it has
    been reported.
    """
    from tradebench import report, store
    from tradebench.commands import reporting

    directory, lost = store.find(results, run), ""
    if watch:
        if form is not Format.TEXT:
            raise UserError("--watch draws on a terminal: leave out --format, or watch it as text")
        found, lost = _watched(directory)
    else:
        found = store.load(directory)
    other = None if beside is None else store.load(store.find(results, beside))
    for problem in found.problems:
        typer.echo(problem, err=True)
    if form is Format.MARKDOWN:
        typer.echo(report.markdown_table(found))
        return
    target = out or found.directory / "report"
    if lost:
        options.note(lost)
        if not found.results:
            raise typer.Exit(FAILED)
    written = reporting.write(found, target, other, pdf=pdf, parquet=parquet, price=price)
    match form:
        case Format.JSON:
            files = [str(file) for file in written]
            options.print_json(
                "report", {"files": files, "results": options.payloads(found.results)}
            )
        case _:
            options.print_summary(found, target, price)
    if lost:
        raise typer.Exit(FAILED)


def _watched(directory: Path) -> tuple[Run, str]:
    """Show the run until it has ended, or will not; then why, and what to do."""
    from rich.console import Console

    from tradebench.report.watch import resumption, watch

    try:
        run, lost = watch(directory, Console())
    except KeyboardInterrupt:
        options.note(f"stopped watching; the run goes on in {directory}")
        raise typer.Exit(INTERRUPTED) from None
    return run, f"{lost}; {resumption(run)} goes on where it stopped" if lost else ""
