"""`tradebench run`: a suite measured, and each of its points predicted beside its measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tradebench import devices, environment, reference, store
from tradebench.commands import header
from tradebench.commands.placement import Placement
from tradebench.devices import Device
from tradebench.plan.cache import Cache
from tradebench.plan.plan import Plan, keep, make, unfit
from tradebench.plan.progress import progress
from tradebench.runner.engines.ray import Cluster
from tradebench.runner.observer import Summary
from tradebench.runner.options import Options
from tradebench.runner.progress import Progress
from tradebench.runner.supervisor import run as supervise
from tradebench.store import Run
from tradebench.suite import WHOLE, Shard, Suite
from tradebench.target import Target
from tradebench.trial import HubData, Trial

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

NOTHING = Plan(results=(), timelines={}, known=0)

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """Whether points are predicted beside a run, and those that will not fit are left out."""

    predict: bool = True
    skip_unfit: bool = True


def sweep(
    suite: Suite,
    out: Path,
    options: Options,
    *,
    resume: bool,
    foresight: Foresight,
    note: Note,
    shard: Shard = WHOLE,
    name: str | None = None,
    cluster: Cluster | None = None,
) -> tuple[Run, Summary]:
    """Measure every point of a suite; go on with its newest run where there is one to `resume`.

    With a `shard` only its points; with a `name` the run of that name, which is made where it is
    not there yet.

    On a GPU of the catalogue every point is predicted first, so that what will not fit is left out.
    Elsewhere what was measured on the CPU is predicted afterwards, when no clock is running. What
    cannot be predicted is noted and harms nothing. With a `cluster` trials run there, and what runs
    on its GPUs is not predicted.
    """
    said = {**header.of_suite(suite), "options": header.of_options(options)}
    trials = shard.of(suite.trials())
    newest = store.latest(out, suite.name) if resume and name is None else None
    directory = newest or store.create_run(out, suite.name, said, name)
    # Whoever watches the run knows from here on which process is at it, while that still predicts.
    with store.lock(directory, options.writer):
        pass
    if cluster is not None and cluster.has_gpus and foresight.predict:
        foresight = replace(foresight, predict=False)
        note("nothing is predicted beside a run on a cluster's GPUs: tradebench plan does that")
    gpu = environment.gpu() if foresight.predict and cluster is None else None
    device = devices.named(gpu.name) if gpu is not None else None
    if gpu is not None and device is None:
        note(f"{gpu.name} is not in the catalogue: nothing is predicted for it")
    left_out: Mapping[str, str] = {}
    if device is not None:
        made = _predict(suite, trials, device, note)
        keep(made, directory, options.writer)
        left_out = unfit(made) if foresight.skip_unfit else {}
    where = Placement(options=options, cluster=cluster)
    with Progress() as bar:
        summary = supervise(
            trials,
            directory=directory,
            suite=suite.name,
            repeats=suite.repeats_of,
            header=said,
            options=options,
            observer=bar,
            engine=where.engine,
            refuse=lambda trial: (
                where.refuse(trial) or ((left_out[trial.id],) if trial.id in left_out else ())
            ),
        )
    if foresight.predict and gpu is None and not summary.interrupted:
        _rehearse(suite, directory, note, options.writer)
    return store.load(directory), summary


def variables(suite: Suite) -> Mapping[str, str]:
    """What every worker's environment holds: where nothing of a suite lies on the Hub, no Hub."""
    local = suite.model.weights == "random" or suite.model.name == "reference"
    tasks = set(suite.evaluate.tasks) <= set(reference.TASK_NAMES)
    return OFFLINE if local and tasks and not isinstance(suite.budget.data, HubData) else {}


def _rehearse(suite: Suite, directory: Path, note: Note, writer: str = store.LOCAL) -> None:
    """Predict the memory of what was measured on a CPU, where a rehearsal needs no GPU either.

    Each writer does so for what it has measured itself.
    """
    measured = {
        result.trial
        for result in store.last(store.load(directory).writers.get(writer, ())).values()
        if result.kind == "measured" and result.status == "ok"
    }
    made = _predict(suite, [trial for trial in suite.trials() if trial.id in measured], None, note)
    # Here a prediction is a measurement's companion: one that failed says nothing of its point.
    good = tuple(result for result in made.results if result.status == "ok")
    for result in made.results:
        if result.status == "failed":
            note(f"{result.label} is not predicted: {result.reason}")
    if good:
        keep(replace(made, results=good), directory, writer)


def _predict(suite: Suite, trials: Sequence[Trial], device: Device | None, note: Note) -> Plan:
    """A plan of these trials; an empty one where predicting broke or was interrupted."""
    target = Target(device=device.id if device else None)
    legal = sum(not trial.conflicts() for trial in trials)
    try:
        with progress(legal) as bar:
            return make(suite.name, trials, target, device, cache=Cache(), watch=bar)
    except KeyboardInterrupt:
        note("predicting was interrupted: nothing is predicted beside this run")
    except Exception as error:  # whatever it is, the run matters more
        note(f"nothing is predicted beside this run: {type(error).__name__}: {error}")
    return NOTHING
