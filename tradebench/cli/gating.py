"""The commands that hold runs against others: check, compare, noise and history."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tradebench.cli import options
from tradebench.cli.options import Format, FormatOption, KindOption, PolicyOption, ResultsOption
from tradebench.errors import UserError

if TYPE_CHECKING:
    from tradebench.regression.gate import Check

RUNS = 2  # that are compared
COMMITS_AND_SUITE = 3


def check(
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
    (found,) = gating.load(results, [run], options.note)
    made = gating.check(found, held, policy_file=policy, confirm=confirm, note=options.note)
    code = made.exit_code(strict=strict, allow_missing=allow_missing)
    if junit is not None:
        options.write(junit, summary.junit(made, str(found.header["suite"])))
    if md is not None:
        options.write(md, summary.markdown(made, code))
    _print_check("check", made, code, form)
    if code:
        raise typer.Exit(code)


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
            note=options.note,
        )
    else:
        if len(sides) != RUNS:
            raise UserError("compare takes two runs; --ab takes two commits and a suite")
        base, new = gating.load(results, sides, options.note)
        made = gating.compare(base, new, policy_file=policy, kinds=options.kinds(kind))
    code = made.exit_code()
    _print_check("compare", made, code, form)
    if code and (fail or not made.compared):
        raise typer.Exit(code)


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
        made = repetition.runs_of(Suite.load(what[0]), results, runs=runs, note=options.note)
    else:
        made = gating.load(results, what, options.note)
    found = spreads.measure(repetition.alike(made), rules)
    proposed = spreads.proposal(found, rules)
    if out is not None:
        options.write(out, proposed + "\n")
    names = [str(run.directory) for run in made]
    if form is Format.JSON:
        content = {"runs": names, "metrics": spreads.payload(found), "policy": proposed}
        options.print_json("noise", content)
        return
    typer.echo(f"{spreads.text(found)}\n\n{proposed}\n")
    typer.echo(f"runs: {' '.join(names)}")


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
    """Print a metric over the runs of a suite, a line per point, with where its level changed.

    Below stands one number for the front as a whole: how much it covers of the space between
    perfection and the suite's limits. Runs of other objectives, limits or points are left out.
    """
    from dataclasses import asdict

    from tradebench.commands import gating, repetition
    from tradebench.regression import front as fronts
    from tradebench.regression import history as past
    from tradebench.regression.policy import Amount
    from tradebench.regression.sample import of_runs

    try:
        share = Amount.parse(least).relative
    except ValueError as error:
        raise UserError(f"--least: {error}") from None
    name, runs = repetition.past(results, suite, last=last, note=options.note)
    sample, _ = of_runs(runs)
    found = past.series(sample, metric, least=share, change_points=change_points)
    if not found:
        known = sorted({each for point in sample.points for each in point.metrics})
        raise UserError(f"no run of {name} has {metric!r}; there are {', '.join(known)}")
    whole = fronts.series(runs, gating.kinds_of(sample), least=share, change_points=change_points)
    if form is Format.JSON:
        content = {"series": [asdict(each) for each in found]}
        content["fronts"] = [asdict(each) for each in whole]
        options.print_json("history", {"suite": name, **content})
        return
    typer.echo(past.text(name, found))
    if whole:
        typer.echo(fronts.text(whole))


def _print_check(command: str, made: Check, code: int, form: Format) -> None:
    from tradebench.regression import summary

    match form:
        case Format.JSON:
            options.print_json(command, summary.payload(made, code))
        case Format.MARKDOWN:
            typer.echo(summary.markdown(made, code, baseline=command == "check"), nl=False)
        case Format.TEXT:
            typer.echo(summary.text(made, code, baseline=command == "check"))
