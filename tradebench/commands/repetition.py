"""`tradebench noise` and `history`: many runs of one suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tradebench import store
from tradebench.commands import sweep
from tradebench.errors import NothingToCompareError, UserError
from tradebench.regression.sample import Sample, of_runs
from tradebench.result import Kind
from tradebench.runner.options import Options
from tradebench.store import Run
from tradebench.suite import Suite

FEWEST = 2  # runs that can differ

Note = Callable[[str], None]


def runs_of(suite: Suite, out: Path, *, runs: int, note: Note) -> list[Run]:
    """Run a suite so many times, one after the other, each as a run of its own."""
    options = Options(
        timeout=suite.timeout,
        memory_cap=suite.resources.memory,
        threads=1,
        variables=sweep.variables(suite),
    )
    found = []
    for number in range(runs):
        note(f"run {number + 1} of {runs}")
        run, summary = sweep.sweep(
            suite,
            out,
            options,
            resume=False,
            foresight=sweep.Foresight(predict=False),
            note=note,
        )
        if summary.interrupted:
            raise KeyboardInterrupt
        found.append(run)
    return found


def alike(runs: Sequence[Run], kinds: Sequence[Kind] | None = None) -> Sample:
    """Runs whose differences are noise.

    Raises:
        UserError: there is only one, or their code is not the same.
    """
    if len(runs) < FEWEST:
        raise UserError("one run shows no noise: name two or more, or a suite to run")
    sample, _ = of_runs(runs, kinds)
    first = sample.runs[0]
    for other in sample.runs[1:]:
        changed = [
            name
            for name in sorted({*first.code, *other.code})
            if first.code.get(name) != other.code.get(name)
        ]
        if changed:
            raise UserError(
                f"{first.run} and {other.run} ran different code ({', '.join(changed)}): noise is "
                "what runs of the same code differ by"
            )
    return sample


def past(results: Path, suite: str | None, *, last: int, note: Note) -> tuple[str, list[Run]]:
    """The newest `last` runs of a suite, oldest first; of the one that ran last if none is named.

    Raises:
        NothingToCompareError: it has no run.
    """
    newest = store.latest(results, suite or "*")
    if newest is None:
        named = f"of {suite} " if suite else ""
        raise NothingToCompareError(f"{results} holds no run {named}yet")
    name = newest.parent.name
    runs = []
    for folder in store.runs(results, name)[-last:]:
        run = store.load(folder)
        for problem in run.problems:
            note(problem)
        runs.append(run)
    return name, runs
