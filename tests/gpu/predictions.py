"""Predictions of every trial that was measured, beside what was measured."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from gpu.comparison import compare, prediction
from gpu.section import Bench
from tradebench import devices, environment
from tradebench.errors import UserError
from tradebench.plan.plan import cores
from tradebench.predict.library import Library
from tradebench.result import Result

FOLDERS = ("ladder", "techniques")
REHEARSED = "h200-141gb"  # predicted for where the device is none of the catalogue
MOST = 12  # processes


def run(bench: Bench, name: str) -> None:
    """Write down every trial's figures, in pairs.

    Raises:
        RuntimeError: one could not be predicted.
    """
    files = [path for folder in FOLDERS for path in sorted((bench.out / folder).glob("*.json"))]
    gpu = environment.gpu() if bench.device == "cuda" else None
    device = devices.named(gpu.name) if gpu is not None else None
    target = REHEARSED if device is None else device.id
    calibration = bench.out / "calibration.json"
    given = calibration if device is not None and calibration.exists() else None
    work = partial(beside, device=target, calibration=given)
    with ProcessPoolExecutor(
        min(MOST, cores()), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        found = [each for each in pool.map(work, files) if each is not None]
    bench.write(
        "predictions",
        {"schema": "tradebench.predictions/1", "device": target, "trials": found},
    )
    failed = [f"{each['name']}: {each['reason']}" for each in found if each["reason"]]
    if failed:
        raise RuntimeError("\n".join(failed))


def beside(path: Path, *, device: str, calibration: Path | None) -> dict[str, Any] | None:
    """A trial's measured and predicted figures; None where it was not run."""
    result = Result.model_validate_json(path.read_text())
    if result.status not in ("ok", "oom"):
        return None
    found: dict[str, Any] = {
        "name": f"{path.parent.name}/{path.stem}",
        "label": result.label,
        "status": result.status,
        "reason": None,
        "figures": [],
    }
    try:
        predicted = prediction(result, device, calibration, Library(device="cuda"))
    except UserError as error:
        return {**found, "reason": str(error)}
    figures: Sequence[Mapping[str, Any]] = [
        {
            "name": compared.name,
            "measured": compared.measured,
            "predicted": compared.predicted,
            "interval": compared.interval,
            "within": compared.within,
        }
        for compared in compare(result, predicted)
    ]
    return {**found, "figures": figures}
