"""The commands: they parse, call, print and choose an exit code; what they do lies elsewhere.

Nothing heavy is imported before a command needs it: `tradebench --help` answers at once.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tradebench import __version__
from tradebench.errors import UserError

if TYPE_CHECKING:
    from tradebench.published.comparison import Prediction
    from tradebench.regression.baseline import Baseline
    from tradebench.regression.gate import Check
    from tradebench.result import Kind, Result
    from tradebench.store import Run
    from tradebench.suite import Shard, Suite
    from tradebench.trial import Trial

NOT_MET = 1  # a limit that was required
FAILED = 5  # a trial failed unexpectedly
INTERRUPTED = 130
RUNS = 2  # that are compared
COMMITS_AND_SUITE = 3
REPORTED_STEPS = 100  # steps of a build between two lines of progress
WIDE = 120  # columns of a terminal that has room for sources
UNEXPECTED = frozenset({"failed", "timeout", "killed"})

app = typer.Typer(
    help="What each memory-saving way of fine-tuning a language model really costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
suite_app = typer.Typer(
    help="Check suite files, and describe them to editors.", no_args_is_help=True
)
reference_app = typer.Typer(
    help="The small model that accuracy is measured on.", no_args_is_help=True
)
baseline_app = typer.Typer(
    help="Keep what later runs are held against, in files to commit.", no_args_is_help=True
)
app.add_typer(baseline_app, name="baseline")
app.add_typer(suite_app, name="suite")
app.add_typer(reference_app, name="reference")


class Format(StrEnum):
    """How a command prints: for people, as one JSON object for programs, or as a table to paste.

    Where a command has no table, `markdown` is the same as `text`.
    """

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


class Isolation(StrEnum):
    """How a trial's process is made."""

    AUTO = "auto"
    FORK = "fork"
    EXEC = "exec"


class Evidence(StrEnum):
    """The kinds of evidence that a point can be."""

    MEASURED = "measured"
    PREDICTED = "predicted"
    PUBLISHED = "published"


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
BaselineOption = Annotated[
    Path, typer.Option("--out", "-o", help="the baseline file", show_default=False)
]
BaselineArgument = Annotated[Path, typer.Argument(help="a baseline file", show_default=False)]
SuiteArgument = Annotated[Path, typer.Argument(help="a suite file", show_default=False)]


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


@app.command()
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
    from tradebench import report, store
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
        _print_points(loaded, form, share)
        return
    from tradebench.commands import sweep
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
        report.write(finished, folder)
    if form is Format.JSON:
        _print_json("run", {"run": str(finished.directory), "results": _results(finished.results)})
    else:
        _print_summary(finished, folder)
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


def _print_points(suite: Suite, form: Format, shard: Shard) -> None:
    trials = shard.of(suite.trials())
    points = [
        {
            "trial": trial.id,
            "label": trial.label,
            "repeats": suite.repeats_of(trial),
            "reasons": list(trial.conflicts()),
            **trial.payload(),
        }
        for trial in trials
    ]
    if form is Format.JSON:
        _print_json("run", {"points": points})
        return
    for point in points:
        reasons = " ".join(point["reasons"])
        typer.echo(f"{point['label']}" + (f"  (skipped: {reasons})" if reasons else ""))
    _print_counts(suite, trials)


def _print_counts(suite: Suite, trials: Sequence[Trial]) -> None:
    legal = [trial for trial in trials if not trial.conflicts()]
    runs = sum(suite.repeats_of(trial) for trial in legal)
    typer.echo(
        f"{suite.name}: {len(trials)} points, {len(legal)} legal, "
        f"{len(trials) - len(legal)} skipped with their reasons; {runs} trials to run"
    )


def _print_summary(finished: Run, folder: Path | None) -> None:
    from rich.console import Console

    from tradebench import report

    console = Console()
    console.print(report.table(finished))
    where = folder / "index.html" if folder else f"tradebench report {finished.directory} writes it"
    console.print(f"report: {where}", soft_wrap=True)


def _results(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [result.model_dump(mode="json", by_alias=True) for result in results]


def _print_json(command: str, content: Mapping[str, Any]) -> None:
    """The one thing that goes to standard output when JSON was asked for."""
    typer.echo(json.dumps({"schema": f"tradebench.{command}/1", **content}, allow_nan=False))


@app.command()
def plan(
    suite: Annotated[Path | None, typer.Argument(help="a suite file", show_default=False)] = None,
    gpu: Annotated[
        str, typer.Option(help="a device of the catalogue, such as h100-80gb, or none")
    ] = "h100-80gb",
    gpus: Annotated[
        int | None, typer.Option(min=1, help="how many there are; as many as a point needs")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="what a run of mine trains on, such as 50M")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="of one GPU for one hour, in any currency")
    ] = None,
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
        tokens=_tokens(tokens),
        price=price,
        repeats={trial.id: loaded.repeats_of(trial) for trial in loaded.trials()},
    )
    directory, made = planning.plan(loaded, aim, out, gpus=gpus, fresh=fresh, processes=processes)
    match form:
        case Format.JSON:
            _print_json("plan", {"run": str(directory), "results": _results(made.results)})
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
        _print_json("plan", {"run": str(directory), "predictions": rows})
        return
    typer.echo(render(predictions), nl=False)
    typer.echo(f"report: {directory / 'report' / 'index.html'}", err=True)


