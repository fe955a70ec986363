"""The counters of torch's allocator on CUDA; a CPU has none, so that they stay at zero there."""

from __future__ import annotations

import gc
from typing import NamedTuple

import torch


class Counters(NamedTuple):
    """Bytes that are asked for, given and taken from the driver: now, and at most since `reset`."""

    requested: int = 0
    requested_peak: int = 0
    allocated: int = 0
    allocated_peak: int = 0
    reserved: int = 0
    reserved_peak: int = 0


def read(device: str) -> Counters:
    """What the counters say."""
    if device != "cuda":
        return Counters()
    stats = torch.cuda.memory_stats()
    return Counters(
        *(
            stats.get(f"{kind}_bytes.all.{when}", 0)
            for kind in ("requested", "allocated", "reserved")
            for when in ("current", "peak")
        )
    )


def clear(device: str) -> None:
    """Leave a device as a new process finds it, without what earlier trials have left there.

    cuBLAS keeps a workspace for every thread that has multiplied: 64 MiB, that the next trial in
    this process would be charged with before it has multiplied anything.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


def reset(device: str) -> None:
    """Let peaks begin anew with what is there now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
