"""The command that says what to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tradebench.cli import options
from tradebench.cli.options import (
    NOT_MET,
    Format,
    FormatOption,
    PriceOption,
    ResultsOption,
    TokensOption,
)

if TYPE_CHECKING:
    from tradebench.recommend.answer import Answer


def recommend(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|SUITE...",
            help="runs, plans or latest, and suite files, which are planned first",
            show_default="latest",
        ),
    ] = None,
    under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help='what must hold, such as "peak_reserved_bytes<=24GiB"; may be repeated',
        ),
    ] = None,
    maximize: Annotated[
        str | None, typer.Option(metavar="NAME", help="such as accuracy.gsm8k")
    ] = None,
    minimize: Annotated[
        str | None, typer.Option(metavar="NAME", help="such as step_seconds, gpu_hours or money")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="the device a suite is planned for; h100-80gb")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="how many there are")] = None,
    tokens: TokensOption = None,
    price: PriceOption = None,
    limits: Annotated[
        bool, typer.Option(help="hold what the suite asks for as well, unless --under says other")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="write a suite file with exactly that point", dir_okay=False
        ),
    ] = None,
    results: ResultsOption = Path("results"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Say which point to run, how sure that is, and write the suite file that runs it.

    A condition is a measurement, a sign and a value: bytes as 24GiB, times as 300ms, accuracies as
    70% or as base-1pt against the point without techniques. Measured points are ranked by what
    was measured, predicted ones by memory and time; accuracy is never predicted. Ends with 0, and
    with 1 where no point keeps to the conditions: then it names the nearest.
    """
    from tradebench.commands import recommending
    from tradebench.recommend.answer import Question, answer, suite_text
    from tradebench.recommend.candidates import Job

    question = Question(
        under=under or (),
        maximize=maximize,
        minimize=minimize,
        gpus=gpus,
        job=Job(tokens=options.parse_tokens(tokens), price=price),
        limits=limits,
    )
    run = recommending.gather(sources or ["latest"], results, gpu=gpu, gpus=gpus, out=results)
    for problem in run.problems:
        options.note(problem)
    made = answer(run, question)
    suite = None
    if made.choice.best is not None and made.choice.best.candidate.asked is not None:
        suite = suite_text(made, run, out.parent if out is not None else Path())
    if out is not None and suite is not None:
        options.write(out, suite)
    _print(made, suite, out, form)
    if made.choice.best is None:
        raise typer.Exit(NOT_MET)


def _print(made: Answer, suite: str | None, out: Path | None, form: Format) -> None:
    """Print the answer; the suite with it, where it was not written to a file."""
    from tradebench.recommend import words

    match form:
        case Format.JSON:
            options.print_json("recommend", words.payload(made, suite))
        case Format.MARKDOWN:
            typer.echo(words.markdown(made, None if out else suite))
        case Format.TEXT:
            from rich.console import Console

            console = Console()
            console.print(words.draw(made, console.width))
            if suite is None:
                return
            if out is not None:
                console.print(f"\nsuite: {out}", soft_wrap=True, highlight=False)
                return
            typer.echo(f"\nThe suite that runs it (-o FILE writes it):\n\n{suite}", nl=False)
