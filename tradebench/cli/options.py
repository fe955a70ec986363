"""What several commands share: their options, their exit codes, and how they print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tradebench.errors import UserError

if TYPE_CHECKING:
    from tradebench.result import Kind, Result
    from tradebench.store import Run

NOT_MET = 1  # a limit that was required
FAILED = 5  # a trial failed unexpectedly
INTERRUPTED = 130
UNEXPECTED = frozenset({"failed", "timeout", "killed"})


class Format(StrEnum):
    """How a command prints: for people, as one JSON object for programs, or as a table to paste.

    Where a command has no table, `markdown` is the same as `text`.
    """

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


class Evidence(StrEnum):
    """The kinds of evidence that a point can be."""

    MEASURED = "measured"
    PREDICTED = "predicted"
    PUBLISHED = "published"


FormatOption = Annotated[Format, typer.Option("--format", help="how to print")]
ResultsOption = Annotated[
    Path, typer.Option("--results", help="the folder that holds runs", file_okay=False)
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(help="a TOML file that says what counts as worse", show_default=False),
]
KindOption = Annotated[
    list[Evidence] | None,
    typer.Option(help="which kind of evidence; measured where there is any, else predicted"),
]
FlaggedOption = Annotated[
    bool, typer.Option(help="take runs whose files differed from their commit all the same")
]
RunsArgument = Annotated[
    list[str], typer.Argument(help="run directories, or latest", show_default=False)
]
SuiteArgument = Annotated[Path, typer.Argument(help="a suite file", show_default=False)]
TokensOption = Annotated[str | None, typer.Option(help="what a run of mine trains on, such as 50M")]
PriceOption = Annotated[
    float | None, typer.Option(min=0, help="of one GPU for one hour, in any currency")
]


def payloads(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return Results as they are printed under `results`."""
    return [result.model_dump(mode="json", by_alias=True) for result in results]


def print_json(command: str, content: Mapping[str, Any]) -> None:
    """Print the one thing that goes to standard output when JSON was asked for."""
    typer.echo(json.dumps({"schema": f"tradebench.{command}/1", **content}, allow_nan=False))


def print_summary(finished: Run, folder: Path | None, price: float | None = None) -> None:
    """Print the short table of a run, and where its report lies or how to write one."""
    from rich.console import Console

    from tradebench.commands import reporting

    console = Console()
    console.print(reporting.table(finished, console.width, price))
    where = folder / "index.html" if folder else f"tradebench report {finished.directory} writes it"
    console.print(f"report: {where}", soft_wrap=True)


def note(text: str) -> None:
    """Say something beside the answer: on standard error."""
    typer.echo(text, err=True)


def kinds(given: Sequence[Evidence] | None) -> tuple[Kind, ...] | None:
    """Return the kinds of evidence that were asked for; None where the choice is left open."""
    names: Mapping[Evidence, Kind] = {
        Evidence.MEASURED: "measured",
        Evidence.PREDICTED: "predicted",
        Evidence.PUBLISHED: "published",
    }
    return tuple(names[each] for each in given) if given else None


def parse_tokens(text: str | None) -> int | None:
    """Return the number of tokens that a user means by `50M`."""
    from tradebench.plan.price import parse_count

    try:
        return None if text is None else parse_count(text)
    except ValueError as error:
        raise UserError(f"--tokens: {error}") from None


def write(file: Path, text: str) -> None:
    """Write a file that the user has named; where that fails it is the user who can mend it."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None
