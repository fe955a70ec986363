"""Traces: what torch's caching allocator does on a device, call by call, to replay elsewhere.

torch's memory history has every request, every release and every call to the driver, in order. All
that a replay needs is kept: which block comes and goes, how large it is, on which stream, and what
the driver was asked for meanwhile. A simulator that decides as torch does makes the same calls.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from gpu import counters
from gpu.program import Silent, once
from gpu.rungs import BF16, RECOMPUTED, Settings
from gpu.section import Bench
from tradebench import reference
from tradebench.environment import capture, variables
from tradebench.predict.recorder import CALL, Recorder
from tradebench.result import Outcome
from tradebench.trial import Trial

SCHEMA = "tradebench.trace/1"
DRIVER = ("segment_alloc", "segment_free", "segment_map", "segment_unmap")
RELEASES = ("segment_free", "segment_unmap")

LORA: Settings = {"adapters": {"method": "lora", "rank": 16}}
TRAININGS: tuple[Settings, ...] = ({**BF16, **LORA}, {**BF16, **RECOMPUTED})

# Blocks that come and go without any pattern: what no training does, a replay still must.
DRAWS, HELD = 2000, 100
SMALLEST, LARGEST = 1, 96 * 2**20


def run(bench: Bench, name: str) -> None:
    """Two trainings and a random program, with the history on; `name` says which allocator."""
    if bench.device == "cuda":
        # Before the first allocation, so that no block is released that nobody saw made.
        torch.cuda.memory._record_memory_history(context=None, max_entries=10**6)
        programs(bench)
        found = strip(torch.cuda.memory._snapshot()["device_traces"][0])
    else:
        recorder = Recorder("cpu")
        with recorder:
            programs(bench)
        found = strip(entries(recorder))
    peaks = counters.read(bench.device)
    environment = capture()
    bench.pack(
        f"traces/{name}",
        {
            "schema": SCHEMA,
            "settings": os.environ.get("PYTORCH_ALLOC_CONF", ""),
            "peaks": {
                "requested": peaks.requested_peak,
                "allocated": peaks.allocated_peak,
                "reserved": peaks.reserved_peak,
            },
            "software": dict(environment.software),
            "gpus": environment.hardware["gpus"],
            "variables": variables(os.environ),
            **found,
        },
    )


def programs(bench: Bench) -> None:
    """Everything that is recorded, with an empty cache after each."""
    for settings in TRAININGS:
        once(training(settings, tiny=bench.tiny), bench.device, Silent(), Outcome())
        _empty(bench.device)
    scatter(bench.device, DRAWS // 50 if bench.tiny else DRAWS)
    _empty(bench.device)


def training(settings: Settings, *, tiny: bool) -> Trial:
    """Two steps of a model of about a billion parameters."""
    config = str(reference.CHECKPOINT) if tiny else "llama-3.2-1b"
    model = {"name": config, "config": config, "weights": "random", "layers": 2 if tiny else 12}
    budget = {"steps": 2, "warmup": 0, "sequence": 32 if tiny else 1024, "data": "random"}
    return Trial.from_payload(
        {"model": model, "budget": budget, "evaluate": {}, "settings": settings}
    )


def scatter(device: str, draws: int) -> None:
    """Hold blocks of random sizes for random times; small ones are as likely as large ones."""
    source, held = random.Random(0), list[torch.Tensor]()
    for _ in range(draws):
        if len(held) == HELD or (held and source.random() < 0.45):
            held.pop(source.randrange(len(held)))
        else:
            size = SMALLEST * (LARGEST / SMALLEST) ** source.random()
            held.append(torch.empty(round(size), dtype=torch.uint8, device=device))


def _empty(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def entries(recorder: Recorder) -> Iterator[dict[str, Any]]:
    """What a recorder saw, as torch's history would have it: a CPU asks no driver for segments."""
    for event in recorder.events:
        if event < 0:
            yield {"action": "free_completed", "addr": ~event, "size": 0, "stream": 0}
        elif event < CALL:
            size = recorder.sizes[event]
            yield {"action": "alloc", "addr": event, "size": size, "stream": 0}


def strip(history: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A memory history as `simulate` takes it, with the calls to the driver that it led to.

    `events` has b where block b is requested and ~b where it is released; `sizes` and `streams`
    have one entry per block; `windows` the events ahead of which the cache was emptied, and 0;
    `calls` the driver's: action, bytes, stream, and the event that led to it. `addresses` says
    where the driver put each new segment, counted from the lowest.
    """
    events, sizes, streams = list[int](), list[int](), list[int]()
    calls, windows, places = list[list[str | int]](), [0], list[int]()
    alive, numbers = dict[int, int](), dict[int, int]()
    for entry in history:
        action = entry["action"]
        if action == "alloc":
            alive[entry["addr"]] = len(sizes)
            events.append(len(sizes))
            sizes.append(entry["size"])
            streams.append(numbers.setdefault(entry["stream"], len(numbers)))
        elif action == "free_completed":
            events.append(~alive.pop(entry["addr"]))
        elif action in DRIVER:
            if action in RELEASES and windows[-1] != len(events):
                windows.append(len(events))
            stream = numbers.setdefault(entry["stream"], len(numbers))
            calls.append([action, entry["size"], stream, len(events)])
            if action == "segment_alloc":
                places.append(entry["addr"])
    return {
        "events": events,
        "sizes": sizes,
        "streams": streams,
        "windows": windows,
        "calls": calls,
        "addresses": [place - min(places) for place in places],
    }
