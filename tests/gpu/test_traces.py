"""Traces: a memory history stripped, and every committed one replayed call by call."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from gpu.run import OUT
from gpu.traces import RELEASES, strip
from tradebench.predict.allocator import Simulation, parse_settings, simulate

MIB = 2**20
TRACES = sorted((OUT / "traces").glob("*.json.gz"))


def entry(action: str, address: int, size: int, stream: int = 0) -> dict[str, Any]:
    return {"action": action, "addr": address, "size": size, "stream": stream, "frames": []}


# As torch writes it: a segment is there before the block that it was made for.
HISTORY = [
    entry("segment_alloc", 0, 2 * MIB, 77),
    entry("alloc", 0, 1000, 77),
    entry("segment_alloc", 900 * MIB, 20 * MIB, 99),
    entry("alloc", 900 * MIB, 3 * MIB, 99),
    entry("free_requested", 0, 1000, 77),
    entry("free_completed", 0, 1000, 77),
    entry("alloc", 0, 500, 77),
    {"action": "snapshot", "size": 0, "stream": 0},
    entry("free_completed", 900 * MIB, 3 * MIB, 99),
    entry("segment_free", 900 * MIB, 20 * MIB, 99),
    entry("free_completed", 0, 500, 77),
    entry("segment_free", 0, 2 * MIB, 77),
]


def test_a_history_is_stripped_to_what_a_replay_needs() -> None:
    assert strip(HISTORY) == {
        "events": [0, 1, ~0, 2, ~1, ~2],
        "sizes": [1000, 3 * MIB, 500],
        "streams": [0, 1, 0],
        "windows": [0, 5, 6],
        "calls": [
            ["segment_alloc", 2 * MIB, 0, 0],
            ["segment_alloc", 20 * MIB, 1, 1],
            ["segment_free", 20 * MIB, 1, 5],
            ["segment_free", 2 * MIB, 0, 6],
        ],
        "addresses": [0, 900 * MIB],
    }


def test_what_is_stripped_replays_to_the_same_calls() -> None:
    trace = strip(HISTORY)

    assert differences(trace, replay({**trace, "settings": ""})) == []


def test_a_replay_under_another_allocator_makes_other_calls() -> None:
    trace = strip(HISTORY)

    assert differences(trace, replay({**trace, "settings": "expandable_segments:True"})) != []


def replay(trace: dict[str, Any]) -> Simulation:
    return simulate(
        trace["events"],
        trace["sizes"],
        windows=trace["windows"],
        streams=trace["streams"],
        settings=parse_settings(trace["settings"]),
        addresses=trace.get("addresses"),
    )


def differences(trace: dict[str, Any], simulation: Simulation) -> list[str]:
    """The first calls to the driver that differ; in which order an emptied cache goes is free."""
    real = list(_in_order([tuple(call) for call in trace["calls"]]))
    ours = list(_in_order([tuple(call) for call in simulation.segments]))
    pairs = enumerate(zip(real, ours, strict=False))
    found = [f"call {at}: {one}, simulated {other}" for at, (one, other) in pairs if one != other]
    if len(real) != len(ours):
        found.append(f"{len(real)} calls, simulated {len(ours)}")
    return found[:5]


def _in_order(calls: list[tuple[Any, ...]]) -> Iterator[Any]:
    for (releases, event), group in groupby(calls, lambda call: (call[0] in RELEASES, call[3])):
        if releases:
            yield event, Counter(call[:3] for call in group)
        else:
            yield from group


@pytest.mark.skipif(not TRACES, reason="no trace of a device is committed")
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name)
def test_the_simulator_makes_the_calls_that_torch_made(path: Path) -> None:
    trace = json.loads(gzip.decompress(path.read_bytes()))
    simulation = replay(trace)
    windows = simulation.windows

    assert differences(trace, simulation) == []
    assert trace["peaks"] == {
        "requested": max(usage.requested for usage in windows),
        "allocated": max(usage.allocated for usage in windows),
        "reserved": max(usage.reserved for usage in windows),
    }
