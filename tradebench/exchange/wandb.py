"""Weights & Biases: a run for every Result, grouped by run directory.

`WANDB_MODE=offline` keeps them in a folder until `wandb sync`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tradebench.errors import UserError
from tradebench.exchange.flat import metrics, parameters
from tradebench.store import Run


def write(runs: Sequence[Run], out: Path) -> list[str]:
    """Log to the project named by the last part of `out`, with local files in `out`."""
    try:
        import wandb
    except ImportError:
        raise UserError("wandb is not installed: pip install 'tradebench[wandb]'") from None
    out.mkdir(parents=True, exist_ok=True)
    told = []
    for run in runs:
        group = run.directory.resolve().name
        for result in run.results:
            logged = wandb.init(
                project=out.name,
                group=group,
                name=result.label,
                job_type=result.kind,
                config=parameters(result),
                tags=[result.kind, result.status],
                dir=str(out),
                reinit="finish_previous",
                settings=wandb.Settings(silent=True),
            )
            logged.summary.update({**metrics(result), "status": result.status})
            logged.finish(exit_code=0 if result.status == "ok" else 1)
        told.append(f"{len(run.results)} runs of the group {group} in the project {out.name}")
    # A finished run may not be on disk yet: its service writes behind our back until it is stopped.
    wandb.teardown()
    return told
