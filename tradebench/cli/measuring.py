"""The commands that measure: run, merge and doctor."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tradebench.cli import options
from tradebench.cli.options import (
    FAILED,
    INTERRUPTED,
    UNEXPECTED,
    Format,
    FormatOption,
    ResultsOption,
    SuiteArgument,
)
from tradebench.cli.points import print_points
from tradebench.errors import UserError
from tradebench.rank import PATIENCE_SECONDS


class Isolation(StrEnum):
    """How a trial's process is made."""

    AUTO = "auto"
    FORK = "fork"
    EXEC = "exec"


class Engine(StrEnum):
    """Where trials run."""

    LOCAL = "local"
    RAY = "ray"


class Retried(StrEnum):
    """The statuses whose points may be asked for again."""

    OOM = "oom"
    FAILED = "failed"
    TIMEOUT = "timeout"
    KILLED = "killed"
    DIVERGED = "diverged"


def run(
    suite: SuiteArgument,
    out: Annotated[Path, typer.Option(help="the folder that holds runs")] = Path("results"),
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="go on with the suite's newest run, or start one"),
    ] = True,
    retry: Annotated[
        list[Retried] | None, typer.Option(help="run points that ended so again; may be repeated")
    ] = None,
    isolation: Annotated[
        Isolation, typer.Option(help="fork a warm process for each trial, or start a fresh one")
    ] = Isolation.AUTO,
    engine: Annotated[Engine, typer.Option(help="where trials run")] = Engine.LOCAL,
    memory_cap: Annotated[
        str | None, typer.Option(help="most memory a trial may take, such as 8GiB")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each trial")] = 1,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="trials at once: one per GPU, and one on a CPU, where more slow each other",
        ),
    ] = None,
    launcher: Annotated[
        str,
        typer.Option(help="a command that starts the ranks of a trial, such as torchrun's"),
    ] = "",
    patience: Annotated[
        float,
        typer.Option(min=1, help="seconds that ranks of a trial wait for one before it is hung"),
    ] = PATIENCE_SECONDS,
    skip_unfit: Annotated[
        bool,
        typer.Option(
            "--skip-unfit/--try-unfit",
            help="leave out what is predicted not to fit on this machine's GPU",
        ),
    ] = True,
    predict: Annotated[
        bool,
        typer.Option(
            "--predict/--no-predict", help="put a prediction and its error beside every measurement"
        ),
    ] = True,
    shard: Annotated[
        str | None, typer.Option(help="make only this share of the points, such as 2/8")
    ] = None,
    run_name: Annotated[
        str | None,
        typer.Option("--run", help="write the suite's run of this name, made where it is missing"),
    ] = None,
    writer: Annotated[
        str | None,
        typer.Option(help="whose part of the run this is, where several machines write it"),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="list the points and stop")] = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Measure every point of a suite, and write its report.

    Points that are finished are not run again. Several machines may write one run in a folder that
    they share, each under a name of its own: its --shard, or what --writer says. Ends with 0 when
    every point was measured or ended as a finding (oom, diverged, skipped), and with 5 when a trial
    failed unexpectedly.
    """
    from tradebench import store
    from tradebench.suite import WHOLE, Shard, Suite

    loaded = Suite.load(suite)
    share = WHOLE if shard is None else Shard.parse(shard)
    if engine is Engine.RAY and isolation is Isolation.FORK:
        raise UserError("--engine ray starts a fresh interpreter for each trial: leave out fork")
    if launcher and (engine is Engine.RAY or jobs is not None):
        raise UserError(
            "--launcher starts one trial at a time, on machines of its own choice: "
            "leave out --engine ray and --jobs"
        )
    author = store.check_writer(writer or (store.LOCAL if share == WHOLE else share.name))
    if run_name is not None and not resume:
        raise UserError("--run goes on with the run of that name: leave --fresh out, or --run")
    cap = _size(memory_cap) if memory_cap is not None else loaded.resources.memory
    if dry_run:
        print_points(loaded, form, share)
        return
    from tradebench.commands import reporting, sweep
    from tradebench.runner.engines.ray import Cluster
    from tradebench.runner.options import Options

    finished, summary = sweep.sweep(
        loaded,
        out,
        Options(
            isolation=isolation.value,
            memory_cap=cap,
            threads=threads,
            jobs=jobs,
            timeout=loaded.timeout,
            retry=frozenset(status.value for status in retry or ()),
            variables=sweep.variables(loaded),
            writer=author,
            anywhere=engine is Engine.RAY,
            launcher=tuple(shlex.split(launcher)),
            patience=patience,
        ),
        resume=resume,
        foresight=sweep.Foresight(predict=predict, skip_unfit=skip_unfit),
        note=lambda text: typer.echo(text, err=True),
        shard=share,
        name=run_name,
        cluster=Cluster() if engine is Engine.RAY else None,
    )
    # A report is of the whole run; machines that write one side by side write none.
    folder = finished.directory / "report" if author == store.LOCAL else None
    if finished.results and folder is not None:
        reporting.write(finished, folder)
    if form is Format.JSON:
        options.print_json(
            "run", {"run": str(finished.directory), "results": options.payloads(finished.results)}
        )
    else:
        options.print_summary(finished, folder)
    if summary.interrupted:
        raise typer.Exit(INTERRUPTED)
    if any(result.status in UNEXPECTED for result in summary.results):
        raise typer.Exit(FAILED)


def _size(text: str) -> int:
    from tradebench.suite import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise UserError(f"--memory-cap: {error}") from None


def merge(
    runs: Annotated[
        list[str], typer.Argument(help="run directories of one suite", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="the run directory to make", file_okay=False)
    ],
    results: ResultsOption = Path("results"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Bring what several machines have written into one run, and write its report.

    Nothing is averaged: the report lists points that more than one machine has made.
    """
    from tradebench import store
    from tradebench.commands import reporting
    from tradebench.commands.merging import merge as bring_together

    found = [store.load(store.find(results, each)) for each in runs]
    for problem in (problem for run in found for problem in run.problems):
        typer.echo(problem, err=True)
    merged = bring_together(found, out, note=lambda text: typer.echo(text, err=True))
    if merged.results:
        reporting.write(merged, merged.directory / "report")
    if form is Format.JSON:
        options.print_json(
            "merge", {"run": str(merged.directory), "results": options.payloads(merged.results)}
        )
    else:
        options.print_summary(merged, merged.directory / "report")


def doctor(results: ResultsOption = Path("results"), form: FormatOption = Format.TEXT) -> None:
    """Look at this machine and at the stored runs, and say what is wrong."""
    from tradebench.doctor import examine

    found = examine(results)
    if form is Format.JSON:
        options.print_json("doctor", found.model_dump(mode="json"))
        return
    for name, value in found.facts.items():
        typer.echo(f"{name}: {value}")
    for problem in found.problems:
        typer.echo(f"problem: {problem}", err=True)
    if not found.problems:
        typer.echo("no problem found")
