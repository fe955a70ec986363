"""The commands that predict: plan, and calibrate, which makes plans better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tradebench.cli import options
from tradebench.cli.options import (
    FAILED,
    NOT_MET,
    UNEXPECTED,
    Format,
    FormatOption,
    PriceOption,
    TokensOption,
)
from tradebench.errors import UserError

if TYPE_CHECKING:
    from tradebench.published.comparison import Prediction


def plan(
    suite: Annotated[Path | None, typer.Argument(help="a suite file", show_default=False)] = None,
    gpu: Annotated[
        str, typer.Option(help="a device of the catalogue, such as h100-80gb, or none")
    ] = "h100-80gb",
    gpus: Annotated[
        int | None, typer.Option(min=1, help="how many there are; as many as a point needs")
    ] = None,
    tokens: TokensOption = None,
    price: PriceOption = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="GPU-hours that the suite may take; 1 if it is more")
    ] = None,
    require_fit: Annotated[
        bool, typer.Option(help="end with 1 unless every legal point fits")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(help="a device's measured efficiencies", exists=True, dir_okay=False),
    ] = None,
    overheads: Annotated[
        Path | None,
        typer.Option(
            help="what processes were seen to hold on it beside their tensors",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    validate: Annotated[
        bool, typer.Option(help="hold predictions against published measurements instead")
    ] = False,
    fresh: Annotated[bool, typer.Option(help="predict again what was predicted before")] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="predict in so many processes; one per core")
    ] = None,
    out: Annotated[Path, typer.Option(help="the folder that holds runs")] = Path("results"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Predict every point of a suite: whether it fits, what it takes, and what it costs.

    Needs no weights, no GPU and no network. Every number is a prediction and says so. With
    --validate no suite is needed: what others have measured and published is predicted, and both
    are printed side by side as Markdown. Ends with 0, with 1 where --require-fit or --budget is not
    met, and otherwise with 5 when a point could not be predicted.
    """
    from tradebench.commands import planning

    if validate:
        directory, predictions = planning.hold_against_published(out, processes=processes)
        _print_validation(directory, predictions, form)
        return
    if suite is None:
        raise UserError("name a suite file to plan, or ask for --validate")
    from tradebench.plan import table
    from tradebench.suite import Suite

    loaded = Suite.load(suite)
    aim = planning.aim(gpu, calibration, overheads)
    if require_fit and aim.device is None:
        raise UserError("--require-fit needs a device to fit on: name it with --gpu")
    question = table.Question(
        tokens=options.parse_tokens(tokens),
        price=price,
        repeats={trial.id: loaded.repeats_of(trial) for trial in loaded.trials()},
    )
    directory, made = planning.plan(
        loaded, aim, out, gpus=gpus, fresh=fresh, processes=processes, price=price
    )
    match form:
        case Format.JSON:
            options.print_json(
                "plan", {"run": str(directory), "results": options.payloads(made.results)}
            )
        case Format.MARKDOWN:
            typer.echo(table.markdown(made.results, question))
        case Format.TEXT:
            from rich.console import Console

            console = Console()
            console.print(table.draw(made.results, question, console.width))
            console.print(f"report: {directory / 'report' / 'index.html'}", soft_wrap=True)
    over = table.over_budget(made.results, budget, question.repeats)
    if over is not None:
        typer.echo(over, err=True)
    if over is not None or (require_fit and not table.all_fit(made.results)):
        raise typer.Exit(NOT_MET)
    if any(result.status in UNEXPECTED for result in made.results):
        raise typer.Exit(FAILED)


def _print_validation(
    directory: Path, predictions: Mapping[str, Prediction | str], form: Format
) -> None:
    """Print what others have published beside what is predicted of it."""
    from dataclasses import asdict

    from tradebench.published.validation import render

    if form is Format.JSON:
        rows = {
            name: {"refused": each} if isinstance(each, str) else asdict(each)
            for name, each in predictions.items()
        }
        options.print_json("plan", {"run": str(directory), "predictions": rows})
        return
    typer.echo(render(predictions), nl=False)
    typer.echo(f"report: {directory / 'report' / 'index.html'}", err=True)


def calibrate(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="a JSON file; named after the device", dir_okay=False),
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, or cpu for a rehearsal")] = "cuda",
    minutes: Annotated[float, typer.Option(min=0.01, help="how long it may take")] = 5.0,
) -> None:
    """Measure how fast this machine's GPU really is, so that its plans rest on that.

    `tradebench plan --calibration FILE` uses the file. A device does not change: once is enough.
    """
    from tradebench.predict.calibrate import LLAMA_70B, REHEARSAL, calibrate

    sizes = REHEARSAL if device == "cpu" else LLAMA_70B
    found = calibrate(device, 60 * minutes, sizes)
    words = "".join(char if char.isalnum() else "-" for char in found.device.lower())
    file = out or Path(f"calibration-{words}.json")
    file.write_text(found.to_json() + "\n", encoding="utf-8")
    for sentence in found.left_out:
        typer.echo(f"left out: {sentence}", err=True)
    typer.echo(f"calibration: {file}")
