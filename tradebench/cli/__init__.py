"""The commands: they parse, call, print and choose an exit code; what they do lies elsewhere.

Nothing heavy is imported before a command needs it: `tradebench --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tradebench import __version__
from tradebench.cli import (
    baselines,
    describing,
    exchanging,
    gating,
    measuring,
    planning,
    recommending,
    reporting,
)
from tradebench.errors import UserError

app = typer.Typer(
    help="What each memory-saving way of fine-tuning a language model really costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# In the order in which a user comes to need them.
app.command()(measuring.run)
app.command()(planning.plan)
app.command()(reporting.report)
app.command()(recommending.recommend)
app.command()(gating.check)
app.command()(gating.compare)
app.command()(gating.noise)
app.command()(gating.history)
app.command(name="export")(exchanging.export_runs)
app.command(name="import")(exchanging.import_results)
app.command()(measuring.merge)
app.command()(describing.techniques)
app.command()(planning.calibrate)
app.command()(measuring.doctor)
app.add_typer(baselines.app, name="baseline")
app.add_typer(describing.suite_app, name="suite")
app.add_typer(describing.reference_app, name="reference")


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error."""
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"tradebench: {error}\n")
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="print the version and leave")] = False,
) -> None:
    """Offer what belongs to no command."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
