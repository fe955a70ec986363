"""The ladder: one rung is one trial, whose Result is kept so that any machine can predict it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gpu.program import once
from gpu.rungs import RUNGS
from gpu.section import Bench
from tradebench import environment
from tradebench.program.loop import Training
from tradebench.program.measure import summarise
from tradebench.result import Measurement, Outcome, Phase, Result
from tradebench.runner import verdict
from tradebench.trial import Trial
from tradebench.worlds.meters import Clock, phase_peaks

SUITE = "gpu-ladder"


def run(bench: Bench, name: str) -> None:
    """Make one rung's trial; memory that does not suffice is a finding, too.

    Raises:
        RuntimeError: the trial failed.
    """
    result = attempt(RUNGS[name].trial(tiny=bench.tiny), bench.device)
    bench.write(f"ladder/{name}", result.model_dump(mode="json", by_alias=True))
    if result.status not in ("ok", "oom"):
        raise RuntimeError(result.reason)


def attempt(trial: Trial, device: str) -> Result:
    """The undisturbed pass of a trial, in this process, and what came of it."""
    begun, outcome = time.monotonic(), Outcome(warnings=list(trial.cautions()))
    ended = None
    try:
        undisturbed(trial, device, outcome)
    except Exception as error:  # whatever ends a trial ends as a Result
        ended = verdict.of_exception(error, outcome.phase)
    return Result(
        suite=SUITE,
        trial=trial.id,
        label=trial.label,
        **trial.payload(),
        status="ok" if ended is None else ended.status,
        reason=None if ended is None else environment.scrub(ended.reason),
        phase=None if ended is None else outcome.phase,
        measurements=outcome.measurements,
        effects=outcome.effects,
        warnings=tuple(outcome.warnings),
        environment=environment.of_trial(environment.capture(), trial),
        seconds=round(time.monotonic() - begun, 3),
    )


def undisturbed(trial: Trial, device: str, outcome: Outcome) -> None:
    """Go through a trial once, and fill `outcome` also where that fails."""
    clock, training = DeviceClock(device), Training()
    try:
        once(trial, device, clock, outcome, training)
    finally:
        outcome.measurements |= clock.measurements()
        outcome.measurements |= summarise(trial.budget, training, clock.samples)
    if clock.retries:
        outcome.warnings.append(f"the allocator ran full and retried {clock.retries} times")


class DeviceClock(Clock):
    """A clock that also keeps what was asked of the allocator, before it rounds."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.requested: dict[str, int] = {}

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Read one counter more; it was reset with the others."""
        try:
            with super().phase(name):
                yield
        finally:
            if self.cuda:
                stats = torch.cuda.memory_stats()
                self.requested[name] = stats["requested_bytes.all.peak"]

    def measurements(self) -> dict[str, Measurement]:
        """Those of any clock, and the seconds of every phase."""
        found = super().measurements() | phase_peaks("peak_requested_bytes", self.requested)
        found |= {
            f"{name}_seconds": Measurement(value=value, unit="s")
            for name, value in self.seconds.items()
        }
        return found
