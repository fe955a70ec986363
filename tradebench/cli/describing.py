"""The commands that describe: techniques, suite files and the reference model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tradebench.cli import options
from tradebench.cli.options import Format, FormatOption, SuiteArgument
from tradebench.cli.points import print_counts, print_points
from tradebench.errors import UserError

WIDE = 120  # columns of a terminal that has room for sources
REPORTED_STEPS = 100  # steps of a build between two lines of progress
suite_app = typer.Typer(
    help="Check suite files, and describe them to editors.", no_args_is_help=True
)
reference_app = typer.Typer(
    help="The small model that accuracy is measured on.", no_args_is_help=True
)


def techniques(
    pairs: Annotated[
        bool, typer.Option("--pairs", help="which two go together, and why others do not")
    ] = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """List every technique: its slot, methods, settings, and where it comes from."""
    if pairs:
        _print_pairs(form)
        return
    from tradebench.techniques import techniques as known

    heads = ("slot", "methods", "settings", "what it does", "source")
    rows = [
        (
            kind.slot,
            ", ".join(kind.methods()),
            ", ".join(name for name in kind.model_fields if name != "method") or "none",
            kind.summary(),
            kind.cite,
        )
        for kind in known()
    ]
    match form:
        case Format.JSON:
            options.print_json("techniques", {"techniques": [kind.describe() for kind in known()]})
        case Format.MARKDOWN:
            for row in (heads, ("---",) * len(heads), *rows):
                typer.echo(f"| {' | '.join(row)} |")
        case Format.TEXT:
            from rich.console import Console
            from rich.table import Table

            console = Console()
            # Sources are the first to go where there is no room for them.
            kept = len(heads) if console.width >= WIDE else len(heads) - 1
            table = Table(*heads[:kept], box=None)
            for row in rows:
                table.add_row(*row[:kept])
            console.print(table)


def _print_pairs(form: Format) -> None:
    from tradebench import pairs

    match form:
        case Format.JSON:
            options.print_json("techniques", {"pairs": [pair.describe() for pair in pairs.pairs()]})
        case Format.MARKDOWN:
            typer.echo(pairs.markdown())
        case Format.TEXT:
            from rich.console import Console

            console = Console()
            console.print(pairs.draw(console))


@suite_app.command()
def check(suite: SuiteArgument, form: FormatOption = Format.TEXT) -> None:
    """Read a suite file and count its points, without running any."""
    from tradebench.suite import WHOLE, Suite

    loaded = Suite.load(suite)
    if form is Format.JSON:
        print_points(loaded, form, WHOLE)
        return
    print_counts(loaded, loaded.trials())
    reasons = sorted({reason for trial in loaded.trials() for reason in trial.conflicts()})
    for reason in reasons:
        typer.echo(f"  {reason}")


@suite_app.command()
def schema() -> None:
    """Print the JSON Schema of suite files, for editors."""
    from tradebench.suite import suite_schema

    typer.echo(json.dumps(suite_schema(), indent=2))


@reference_app.command()
def info(form: FormatOption = Format.TEXT) -> None:
    """Describe the reference model: its size, its tasks, and what it scores."""
    from tradebench import reference

    found = reference.info()
    if form is Format.JSON:
        options.print_json("reference", found)
        return
    typer.echo(json.dumps(found, indent=2))


@reference_app.command()
def build(
    out: Annotated[Path, typer.Option("--out", "-o", help="an empty folder to build in")],
) -> None:
    """Train the reference model again from nothing; about ten minutes on one core."""
    from tradebench.reference.build import build as rebuild

    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name a new folder to build in")
    out.mkdir(parents=True, exist_ok=True)

    def show(step: int, steps: int, loss: float) -> None:
        if step % REPORTED_STEPS == 0 or step == steps:
            typer.echo(f"step {step} of {steps}: loss {loss:.3f}", err=True)

    scores = rebuild(out, progress=show)
    typer.echo(json.dumps(scores["tasks"], indent=2))
    typer.echo(f"built: {out}", err=True)
