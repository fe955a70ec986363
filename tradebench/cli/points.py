"""How the points of a suite are listed before any of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from tradebench.cli.options import Format, print_json

if TYPE_CHECKING:
    from tradebench.suite import Shard, Suite
    from tradebench.trial import Trial


def print_points(suite: Suite, form: Format, shard: Shard) -> None:
    """List the points of a suite that a shard has, legal or not, without running any."""
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
        print_json("run", {"points": points})
        return
    for point in points:
        reasons = " ".join(point["reasons"])
        typer.echo(f"{point['label']}" + (f"  (skipped: {reasons})" if reasons else ""))
    print_counts(suite, trials)


def print_counts(suite: Suite, trials: Sequence[Trial]) -> None:
    """Say how many of a suite's points are legal, and how many trials that makes."""
    legal = [trial for trial in trials if not trial.conflicts()]
    runs = sum(suite.repeats_of(trial) for trial in legal)
    typer.echo(
        f"{suite.name}: {len(trials)} points, {len(legal)} legal, "
        f"{len(trials) - len(legal)} skipped with their reasons; {runs} trials to run"
    )
