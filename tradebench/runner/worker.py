"""The worker: makes the one attempt that a job describes and leaves a Result beside it.

`python -m tradebench.runner.worker DIRECTORY [FD]` in a fresh interpreter, or `main` in a fork of
the template; either way under a guard. Heartbeats go to the pipe FD, the Result to `result.json`,
and nothing that the trial prints is ever parsed. A trial of several ranks has a worker for each,
and each leaves a Result.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from tradebench import environment, store
from tradebench.rank import Rank
from tradebench.result import (
    Environment,
    Heartbeat,
    Listener,
    Measurement,
    Outcome,
    Result,
    Status,
    canonical_json,
)
from tradebench.runner import process, verdict
from tradebench.runner.job import Isolation, Job
from tradebench.target import ALLOCATOR
from tradebench.trial import Trial

# One configuration for all trials, set after every import: importing gptqmodel rewrites both.
DEVICE_VARIABLES = {
    "PYTORCH_ALLOC_CONF": ALLOCATOR,
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}


def main(directory: Path, beats: int, isolation: Isolation) -> NoReturn:
    """Make the attempt that lies in `directory`; never returns."""
    began, started = time.monotonic(), store.timestamp()
    job, outcome, status, reason = Job.read(directory), Outcome(), None, None
    trial = Trial.from_payload(job.trial)
    try:
        attempt(job, trial, outcome, beats)
    except BaseException as error:  # whatever ends a trial, sys.exit included, ends as a Result
        traceback.print_exc()
        ended = verdict.of_exception(error, outcome.phase)
        status, reason = ended.status, environment.scrub(ended.reason)
        if ended.requested_bytes is not None:
            outcome.measurements["requested_bytes"] = Measurement(
                value=ended.requested_bytes, unit="B"
            )
    result = build(job, trial, outcome, status=status or "ok", reason=reason).model_copy(
        update={
            "isolation": isolation,
            "started": started,
            "seconds": round(time.monotonic() - began, 6),
        }
    )
    rank = Rank.read()
    store.write_text(job.result(rank.number), result.to_json() + "\n")
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    # An interpreter with torch in it takes 1.5 s to tear down, and may hang doing so.
    # Of several, the others are told by this that they need not wait.
    os._exit(int(result.status != "ok" and rank.of > 1))


def attempt(job: Job, trial: Trial, outcome: Outcome, beats: int) -> None:
    """Run the program on the trial; `outcome` has what it brought, also if this raises."""
    os.set_inheritable(beats, False)
    os.set_blocking(beats, False)
    try:
        run = prepare(job, beats)
        run(trial, outcome, repeat=job.repeat, directory=job.run, heartbeat=listener(beats))
    finally:
        lift_memory_cap()
    outcome.warnings += rewritten()


def prepare(job: Job, beats: int) -> Callable[..., None]:
    """Import everything, set this process up, and return the program."""
    for name in job.preload:
        importlib.import_module(name)
    module, _, function = job.program.partition(":")
    program: Callable[..., None] = getattr(importlib.import_module(module), function)
    os.environ.pop("PYTORCH_CUDA_ALLOC_CONF", None)
    os.environ.update(DEVICE_VARIABLES)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(job.threads)
    process.reset_peak_memory()
    rank = Rank.read().number
    tell(beats, {"phase": "load", "baseline": process.memory("RssAnon", "RssShmem"), "rank": rank})
    if job.memory_cap is not None:
        cap_memory(job.memory_cap)
    if changed := rewritten():
        raise RuntimeError(changed[0])
    return program


def cap_memory(cap: int) -> None:
    """Let this process have `cap` bytes beyond what its imports hold, of the device's or its own.

    With CUDA the cap is the device's: a limit on host memory would hit pinned and unified memory.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), device)
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (process.memory("VmData") + cap, hard))


def lift_memory_cap() -> None:
    """Give room again, so that the Result of an out-of-memory can be written."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def rewritten() -> list[str]:
    """A sentence for each device variable that something has changed."""
    return [
        f"{name} was rewritten to {os.environ.get(name)!r}: memory figures may not compare"
        for name, value in DEVICE_VARIABLES.items()
        if os.environ.get(name) != value
    ]


def listener(beats: int) -> Listener:
    """What the program calls with its heartbeats."""

    def send(beat: Heartbeat) -> None:
        tell(
            beats,
            {"phase": beat.phase, "step": beat.step, "steps": beat.steps, "bytes": beat.bytes},
        )

    return send


def tell(beats: int, message: Mapping[str, Any]) -> None:
    """Send one line to the supervisor; a full or closed pipe must not stop a trial."""
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(beats, json.dumps(message).encode() + b"\n")


def build(
    job: Job, trial: Trial, outcome: Outcome, *, status: Status, reason: str | None
) -> Result:
    """The Result of this attempt, with whatever the program had filled in by its end."""
    measurements, lost = finite(outcome.measurements)
    warnings = (*trial.cautions(), *outcome.warnings, *lost)
    return Result(
        suite=job.suite,
        trial=trial.id,
        repeat=job.repeat,
        attempt=job.attempt,
        label=job.label,
        **trial.payload(),
        status=status,
        reason=reason,
        phase=outcome.phase if status != "ok" else None,
        measurements=measurements,
        effects=outcome.effects,
        warnings=tuple(environment.scrub(warning) for warning in dict.fromkeys(warnings)),
        artifacts={**job.artifacts, **outcome.artifacts},
        environment=surroundings(job),
    )


def finite(
    measurements: Mapping[str, Measurement],
) -> tuple[dict[str, Measurement], list[str]]:
    """The measurements that JSON can hold, and a sentence for each that it cannot."""
    kept, lost = {}, []
    for name, measurement in measurements.items():
        try:
            canonical_json(measurement.model_dump())
        except ValueError:
            lost.append(f"{name} is left out: it is not finite ({measurement.value})")
        else:
            kept[name] = measurement
    return kept, lost


def surroundings(job: Job) -> Environment:
    """The supervisor's environment, with the variables as they are in this process."""
    variables = {
        **job.environment.variables,
        **environment.variables(os.environ),
        "threads": str(job.threads),
    }
    return job.environment.model_copy(update={"variables": variables})


if __name__ == "__main__":
    # Nobody hears the beats of what a launcher has started.
    pipe = int(sys.argv[2]) if len(sys.argv) > 2 else os.open(os.devnull, os.O_WRONLY)
    main(Path(sys.argv[1]), pipe, "exec")
