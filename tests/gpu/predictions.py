"""Predictions of every trial that was measured, beside what was measured.

A section of the run, so that nobody has to wait to see how far predictions are off; `gpu.report`
makes them anew on any machine.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from gpu.comparison import compare, prediction
from gpu.section import Bench
from tradebench import devices
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
    found = every(bench.out)
    bench.write("predictions", found)
    failed = [f"{each['name']}: {each['reason']}" for each in found["trials"] if each["reason"]]
    if failed:
        raise RuntimeError("\n".join(failed))


def every(folder: Path) -> dict[str, Any]:
    """All trials of a folder with their figures, for the device that they were measured on."""
    files = [path for room in FOLDERS for path in sorted((folder / room).glob("*.json"))]
    results = [Result.model_validate_json(path.read_text()) for path in files]
    names = {gpu["name"] for each in results for gpu in each.environment.hardware["gpus"]}
    device = devices.named(names.pop()) if len(names) == 1 else None
    calibration = folder / "calibration.json"
    work = partial(
        beside,
        device=REHEARSED if device is None else device.id,
        calibration=calibration if device is not None and calibration.exists() else None,
    )
    with ProcessPoolExecutor(
        min(MOST, cores()), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        found = [each for each in pool.map(work, files) if each is not None]
    return {
        "schema": "tradebench.predictions/1",
        "device": REHEARSED if device is None else device.id,
        "trials": found,
    }


def beside(path: Path, device: str, calibration: Path | None) -> dict[str, Any] | None:
    """A trial's measured and predicted figures; None where it was not run."""
    result = Result.model_validate_json(path.read_text())
    if result.status not in ("ok", "oom"):
        return None
    found: dict[str, Any] = {
        "name": f"{path.parent.name}/{path.stem}",
        "label": result.label,
        "layers": result.model["layers"],
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
