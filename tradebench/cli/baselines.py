"""The commands that keep what later runs are held against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tradebench.cli import options
from tradebench.cli.options import (
    FlaggedOption,
    Format,
    FormatOption,
    KindOption,
    PolicyOption,
    ResultsOption,
    RunsArgument,
)
from tradebench.errors import UserError

if TYPE_CHECKING:
    from tradebench.regression.baseline import Baseline

BaselineOption = Annotated[
    Path, typer.Option("--out", "-o", help="the baseline file", show_default=False)
]
BaselineArgument = Annotated[Path, typer.Argument(help="a baseline file", show_default=False)]
app = typer.Typer(
    help="Keep what later runs are held against, in files to commit.", no_args_is_help=True
)


@app.command(name="set")
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
        gating.load(results, runs, options.note),
        kinds=options.kinds(kind),
        policy_file=policy,
        reason=reason,
        allow_flagged=allow_flagged,
    )
    baselines.save(made, out)
    _say_baseline(made, out)


@app.command(name="add")
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
        baselines.load(out), gating.load(results, runs, options.note), allow_flagged=allow_flagged
    )
    baselines.save(made, out)
    _say_baseline(made, out)


@app.command(name="show")
def show_baseline(file: BaselineArgument, form: FormatOption = Format.TEXT) -> None:
    """Print what a baseline holds, and from what change on it would notice one."""
    from tradebench.regression import baseline as baselines
    from tradebench.regression import contents

    held = baselines.load(file)
    if form is Format.JSON:
        options.print_json("baseline", {"file": str(file), **contents.payload(held)})
        return
    typer.echo(contents.text(held))


@app.command(name="diff")
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
        options.print_json("baseline", {"verdicts": [asdict(each) for each in found]})
        return
    typer.echo(summary.table(found) if found else "they say the same")


@app.command(name="prune")
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
