"""Training reports of optimum-benchmark, with the throughput that they ought to have.

Its throughput is the work of all steps over the time of one, and so too high by the number of
steps (`Throughput.from_latency`, 0.6.0), and the mean over processes where it is their sum; it is
computed again, from total work and total time. Its memory is summed over devices, which says
nothing of the peak of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from tradebench.exchange.flat import label
from tradebench.result import Environment, Measurement, Result, digest

MEGABYTE = 10**6
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
# Its counter to ours: what CUDA's allocator has handed out and reserved, and what NVML sees.
PEAKS = {
    "peak_allocated_bytes": "max_allocated",
    "peak_reserved_bytes": "max_reserved",
    "peak_process_bytes": "max_process_vram",
}
PEAK = (
    "Its peak is one number for warm-up and training together, and on a CPU that of the whole "
    "process with all its libraries."
)


def read(content: Any, suite: str) -> list[Result]:
    """The one Result of a training report.

    Raises:
        ValueError: the report is of another scenario.
    """
    config, report = content["config"], content["report"]
    scenario, backend = config["scenario"], config["backend"]
    if scenario["name"] != "training":
        raise ValueError(f"it reports on {scenario['name']}, and only training is read")
    arguments, shapes = scenario["training_arguments"], scenario["dataset_shapes"]
    settings = _settings(backend)
    batch = int(arguments["per_device_train_batch_size"])
    accumulation = int(arguments["gradient_accumulation_steps"])
    payload = {
        "model": {"name": backend["model"], "revision": None, "config": None, "weights": "hub"},
        "budget": {
            "steps": scenario["max_steps"],
            "warmup": scenario["warmup_steps"],
            "batch": batch,
            "sequence": shapes["sequence_length"],
            "accumulation": accumulation,
            "seed": backend["seed"],
            "data": "random",
        },
        "evaluate": {},
        "settings": settings,
    }
    train = report["train"]
    times = [float(value) for value in train["latency"]["values"]]
    # The steps of every process are in one list.
    processes, devices = _spread(config.get("launcher") or {}, backend)
    work, seconds = batch * accumulation * len(times), math.fsum(times) / processes
    measured = {
        "step_seconds": Measurement(value=fmean(times), unit="s", samples=tuple(times)),
        "tokens_per_second": Measurement(
            value=work * int(shapes["sequence_length"]) / seconds,
            unit="1/s",
            better="more",
        ),
        **(_peaks(train["memory"]) if devices == 1 else {}),
    }
    told = float(train["throughput"]["value"])
    return [
        Result.model_validate(
            {
                "suite": suite,
                "trial": digest(payload),
                "label": label(settings),
                **payload,
                "status": "ok",
                "measurements": measured,
                "warnings": (
                    f"Imported from optimum-benchmark. It says {told:.4g} samples/s; "
                    f"{work} samples in {seconds:.4g} s are {work / seconds:.4g}.",
                    PEAK
                    if devices == 1
                    else f"Its memory, a sum over {devices} devices, is left out.",
                ),
                "environment": _environment(config["environment"], backend),
            }
        )
    ]


def _spread(launcher: Mapping[str, Any], backend: Mapping[str, Any]) -> tuple[int, int]:
    """How many processes trained, and on how many devices."""
    processes = int(launcher.get("nproc_per_node") or 1)
    return processes, max(processes, len(str(backend.get("device_ids") or "0").split(",")))


def _settings(backend: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    dtype = DTYPES.get(str(backend.get("torch_dtype")))
    if dtype is not None:
        found["precision"] = {"method": dtype}
    if backend.get("quantization_scheme"):
        found["quantization"] = {"method": str(backend["quantization_scheme"]).lower()}
    if backend.get("peft_type"):
        fields = backend.get("peft_config") or {}
        rank = {"rank": fields["r"]} if "r" in fields else {}
        found["adapters"] = {"method": str(backend["peft_type"]).lower(), **rank}
    return found


def _peaks(memory: Mapping[str, Any]) -> dict[str, Measurement]:
    found = {
        ours: Measurement(value=round(memory[theirs] * MEGABYTE), unit="B")
        for ours, theirs in PEAKS.items()
        if memory.get(theirs) is not None
    }
    if not found and memory.get("max_ram") is not None:
        value = round(memory["max_ram"] * MEGABYTE)
        found["peak_process_bytes"] = Measurement(value=value, unit="B")
    return found


def _environment(told: Mapping[str, Any], backend: Mapping[str, Any]) -> Environment:
    packages = {
        name.removesuffix("_version"): version
        for name, version in told.items()
        if name.endswith("_version") and version is not None
    }
    gpus = told.get("gpu") or []
    return Environment(
        software={**packages, "torch": backend.get("version"), "system": told.get("system")},
        hardware={
            "cpu": str(told.get("cpu") or "").strip(),
            "usable_cpus": told.get("cpu_count"),
            "machine": told.get("machine"),
            "gpus": [{"name": name} for name in (gpus if isinstance(gpus, list) else [gpus])],
        },
    )
