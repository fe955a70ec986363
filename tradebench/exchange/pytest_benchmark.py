"""pytest-benchmark's JSON: `pytest-benchmark compare` reads what is written, and back.

Only times are compared there. Memory, accuracy and everything else travel in `extra_info`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median, quantiles, stdev
from typing import Any

from tradebench import __version__
from tradebench.errors import NothingToCompareError
from tradebench.result import Environment, Measurement, Result, digest
from tradebench.store import Run

TIME = "benchmark_seconds"  # what is read from other people's benchmarks
TIMES = frozenset({TIME, "step_seconds"})  # a Result has one of them


def write(runs: Sequence[Run], out: Path) -> list[str]:
    """One file for all runs, a benchmark per measured point with a time."""
    measured = [
        result
        for run in runs
        for result in run.results
        if result.kind == "measured" and not TIMES.isdisjoint(result.measurements)
    ]
    if not measured:
        raise NothingToCompareError("no measured point has a step time to export")
    first = measured[0]
    content = {
        "machine_info": _machine(first.environment),
        "commit_info": _commit(first.environment),
        "benchmarks": [_benchmark(result) for result in measured],
        "datetime": runs[0].header.get("started") or datetime.now(UTC).isoformat(),
        "version": __version__,
    }
    out.write_text(json.dumps(content, indent=4, allow_nan=False) + "\n", encoding="utf-8")
    return [str(out)]


def _benchmark(result: Result) -> dict[str, Any]:
    (time,) = (each for name, each in result.measurements.items() if name in TIMES)
    data = [float(sample) for sample in time.samples] or [float(time.value)]
    others = {name: each.value for name, each in result.measurements.items() if name not in TIMES}
    repeat = f"[{result.repeat}]" if result.repeat else ""
    return {
        "group": None,
        "name": f"{result.label}{repeat}",
        "fullname": f"{result.suite}::{result.label}{repeat}",
        "params": None,
        "param": None,
        "extra_info": {"trial": result.trial, "settings": dict(result.settings), **others},
        "options": {
            "disable_gc": False,
            "timer": "perf_counter",
            "min_rounds": len(data),
            "max_time": 0.0,
            "min_time": 0.0,
            "warmup": True,
        },
        "stats": _statistics(data),
    }


def _statistics(data: Sequence[float]) -> dict[str, Any]:
    """The fields of pytest-benchmark 5; fences by Tukey, as there."""
    mean, deviation = fmean(data), stdev(data) if len(data) > 1 else 0.0
    low, middle, high = (
        quantiles(data, n=4, method="inclusive") if len(data) > 1 else (data[0],) * 3
    )
    fence = 1.5 * (high - low)
    beyond = sum(abs(value - mean) > deviation for value in data)
    outside = sum(not low - fence <= value <= high + fence for value in data)
    return {
        "min": min(data),
        "max": max(data),
        "mean": mean,
        "stddev": deviation,
        "rounds": len(data),
        "median": middle,
        "iqr": high - low,
        "q1": low,
        "q3": high,
        "iqr_outliers": outside,
        "stddev_outliers": beyond,
        "outliers": f"{beyond};{outside}",
        "ld15iqr": min(value for value in data if value >= low - fence),
        "hd15iqr": max(value for value in data if value <= high + fence),
        "ops": 1 / mean if mean else math.inf,
        "total": math.fsum(data),
        "data": list(data),
        "iterations": 1,
    }


def _machine(environment: Environment) -> dict[str, Any]:
    hardware, software = environment.hardware, environment.software
    return {
        "machine": hardware.get("machine"),
        "system": software.get("system"),
        "python_version": software.get("python"),
        "cpu": {"brand_raw": hardware.get("cpu"), "count": hardware.get("usable_cpus")},
        "gpus": hardware.get("gpus"),
    }


def _commit(environment: Environment) -> dict[str, Any]:
    return {
        "id": environment.variables.get("git_commit", "unknown"),
        "time": None,
        "dirty": environment.variables.get("git_dirty") == "true",
        "branch": "unknown",
    }


def read(content: Any, suite: str) -> list[Result]:
    """A Result per benchmark, of the user's own measuring: its time is the median round."""
    machine = content["machine_info"]
    cpu = machine.get("cpu") or {}
    environment = Environment(
        software={"python": machine.get("python_version"), "system": machine.get("system")},
        hardware={
            "cpu": cpu.get("brand_raw"),
            "usable_cpus": cpu.get("count"),
            "machine": machine.get("machine"),
            "gpus": machine.get("gpus") or [],
        },
        variables={"git_commit": str(content["commit_info"].get("id"))},
    )
    return [_result(each, suite, environment) for each in content["benchmarks"]]


def _result(benchmark: Mapping[str, Any], suite: str, environment: Environment) -> Result:
    name, stats = str(benchmark["fullname"]), benchmark["stats"]
    samples = tuple(float(value) for value in stats.get("data") or ())
    measured = {
        TIME: Measurement(
            value=median(samples) if samples else float(stats["median"]), unit="s", samples=samples
        )
    }
    for key, value in benchmark.get("extra_info", {}).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            unit = "B" if key.endswith("_bytes") else "1"
            better = "more" if key.startswith("accuracy") else "less"
            measured[key] = Measurement.model_validate(
                {"value": value, "unit": unit, "better": better}
            )
    benchmarked = {"name": name, "params": benchmark.get("params")}
    return Result(
        suite=suite,
        trial=digest(benchmarked),
        label=name,
        model={},
        budget={},
        evaluate={},
        settings={},
        status="ok",
        measurements=measured,
        environment=environment,
        warnings=("Imported from pytest-benchmark.",),
    )