def _tokens(text: str | None) -> int | None:
    from tradebench.plan.price import parse_count

    try:
        return None if text is None else parse_count(text)
    except ValueError as error:
        raise UserError(f"--tokens: {error}") from None


@app.command(name="report")
def report_command(
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
            _print_json("report", {"files": files, "results": _results(found.results)})
        case _:
            _print_summary(found, target)


@app.command(name="check")
def check_command(
    run: Annotated[str, typer.Argument(help="a run directory, or latest")] = "latest",
    *,
    baseline: Annotated[Path, typer.Option(help="what `baseline set` wrote", show_default=False)],
    policy: PolicyOption = None,
    confirm: Annotated[
        int, typer.Option(min=0, help="run what regressed again, so many times, to be sure")
    ] = 0,
    strict: Annotated[
        bool, typer.Option(help="end with 4 where it is inconclusive or partly incomparable")
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option(help="do not mind points that the run does not have")
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="write JUnit XML here")] = None,
    md: Annotated[Path | None, typer.Option(help="write a Markdown summary here")] = None,
    results: ResultsOption = Path("results"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Hold a run against a baseline, to see whether memory, step time or accuracy got worse.

    Ends with 0, with 1 for a regression, with 3 where a point is missing or nothing can be
    compared, and with 4 where it is inconclusive and --strict was asked for.
    """
    from tradebench.commands import gating
    from tradebench.regression import baseline as baselines
    from tradebench.regression import summary

    held = baselines.load(baseline)
    (found,) = gating.load(results, [run], _note)
    made = gating.check(found, held, policy_file=policy, confirm=confirm, note=_note)
    code = made.exit_code(strict=strict, allow_missing=allow_missing)
    if junit is not None:
        _write(junit, summary.junit(made, str(found.header["suite"])))
    if md is not None:
        _write(md, summary.markdown(made, code))
    _print_check("check", made, code, form)
    if code:
        raise typer.Exit(code)


@app.command()
def compare(
    sides: Annotated[
        list[str],
        typer.Argument(help="two runs; with --ab two git commits and a suite", metavar="A B"),
    ],
    ab: Annotated[
        bool, typer.Option("--ab", help="run two commits in turn on this machine, and compare")
    ] = False,
    pairs: Annotated[int, typer.Option(min=2, help="how often each commit runs, with --ab")] = 5,
    policy: PolicyOption = None,
    kind: KindOption = None,
    fail: Annotated[bool, typer.Option(help="end as `check` does, with 1 if B is worse")] = False,
    results: ResultsOption = Path("results"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Hold run B against run A; with --ab, commit B against commit A.

    `compare --ab main HEAD suites/mine.yaml` runs both in turn (A B B A ...), each in a checkout of
    its own, so that what drifts on the machine hits both alike. It is the most sensitive test of
    step time there is here.
    """
    from tradebench.commands import gating

    if ab:
        from tradebench.commands.turns import in_turn

        if len(sides) != COMMITS_AND_SUITE:
            raise UserError("--ab takes two commits and a suite: compare --ab main HEAD SUITE")
        made = in_turn(
            (sides[0], sides[1]),
            Path(sides[2]),
            results,
            pairs=pairs,
            policy_file=policy,
            note=_note,
        )
    else:
        if len(sides) != RUNS:
            raise UserError("compare takes two runs; --ab takes two commits and a suite")
        base, new = gating.load(results, sides, _note)
        made = gating.compare(base, new, policy_file=policy, kinds=_kinds(kind))
    code = made.exit_code()
    _print_check("compare", made, code, form)
    if code and (fail or not made.compared):
        raise typer.Exit(code)


@app.command()
def noise(
    what: Annotated[
        list[str], typer.Argument(help="a suite to run, or runs there are", show_default=False)
    ],
    runs: Annotated[int, typer.Option(min=2, help="how often to run a suite")] = 8,
    policy: PolicyOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="write the proposed policy here")
    ] = None,
    results: ResultsOption = Path("results"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Measure how far runs of the same code differ, and propose a policy from that.

    The runs may be made into a baseline afterwards: they are runs like any other.
    """
    from tradebench.commands import gating, repetition
    from tradebench.regression import noise as spreads
    from tradebench.regression.policy import Policy, load
    from tradebench.suite import Suite

    rules = Policy() if policy is None else load(policy)
    if len(what) == 1 and Path(what[0]).suffix in (".yaml", ".yml"):
        made = repetition.runs_of(Suite.load(what[0]), results, runs=runs, note=_note)
    else:
        made = gating.load(results, what, _note)
    found = spreads.measure(repetition.alike(made), rules)
    proposed = spreads.proposal(found, rules)
    if out is not None:
        _write(out, proposed + "\n")
    names = [str(run.directory) for run in made]
    if form is Format.JSON:
        content = {"runs": names, "metrics": spreads.payload(found), "policy": proposed}
        _print_json("noise", content)
        return
    typer.echo(f"{spreads.text(found)}\n\n{proposed}\n")
    typer.echo(f"runs: {' '.join(names)}")


@app.command()
def history(
    suite: Annotated[
        str | None, typer.Argument(help="a suite's name; the one that ran last")
    ] = None,
    metric: Annotated[str, typer.Option(help="which measurement")] = "step_seconds",
    last: Annotated[int, typer.Option(min=1, help="the newest so many runs")] = 50,
    least: Annotated[str, typer.Option(help="do not mark smaller changes")] = "1%",
    change_points: Annotated[
        bool, typer.Option(help="mark where a series moved to another level, as advice")
    ] = True,
    results: ResultsOption = Path("results"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Print a metric over the runs of a suite, a line per point, with where its level changed."""
    from dataclasses import asdict

    from tradebench.commands import repetition
    from tradebench.regression import history as past
    from tradebench.regression.policy import Amount

    try:
        share = Amount.parse(least).relative
    except ValueError as error:
        raise UserError(f"--least: {error}") from None
    name, sample = repetition.past(results, suite, last=last, note=_note)
    found = past.series(sample, metric, least=share, change_points=change_points)
    if not found:
        known = sorted({each for point in sample.points for each in point.metrics})
        raise UserError(f"no run of {name} has {metric!r}; there are {', '.join(known)}")
    if form is Format.JSON:
        _print_json("history", {"suite": name, "series": [asdict(each) for each in found]})
        return
    typer.echo(past.text(name, found))


@app.command(name="export")
def export_command(
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
        written = write(gating.load(results, runs, _note), out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    if form is Format.JSON:
        _print_json("export", {"written": written})
        return
    for each in written:
        typer.echo(each)


@app.command(name="import")
def import_command(
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
        _print_json("import", {"run": str(run.directory), "results": _results(run.results)})
        return
    for result in run.results:
        typer.echo(f"{result.label}: {' '.join(result.warnings)}")
    typer.echo(f"run: {run.directory}")


def _print_check(command: str, made: Check, code: int, form: Format) -> None:
    from tradebench.regression import summary

    match form:
        case Format.JSON:
            _print_json(command, summary.payload(made, code))
        case Format.MARKDOWN:
            typer.echo(summary.markdown(made, code, baseline=command == "check"), nl=False)
        case Format.TEXT:
            typer.echo(summary.text(made, code, baseline=command == "check"))


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _kinds(given: Sequence[Evidence] | None) -> tuple[Kind, ...] | None:
    names: Mapping[Evidence, Kind] = {
        Evidence.MEASURED: "measured",
        Evidence.PREDICTED: "predicted",
        Evidence.PUBLISHED: "published",
    }
    return tuple(names[each] for each in given) if given else None


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None


@baseline_app.command(name="set")
def set_baseline(
    runs: RunsArgument,
    out: BaselineOption,
    kind: KindOption = None,
    policy: PolicyOption = None,
    reason: Annotated[str | None, typer.Option(help="why, for whoever reads the file")] = None,
    allow_flagged: FlaggedOption = False,
    results: ResultsOption = Path("results"),
) -> None:
    """Make a baseline of one or more runs, to be committed and reviewed.

    Five runs or more show their own noise; fewer lean on the policy's. Beside FILE lies
    FILE.items.gz with the answers to every test item: commit both.
    """
    from tradebench.commands import gating
    from tradebench.regression import baseline as baselines

    made = gating.make_baseline(
        gating.load(results, runs, _note),
        kinds=_kinds(kind),
        policy_file=policy,
        reason=reason,
        allow_flagged=allow_flagged,
    )
    baselines.save(made, out)
    _say_baseline(made, out)


@baseline_app.command(name="add")
def add_to_baseline(
    runs: RunsArgument,
    out: BaselineOption,
    allow_flagged: FlaggedOption = False,
    results: ResultsOption = Path("results"),
) -> None:
    """Add runs of the same code to a baseline, so that smaller changes are found."""
    from tradebench.commands import gating
    from tradebench.regression import baseline as baselines

    made = gating.add_to_baseline(
        baselines.load(out), gating.load(results, runs, _note), allow_flagged=allow_flagged
    )
    baselines.save(made, out)
    _say_baseline(made, out)


@baseline_app.command(name="show")
def show_baseline(file: BaselineArgument, form: FormatOption = Format.TEXT) -> None:
    """Print what a baseline holds, and from what change on it would notice one."""
    from tradebench.regression import baseline as baselines
    from tradebench.regression import contents

    held = baselines.load(file)
    if form is Format.JSON:
        _print_json("baseline", {"file": str(file), **contents.payload(held)})
        return
    typer.echo(contents.text(held))


@baseline_app.command(name="diff")
def diff_baselines(
    old: BaselineArgument,
    new: Annotated[Path, typer.Argument(help="another one", show_default=False)],
    form: FormatOption = Format.TEXT,
) -> None:
    """Print what one baseline says otherwise than another: what a review should look at."""
    from dataclasses import asdict

    from tradebench.commands import gating
    from tradebench.regression import baseline as baselines
    from tradebench.regression import summary

    found = gating.differences(baselines.load(old), baselines.load(new))
    if form is Format.JSON:
        _print_json("baseline", {"verdicts": [asdict(each) for each in found]})
        return
    typer.echo(summary.table(found) if found else "they say the same")


@baseline_app.command(name="prune")
def prune_baseline(
    file: BaselineArgument,
    keep: Annotated[int | None, typer.Option(min=1, help="the newest so many runs")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="a run to remove; repeatable")] = None,
) -> None:
    """Remove runs from a baseline: the oldest ones, or those that are named."""
    from tradebench.regression import baseline as baselines

    if keep is None and not drop:
        raise UserError("say which runs to remove: --keep N for the newest N, or --drop RUN")
    made = baselines.pruned(baselines.load(file), keep=keep, drop=drop or ())
    baselines.save(made, file)
    _say_baseline(made, file)


def _say_baseline(made: Baseline, file: Path) -> None:
    from tradebench.report.units import count

    sample = made.sample
    typer.echo(f"{file}: {count(len(sample.points), 'point')}, {count(len(sample.runs), 'run')}")


@app.command()
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
    from tradebench import report, store
    from tradebench.commands.merging import merge as bring_together

    found = [store.load(store.find(results, each)) for each in runs]
    for problem in (problem for run in found for problem in run.problems):
        typer.echo(problem, err=True)
    merged = bring_together(found, out, note=lambda text: typer.echo(text, err=True))
    if merged.results:
        report.write(merged, merged.directory / "report")
    if form is Format.JSON:
        _print_json("merge", {"run": str(merged.directory), "results": _results(merged.results)})
    else:
        _print_summary(merged, merged.directory / "report")


@app.command()
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
            _print_json("techniques", {"techniques": [kind.describe() for kind in known()]})
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
            _print_json("techniques", {"pairs": [pair.describe() for pair in pairs.pairs()]})
        case Format.MARKDOWN:
            typer.echo(pairs.markdown())
        case Format.TEXT:
            from rich.console import Console

            console = Console()
            console.print(pairs.draw(console))


@app.command(name="calibrate")
def calibrate_command(
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


@suite_app.command()
def check(suite: SuiteArgument, form: FormatOption = Format.TEXT) -> None:
    """Read a suite file and count its points, without running any."""
    from tradebench.suite import WHOLE, Suite

    loaded = Suite.load(suite)
    if form is Format.JSON:
        _print_points(loaded, form, WHOLE)
        return
    _print_counts(loaded, loaded.trials())
    reasons = sorted({reason for trial in loaded.trials() for reason in trial.conflicts()})
    for reason in reasons:
        typer.echo(f"  {reason}")


@suite_app.command()
def schema() -> None:
    """Print the JSON Schema of suite files, for editors."""
    from tradebench.suite import suite_schema

    typer.echo(json.dumps(suite_schema(), indent=2))


@app.command()
def doctor(results: ResultsOption = Path("results"), form: FormatOption = Format.TEXT) -> None:
    """Look at this machine and at the stored runs, and say what is wrong."""
    from tradebench.doctor import examine

    found = examine(results)
    if form is Format.JSON:
        _print_json("doctor", found.model_dump(mode="json"))
        return
    for name, value in found.facts.items():
        typer.echo(f"{name}: {value}")
    for problem in found.problems:
        typer.echo(f"problem: {problem}", err=True)
    if not found.problems:
        typer.echo("no problem found")


@reference_app.command()
def info(form: FormatOption = Format.TEXT) -> None:
    """Describe the reference model: its size, its tasks, and what it scores."""
    from tradebench import reference

    found = reference.info()
    if form is Format.JSON:
        _print_json("reference", found)
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
