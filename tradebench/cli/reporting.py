"""The command that writes reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tradebench.cli import options
from tradebench.cli.options import Format, FormatOption, ResultsOption


def report(
    run: Annotated[str, typer.Argument(help="a run directory, or latest")] = "latest",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="where to write; in the run when absent")
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(help="a plan of the same techniques, whose predictions to set beside this"),
    ] = None,
    results: ResultsOption = Path("results"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Write the report of a run: one page, Markdown, CSV and figures.

    With --format markdown only the short table is printed, to be pasted elsewhere.
    """
    from tradebench import report, store

    found = store.load(store.find(results, run))
    other = None if beside is None else store.load(store.find(results, beside))
    for problem in found.problems:
        typer.echo(problem, err=True)
    if form is Format.MARKDOWN:
        typer.echo(report.markdown_table(found))
        return
    target = out or found.directory / "report"
    written = report.write(found, target, other)
    match form:
        case Format.JSON:
            files = [str(file) for file in written]
            options.print_json(
                "report", {"files": files, "results": options.payloads(found.results)}
            )
        case _:
            options.print_summary(found, target)
