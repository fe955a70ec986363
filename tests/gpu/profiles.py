"""Where a step's time goes, by operation: what the device was busy with, and what the host did.

A step that is predicted too fast is either made of slower kernels than was thought or of more of
them than a host can issue; the profiler tells which.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu import counters
from gpu.program import Silent, once
from gpu.section import Bench
from gpu.techniques import trials
from tradebench.result import Outcome
from tradebench.runner.refusal import refuse

# Of the techniques, a plain step to compare with and those whose steps are made of many small
# operations.
NAMES = (
    "precision-bf16",
    "precision-fp8",
    "quantization-qat",
    "quantization-rtn",
    "quantization-int8",
    "quantization-torchao_int8",
    "pruning-semi_structured",
    "adapters-dora",
    "adapters-loftq",
    "optimizer-torchao_adamw8bit",
)
LAST = 2  # the step that is watched: the first one compiles and loads


class Watched(Silent):
    """Profiles one step."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.steps = 0
        self.seconds = 0.0
        self.operations: list[dict[str, Any]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Only the last is watched, from when the device is idle until it is again."""
        self.steps += 1
        if self.steps < LAST:
            yield
            return
        kinds = [ProfilerActivity.CPU]
        if self.device == "cuda":
            kinds.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize()
        with profile(activities=kinds) as profiler:
            begun = time.perf_counter()
            yield
            if self.device == "cuda":
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - begun
        self.operations = [
            {
                "name": each.key,
                "calls": each.count,
                "device_seconds": each.self_device_time_total / 1e6,
                "host_seconds": each.self_cpu_time_total / 1e6,
            }
            for each in profiler.key_averages()
        ]


def run(bench: Bench, name: str) -> None:
    """Watch a step of each, and write them down as they come."""
    found: dict[str, Any] = {}
    for technique, trial in trials(tiny=bench.tiny):
        if technique not in NAMES or refuse(trial):
            continue
        counters.clear(bench.device)
        watched = Watched(bench.device)
        short = trial.model_copy(
            update={"budget": trial.budget.model_copy(update={"steps": LAST, "warmup": 1})}
        )
        once(short, bench.device, watched, Outcome())
        found[technique] = {
            "label": trial.label,
            "seconds": watched.seconds,
            "device_seconds": sum(each["device_seconds"] for each in watched.operations),
            "operations": sorted(
                watched.operations, key=lambda each: -each["device_seconds"] - each["host_seconds"]
            ),
        }
        bench.pack("profiles", {"schema": "tradebench.profiles/1", "steps": found})
