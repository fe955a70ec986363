"""The commands that write what other tools read, and read what they have written."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tradebench.cli import options
from tradebench.cli.options import Format, FormatOption, ResultsOption
from tradebench.errors import UserError


class Exported(StrEnum):
    """The formats that runs are written in for other tools."""

    CSV = "csv"
    PARQUET = "parquet"
    PYTEST_BENCHMARK = "pytest-benchmark"
    OTAVA = "otava"
    MLFLOW = "mlflow"
    WANDB = "wandb"


class Imported(StrEnum):
    """The tools whose results are read."""

    PEFT = "peft"
    OPTIMUM_BENCHMARK = "optimum-benchmark"
    PYTEST_BENCHMARK = "pytest-benchmark"


def export_runs(
    runs: Annotated[list[str], typer.Argument(help="run directories, or latest")],
    to: Annotated[Exported, typer.Option(help="the format", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="a file; a folder for otava and wandb", show_default=False
        ),
    ],
    results: ResultsOption = Path("results"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Write runs as another tool reads them: a table, a benchmark file, a tracker's runs."""
    from tradebench import exchange
    from tradebench.commands import gating

    write = exchange.writer(to.value)
    try:
        written = write(gating.load(results, runs, options.note), out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    if form is Format.JSON:
        options.print_json("export", {"written": written})
        return
    for each in written:
        typer.echo(each)


def import_results(
    files: Annotated[list[Path], typer.Argument(help="JSON files", exists=True, dir_okay=False)],
    source: Annotated[Imported, typer.Option("--from", help="what wrote them")],
    name: Annotated[
        str | None, typer.Option(help="the suite they are to belong to; imported-<source>")
    ] = None,
    out: Annotated[Path, typer.Option(help="the folder that holds runs")] = Path("results"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Read what another tool has measured into a run, with its known errors put right.

    Every Result says in its warnings where it came from and what was changed.
    """
    from tradebench.commands import exchanging

    suite = name or f"imported-{source.value}"
    run = exchanging.take_in(files, source.value, suite, out)
    if form is Format.JSON:
        options.print_json(
            "import", {"run": str(run.directory), "results": options.payloads(run.results)}
        )
        return
    for result in run.results:
        typer.echo(f"{result.label}: {' '.join(result.warnings)}")
    typer.echo(f"run: {run.directory}")
