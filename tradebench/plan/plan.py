"""A plan: a suite's points as predicted Results, each held against a device."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tradebench import environment, store
from tradebench.devices import GIB, Device
from tradebench.plan.alternatives import alternatives, shorter
from tradebench.plan.cache import Cache
from tradebench.plan.fit import advise, fit
from tradebench.plan.pool import PROGRAM, predict
from tradebench.plan.watcher import Watcher
from tradebench.result import Environment, Measurement, Result
from tradebench.target import Target
from tradebench.trial import Trial

# How a plan calls what rests on readings of the very device instead of data sheets and others.
MEASURED = "measured on this device"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Predicted Results in the order of the suite, skipped points among them.

    `known` counts the predictions that were made before.
    """

    results: tuple[Result, ...]
    timelines: Mapping[str, Mapping[str, Any]]
    known: int


def make(
    suite: str,
    trials: Sequence[Trial],
    target: Target,
    device: Device | None,
    *,
    gpus: int | None = None,
    cache: Cache | None = None,
    processes: int | None = None,
    watch: Watcher | None = None,
    program: str = PROGRAM,
) -> Plan:
    """Predict every legal trial and hold it against the device.

    A trial that needs more GPUs than `gpus`, or any where no device is named, is skipped as an
    illegal one is. `watch` is told of each trial once its prediction is there; without a cache
    every one is made anew. Where no single change within the suite makes a point fit, a few beyond
    it are predicted for the advice alone: with other techniques, and with shorter sequences where
    none of those helps.
    """
    refusals = {trial.id: refuse(trial, device, gpus) for trial in trials}
    asked = [trial for trial in trials if not refusals[trial.id]]
    pool = _Pool(target, cache, processes or cores(), program, watch or Watcher())
    found = pool.ask(asked)
    base = environment.capture()
    results = [
        _skipped(suite, trial, refusals[trial.id], base)
        if refusals[trial.id]
        else _predicted(suite, trial, found[trial.id], device, base, target)
        for trial in trials
    ]
    known = pool.known

    def beyond(further: Sequence[Trial]) -> list[Result]:
        pool.watch.expect(len(further))
        answers = pool.ask(further)
        return [
            _predicted(suite, trial, answers[trial.id], device, base, target) for trial in further
        ]

    def refused(trial: Trial) -> bool:
        return bool(refuse(trial, device, gpus))

    others = beyond(alternatives(results, refused))
    others += beyond(shorter(advise(results, others), refused))
    timelines = {name: each["timeline"] for name, each in found.items() if each.get("timeline")}
    return Plan(results=tuple(advise(results, others)), timelines=timelines, known=known)


@dataclass
class _Pool:
    """Asks for predictions that are not known yet; `known` counts those that were."""

    target: Target
    cache: Cache | None
    processes: int
    program: str
    watch: Watcher
    known: int = 0

    def ask(self, trials: Sequence[Trial]) -> dict[str, Mapping[str, Any]]:
        """The predictions of these trials, by id."""
        found: dict[str, Mapping[str, Any]] = {}
        for trial in trials:
            before = self.cache.get(trial, self.target) if self.cache is not None else None
            if before is not None:
                found[trial.id] = before
                self.watch.predicted(trial.label)
        self.known += len(found)
        missing = [trial for trial in trials if trial.id not in found]
        for trial, prediction in self._make(missing):
            found[trial.id] = prediction
            if self.cache is not None and prediction["status"] == "ok":
                self.cache.put(trial, self.target, prediction)
            self.watch.predicted(trial.label)
        return found

    def _make(self, trials: Sequence[Trial]) -> Iterable[tuple[Trial, Mapping[str, Any]]]:
        if not trials:
            return ()
        return predict(trials, self.target, processes=self.processes, program=self.program)


def refuse(trial: Trial, device: Device | None, gpus: int | None) -> tuple[str, ...]:
    """Why this trial is not predicted."""
    reasons = trial.conflicts()
    if device is None:
        reasons += tuple(
            f"{part.cuda_only}; choose a device with --gpu."
            for part in trial.techniques
            if part.cuda_only is not None
        )
    else:
        reasons += trial.beyond(device.name, device.capability, device.memory_bytes)
    if gpus is not None and trial.ranks > gpus:
        reasons += (f"{trial.label} needs {trial.ranks} GPUs, and --gpus says {gpus}.",)
    return reasons


def unfit(plan: Plan) -> dict[str, str]:
    """By trial, a sentence for each that will not fit on its device."""
    return {
        result.trial: (
            f"{result.label} is predicted to need {fit.needed[0] / GIB:.1f} to "
            f"{fit.needed[1] / GIB:.1f} GiB while {fit.phase.replace('_', ' ')} runs, and "
            f"{fit.device} has {fit.capacity[1] / GIB:.1f}"
            f"{f'; {fit.advice}' if fit.advice else ''}. --try-unfit runs it all the same."
        )
        for result in plan.results
        if (fit := result.fit) is not None and fit.verdict == "does not fit"
    }


def keep(plan: Plan, directory: Path, writer: str = store.LOCAL) -> None:
    """Write a plan's Results, and the course of every point's step, into a run directory."""
    files = store.files(directory, writer)
    (files / "timelines").mkdir(parents=True, exist_ok=True)
    for name, timeline in plan.timelines.items():
        content = gzip.compress(json.dumps(timeline).encode(), mtime=0)
        (files / _timeline(name)).write_bytes(content)
    lines = "".join(f"{store.placed(result, writer).to_json()}\n" for result in plan.results)
    name = "plan" if writer == store.LOCAL else f"{writer}.plan"
    store.write_text(directory / f"trials.{name}.jsonl", lines)


def cores() -> int:
    """Processes that can work beside each other here."""
    return len(os.sched_getaffinity(0))


def _predicted(
    suite: str,
    trial: Trial,
    prediction: Mapping[str, Any],
    device: Device | None,
    base: Environment,
    target: Target,
) -> Result:
    measurements = {
        name: Measurement.model_validate(value)
        for name, value in prediction.get("measurements", {}).items()
    }
    return Result(
        kind="predicted",
        suite=suite,
        trial=trial.id,
        label=trial.label,
        **trial.payload(),
        status=prediction["status"],
        reason=prediction.get("reason"),
        measurements=measurements,
        warnings=tuple(dict.fromkeys((*trial.cautions(), *prediction.get("warnings", ())))),
        artifacts={"timeline": _timeline(trial.id)} if prediction.get("timeline") else {},
        environment=_environment(base, trial, device, target),
        fit=fit(measurements, device) if device is not None else None,
    )


def _skipped(suite: str, trial: Trial, reasons: Iterable[str], base: Environment) -> Result:
    return Result(
        kind="predicted",
        suite=suite,
        trial=trial.id,
        label=trial.label,
        **trial.payload(),
        status="skipped",
        reason=" ".join(reasons),
        environment=_environment(base, trial, None, Target()),
    )


def _environment(
    base: Environment, trial: Trial, device: Device | None, target: Target
) -> Environment:
    """The software that predicts, the hardware that is predicted for, and what was read off it."""
    hardware = {}
    if device is not None:
        hardware["predicted_for"] = device.name
        if target.calibration is not None:
            hardware["speed"] = MEASURED
        if target.overheads is not None:
            hardware["overheads"] = MEASURED
    return environment.of_trial(base, trial).model_copy(update={"hardware": hardware})


def _timeline(trial: str) -> str:
    return f"timelines/{trial}.json.gz"
