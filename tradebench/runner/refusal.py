"""Which points a run refuses: those that are illegal, and those that this machine cannot run."""

from __future__ import annotations

from tradebench import environment
from tradebench.trial import Trial

CPU_RANKS = 8  # that share one machine without a GPU: each holds its own imports, and a thread


def refuse(trial: Trial, *, launched: bool = False, cluster: bool | None = None) -> tuple[str, ...]:
    """Every reason not to run a trial, each with its remedy; none where it can run.

    Where ranks are `launched` by someone else, nobody here knows how many there is room for.
    `cluster` says whether the cluster that it would run on has GPUs, if that is not this machine;
    for how much it has room a cluster says itself.
    """
    reasons = trial.conflicts()
    gpu = environment.gpu() if cluster is None else None
    if gpu is not None:
        reasons += trial.beyond(gpu.name, gpu.capability, gpu.memory_bytes)
    elif not cluster:
        reasons += tuple(
            f"{part.cuda_only}; predict it with tradebench plan and a --gpu"
            for part in trial.techniques
            if part.cuda_only is not None
        )
    reasons += tuple(reason for part in trial.techniques if (reason := part.missing()) is not None)
    places, what = _places()
    if trial.ranks > places and not launched and cluster is None:
        reasons += (
            f"{trial.label} needs {trial.ranks} processes, and {what}; "
            "predict it with tradebench plan",
        )
    return reasons


def _places() -> tuple[int, str]:
    """How many ranks this machine has room for, in words as well."""
    gpus = environment.gpus()
    if gpus == 0:
        return CPU_RANKS, f"a run without a GPU has {CPU_RANKS} at most"
    return gpus, f"this machine has {gpus} GPU{'s' * (gpus > 1)}"
