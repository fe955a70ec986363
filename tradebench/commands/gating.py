"""`tradebench check`, `compare` and `baseline`: runs held against other runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tradebench import store
from tradebench.commands import header
from tradebench.commands.placement import Placement
from tradebench.errors import UserError
from tradebench.regression import baseline as baselines
from tradebench.regression import gate, policy
from tradebench.regression.baseline import Baseline
from tradebench.regression.gate import Check, Verdict
from tradebench.regression.policy import Policy
from tradebench.regression.sample import Key, Sample, of_runs
from tradebench.result import Kind
from tradebench.runner.engines.ray import Cluster
from tradebench.runner.progress import Progress
from tradebench.runner.supervisor import run as supervise
from tradebench.store import Run
from tradebench.trial import Trial

AGAIN = "confirm"  # the folder in a run that holds what was run again to confirm it

Note = Callable[[str], None]


def load(results: Path, names: Iterable[str], note: Note) -> list[Run]:
    """The runs that a user names, with what could not be read of them noted."""
    runs = []
    for name in names:
        run = store.load(store.find(results, name))
        for problem in run.problems:
            note(problem)
        runs.append(run)
    return runs


def make_baseline(
    runs: Sequence[Run],
    *,
    kinds: Sequence[Kind] | None,
    policy_file: Path | None,
    reason: str | None,
    allow_flagged: bool,
) -> Baseline:
    """A baseline of these runs.

    Raises:
        UserError: a run was made with changed files, or cannot stand beside the others.
    """
    if not allow_flagged:
        _refuse_flagged(runs)
    sample, items = of_runs(runs, kinds, expected=True)
    return Baseline(
        sample=sample,
        items=items,
        policy=Policy() if policy_file is None else policy.load(policy_file),
        reason=reason,
    )


def add_to_baseline(old: Baseline, runs: Sequence[Run], *, allow_flagged: bool) -> Baseline:
    """The baseline with these runs in it, of the kinds that it has."""
    if not allow_flagged:
        _refuse_flagged(runs)
    sample, items = of_runs(runs, kinds_of(old.sample), expected=True)
    return baselines.merged(old, sample, items)


def kinds_of(sample: Sample) -> tuple[Kind, ...]:
    """The kinds of evidence that a sample holds."""
    return tuple(dict.fromkeys(point.kind for point in sample.points))


def check(
    run: Run,
    held: Baseline,
    *,
    policy_file: Path | None,
    confirm: int,
    note: Note,
) -> Check:
    """Hold a run against a baseline; run again, `confirm` times, the points that regressed."""
    if policy_file is not None:
        held = Baseline(
            sample=held.sample,
            items=held.items,
            policy=policy.load(policy_file),
            reason=held.reason,
        )
    kinds = kinds_of(held.sample)
    first = gate.judge(held, *of_runs([run], kinds))
    hits = {verdict.key for verdict in first.verdicts if verdict.stops}
    measured = {key for key in hits if key[0] == "measured"}
    if not confirm or not measured:
        return first
    again = [run_again(run, measured, note) for _ in range(confirm)]
    # Of every run only the points in question, so that the others are not judged twice.
    second = gate.judge(
        _only(held, hits), *of_runs([_part(run, hits), *again], kinds), confirmations=confirm
    )
    return gate.confirmed(first, second)


def compare(
    base: Run, new: Run, *, policy_file: Path | None, kinds: Sequence[Kind] | None
) -> Check:
    """Hold one run against another, as if that one were a baseline of one run."""
    sample, items = of_runs([base], kinds)
    rules = Policy() if policy_file is None else policy.load(policy_file)
    held = Baseline(sample=sample, items=items, policy=rules)
    return gate.judge(held, *of_runs([new], kinds_of(sample)))


def differences(old: Baseline, new: Baseline) -> list[Verdict]:
    """What a new baseline says otherwise than an old one: everything that is not `ok`.

    A baseline is a sample like a run, with its newest run speaking for it.
    """
    last = baselines.chosen(new.sample, [len(new.sample.runs) - 1])
    found = gate.judge(old, last, new.items)
    return [verdict for verdict in found.verdicts if verdict.outcome != "ok"]


def run_again(run: Run, keys: Iterable[Key], note: Note) -> Run:
    """Run some measured points of a run once more, as and where they ran, into a run inside it."""
    wanted = {trial for kind, trial in keys if kind == "measured"}
    results = [each for each in run.results if each.kind == "measured" and each.trial in wanted]
    trials = {each.trial: Trial.from_payload(each.payload()) for each in results}
    repeats = {
        trial: 1 + max(each.repeat for each in results if each.trial == trial) for trial in trials
    }
    suite = str(run.header["suite"])
    said = {
        "question": f"Does {run.directory.name} come out so again?",
        "suite_text": run.header.get("suite_text", ""),
        "objectives": run.header.get("objectives", []),
        "limits": run.header.get("limits", {}),
        "options": run.header.get("options", {}),
        **header.of_command(),
    }
    options = header.options_of(run.header)
    where = Placement(options=options, cluster=Cluster() if options.anywhere else None)
    labels = ", ".join(trial.label for trial in trials.values())
    note(f"running again to confirm: {labels}")
    directory = store.create_run(run.directory / AGAIN, suite, said)
    with Progress() as bar:
        summary = supervise(
            list(trials.values()),
            directory=directory,
            suite=suite,
            repeats=lambda trial: repeats[trial.id],
            header=said,
            options=options,
            observer=bar,
            refuse=where.refuse,
            engine=where.engine,
        )
    if summary.interrupted:
        raise KeyboardInterrupt
    return store.load(directory)


def _refuse_flagged(runs: Sequence[Run]) -> None:
    for run in runs:
        dirty = any(each.environment.variables.get("git_dirty") == "true" for each in run.results)
        if dirty:
            raise UserError(
                f"{run.directory.name} ran with files that differ from their commit: commit them "
                "and run again, or say --allow-flagged"
            )


def _only(held: Baseline, keys: set[Key]) -> Baseline:
    points = tuple(point for point in held.sample.points if point.key in keys)
    return Baseline(
        sample=held.sample.model_copy(update={"points": points}),
        items=held.items,
        policy=held.policy,
        reason=held.reason,
    )


def _part(run: Run, keys: set[Key]) -> Run:
    return Run(
        directory=run.directory,
        header=run.header,
        results=tuple(each for each in run.results if (each.kind, each.trial) in keys),
        attempts=(),
        problems=(),
    )
