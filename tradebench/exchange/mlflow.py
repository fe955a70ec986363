"""MLflow: a run of its own for every Result, under one for the run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tradebench.errors import UserError
from tradebench.exchange.flat import metrics, parameters
from tradebench.result import Result
from tradebench.store import Run

LONGEST = 6000  # characters that MLflow takes for a parameter


def write(runs: Sequence[Run], out: Path) -> list[str]:
    """Log to the tracking server that MLflow is set to, or into the SQLite file `out`."""
    try:
        from mlflow import MlflowClient
    except ImportError:
        raise UserError("MLflow is not installed: pip install 'tradebench[mlflow]'") from None
    where = str(out) if "://" in str(out) else f"sqlite:///{out.resolve()}"
    client = MlflowClient(tracking_uri=where)
    return [_log(client, run) for run in runs]


def _log(client: Any, run: Run) -> str:
    name = f"tradebench {run.header['suite']}"
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    directory = run.directory.resolve().name
    parent = client.create_run(experiment, run_name=directory)
    for result in run.results:
        _trial(client, experiment, parent.info.run_id, result)
    client.set_terminated(parent.info.run_id)
    return f"{len(run.results)} runs under {directory} in the experiment {name!r}"


def _trial(client: Any, experiment: str, parent: str, result: Result) -> None:
    tags = {
        "mlflow.parentRunId": parent,
        "kind": result.kind,
        "status": result.status,
        "trial": result.trial,
    }
    child = client.create_run(experiment, run_name=result.label, tags=tags).info.run_id
    for name, value in parameters(result).items():
        client.log_param(child, name, str(value)[:LONGEST])
    for name, number in metrics(result).items():
        client.log_metric(child, name, number)
    for step, sample in enumerate(_samples(result)):
        client.log_metric(child, "step_seconds.sample", sample, step=step)
    client.set_terminated(child, status="FINISHED" if result.status == "ok" else "FAILED")


def _samples(result: Result) -> tuple[float, ...]:
    time = result.measurements.get("step_seconds")
    return () if time is None else tuple(float(sample) for sample in time.samples)
