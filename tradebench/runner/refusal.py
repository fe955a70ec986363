"""Which points a run refuses: those that are illegal, and those that this machine cannot run."""

from __future__ import annotations

from tradebench import environment
from tradebench.trial import Trial

PROCESSES = 1  # that a run gives to each trial


def refuse(trial: Trial, *, gpu: bool | None = None) -> tuple[str, ...]:
    """Every reason not to run a trial, each with its remedy; none where it can run.

    `gpu` says whether there is a GPU where it would run, if that is not this machine.
    """
    reasons = trial.conflicts()
    if not (environment.gpu() is not None if gpu is None else gpu):
        reasons += tuple(
            f"{part.cuda_only}; predict it with tradebench plan and a --gpu"
            for part in trial.techniques
            if part.cuda_only is not None
        )
    reasons += tuple(reason for part in trial.techniques if (reason := part.missing()) is not None)
    if trial.ranks > PROCESSES:
        reasons += (
            f"{trial.label} needs {trial.ranks} processes, and a run has {PROCESSES}; "
            "predict it with tradebench plan",
        )
    return reasons
