"""The allocator's simulation: known facts, what must always hold, and a second, slow allocator.

`Slow` follows the same rules with none of the same code: a segment is a list of cells, everything
is found by looking at all of them, and nothing is kept that could be looked up.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.errors import UserError
from tradebench.predict import allocator
from tradebench.predict.allocator import (
    AllocatorSettings,
    DriverCall,
    Simulation,
    parse_settings,
    simulate,
    smallest_capacity,
)

KIB, MIB, GIB = 1024, 1024**2, 1024**3
DEFAULT = AllocatorSettings()
EXPANDABLE = AllocatorSettings(expandable_segments=True)
both = pytest.mark.parametrize("how", [DEFAULT, EXPANDABLE], ids=["default", "expandable"])


def held(*sizes: float, how: AllocatorSettings = DEFAULT, **more: Any) -> Simulation:
    """Blocks of so many MiB, requested one after the other and all kept."""
    requests = [math.ceil(size * MIB) for size in sizes]
    return simulate(range(len(sizes)), requests, settings=how, **more)


def mib(*sizes: int) -> list[int]:
    return [size * MIB for size in sizes]


def taken(run: Simulation) -> list[float]:
    """Bytes that each call took from the driver or, below zero, gave back; in MiB."""
    signs = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
    return [signs[call.action] * call.size / MIB for call in run.segments]


# Facts. Sizes are in MiB.


@pytest.mark.parametrize(
    ("requested", "how", "allocated", "reserved"),
    [
        (1 / MIB, DEFAULT, 512 / MIB, 2),
        (512 / MIB, DEFAULT, 512 / MIB, 2),
        (513 / MIB, DEFAULT, 1024 / MIB, 2),
        (1, DEFAULT, 1, 2),
        (1 + 1 / MIB, DEFAULT, 1 + 512 / MIB, 20),
        (10, DEFAULT, 10, 10),
        (10 - 1 / MIB, DEFAULT, 10, 10),
        (10 - 513 / MIB, DEFAULT, 10 - 512 / MIB, 20),
        (10 + 1 / MIB, DEFAULT, 10 + 512 / MIB, 12),
        (19.5, DEFAULT, 20, 20),
        (21, EXPANDABLE, 21, 40),
        (1 / MIB, EXPANDABLE, 512 / MIB, 2),
        (10, EXPANDABLE, 10, 20),
        (19.5, EXPANDABLE, 19.5, 20),
        (9, AllocatorSettings(large_segment_size=32 * MIB), 9, 32),
        (9, AllocatorSettings(large_segment_size=32 * MIB, expandable_segments=True), 9, 32),
    ],
)
def test_one_request_takes_what_is_known(
    requested: float, how: AllocatorSettings, allocated: float, reserved: float
) -> None:
    (usage,) = held(requested, how=how).windows

    assert usage.requested == round(requested * MIB)
    assert usage.allocated == usage.active == round(allocated * MIB)
    assert usage.reserved == reserved * MIB


def test_two_blocks_of_nine_share_a_segment_and_a_third_does_not() -> None:
    assert taken(held(9, 9)) == [20]
    assert taken(held(9, 9, 9)) == [20, 20]


def test_a_remainder_of_up_to_one_mib_stays_with_a_large_block() -> None:
    assert held(11).windows[0].allocated == 12 * MIB
    assert held(11 - 512 / MIB).windows[0].allocated == 11 * MIB - 512


def test_an_expandable_segment_is_cut_to_the_last_512_bytes() -> None:
    assert taken(held(19.5, 0.5 + 1, how=EXPANDABLE)) == [20, 20]
    assert held(19.5, 0.5 + 1, how=EXPANDABLE).windows[0].allocated == 21 * MIB


def test_small_blocks_have_segments_of_their_own() -> None:
    assert taken(held(0.5, 5, 0.5, 0.5, 0.5)) == [2, 20]
    assert taken(held(0.5, 5, 1, 1, how=EXPANDABLE)) == [2, 20, 2]


def test_the_free_end_of_an_expandable_segment_is_used_before_it_grows() -> None:
    assert taken(held(15, 24, how=EXPANDABLE)) == [20, 20]
    assert taken(held(15, 26, how=EXPANDABLE)) == [20, 40]


def test_the_end_that_can_grow_is_spared_where_another_block_fits() -> None:
    # The hole of 12 is the better place for 4, although the end has 5.
    events = [0, 1, 2, ~1, 3, 4]
    sizes = [8 * MIB, 12 * MIB, 15 * MIB, 4 * MIB, 25 * MIB]

    assert taken(simulate(events, sizes, settings=EXPANDABLE)) == [20, 20, 20]


def test_the_smallest_block_that_fits_is_taken() -> None:
    events = [0, 1, 2, ~0, ~1, ~2, 3, 4, 5]

    assert taken(simulate(events, mib(40, 20, 30, 30, 20, 40))) == [40, 20, 30]
    assert taken(simulate(events, mib(40, 20, 30, 20, 31, 40))) == [40, 20, 30, 40]


def test_of_equal_blocks_the_one_in_the_oldest_segment_is_taken() -> None:
    # Two blocks of 14: behind the 6 that stay, and a segment of its own, which can be given back in
    # the end unless it is the one that is cut for the 12.
    events, sizes = [0, 1, 2, ~1, ~2, 3], mib(6, 14, 14, 12)
    later_first = [0, 1, 2, ~2, ~1, 3]

    assert taken(simulate(events, sizes, windows=(0, 6))) == [20, 14, -14]
    assert taken(simulate(later_first, sizes, windows=(0, 6))) == [20, 14, -14]
    # Also where it was cut and put together again.
    anew = [0, 1, 2, ~1, ~2, 3, ~3, 4]
    assert taken(simulate(anew, [*sizes, 12 * MIB], windows=(0, 8))) == [20, 14, -14]


def test_of_equal_blocks_in_an_expandable_segment_the_one_made_first_is_taken() -> None:
    # Of the two free 20 the first is a page of its own, the second lies across two.
    events, sizes = [0, 1, 2, 3, ~0, ~2, 4], mib(20, 5, 20, 15, 5)

    assert taken(simulate(events, sizes, settings=EXPANDABLE, windows=(0, 7))) == [20, 20, 20]
    run = simulate(events[:6], sizes, settings=EXPANDABLE, windows=(0, 6))
    assert taken(run) == [20, 20, 20, -20]


def test_blocks_are_reused_on_their_own_stream_only() -> None:
    events, sizes = [0, ~0, 1], [30 * MIB, 30 * MIB]

    assert taken(simulate(events, sizes, streams=[0, 0])) == [30]
    run = simulate(events, sizes, streams=[0, 7])
    assert taken(run) == [30, 30]
    assert [call.stream for call in run.segments] == [0, 7]


def test_nothing_requested_takes_nothing() -> None:
    run = simulate([0, ~0, 1], [0, 0])

    assert (run.segments, run.failed) == ((), None)
    assert run.windows[0].reserved == 0
    assert simulate([], []).windows[0].allocated == 0
    assert smallest_capacity([0], [0]) == 0


def test_arrays_mean_what_lists_mean() -> None:
    events, sizes, streams = [0, 1, ~0, 2], [5 * MIB, 30 * MIB, 4 * MIB], [0, 1, 0]
    arrays = [np.array(numbers, dtype=np.int64) for numbers in (events, sizes, streams)]
    run = simulate(arrays[0], arrays[1], streams=arrays[2])

    assert run == simulate(events, sizes, streams=streams)
    assert {type(call.size) for call in run.segments} == {int}


# Rounding to steps between powers of two.


@pytest.mark.parametrize(
    ("size", "divisions", "expected"),
    [
        (1200 * KIB, 4, 1280 * KIB),  # torch's own example, a thousand times larger
        (1024 * KIB, 4, 1024 * KIB),
        (1025 * KIB, 4, 1280 * KIB),
        (1793 * KIB, 4, 2048 * KIB),
        (1200, 4, 1536),  # not above 512 * 4, so up to the next 512
        (2049, 4, 2560),
        (3 * MIB, 1, 3 * MIB),
    ],
)
def test_sizes_are_rounded_to_equal_steps_between_powers_of_two(
    size: int, divisions: int, expected: int
) -> None:
    how = AllocatorSettings(expandable_segments=True, roundup_power2_divisions=divisions)

    assert simulate([0], [size], settings=how).windows[0].allocated == expected


# Windows.


def test_a_window_begins_with_an_empty_cache_and_new_peaks() -> None:
    events = [0, 1, ~0, 2, ~2]
    run = simulate(events, [40 * MIB, 30 * MIB, 5 * MIB], windows=(0, 3, len(events)))
    load, train, end = run.windows

    assert (load.requested, load.reserved) == (70 * MIB, 70 * MIB)
    assert (train.requested, train.reserved) == (35 * MIB, 50 * MIB)
    assert (end.requested, end.reserved) == (30 * MIB, 30 * MIB)
    assert run.segments == (
        DriverCall("segment_alloc", 40 * MIB, 0, 0),
        DriverCall("segment_alloc", 30 * MIB, 0, 1),
        DriverCall("segment_free", 40 * MIB, 0, 3),
        DriverCall("segment_alloc", 20 * MIB, 0, 3),
        DriverCall("segment_free", 20 * MIB, 0, 5),
    )


def test_a_segment_in_use_at_one_end_is_given_back_in_whole_pages_only() -> None:
    events, sizes = [0, 1, ~0], [50 * MIB, 5 * MIB]
    run = simulate(events, sizes, settings=EXPANDABLE, windows=(0, 3))

    # Pages 0 and 1 lie within the free 50 MiB; page 2 is shared with the block of 5.
    assert taken(run) == [60, -40]
    assert taken(simulate(events, [20 * MIB, 0], windows=(0, 3))) == [20, -20]


def test_pages_given_back_are_the_first_to_be_taken_again() -> None:
    events, sizes = [0, 1, ~0, 2], [50 * MIB, 5 * MIB, 49 * MIB]
    run = simulate(events, sizes, settings=EXPANDABLE, windows=(0, 3))

    assert taken(run) == [60, -40, 40]
    assert run.windows[1].reserved == 60 * MIB


# Where memory ends.


def test_the_cache_is_flushed_before_a_request_fails() -> None:
    run = simulate([0, ~0, 1], [40 * MIB, 50 * MIB], capacity=60 * MIB)

    assert taken(run) == [40, -40, 50]
    assert run.windows[0].retries == 1
    assert run.failed is None


@both
def test_a_failure_tells_what_was_asked_for_and_what_was_held(how: AllocatorSettings) -> None:
    events, sizes = [0, 1, ~0, 2, 3], mib(40, 5, 100, 1)
    run = simulate(events, sizes, windows=(0, 2, 4), settings=how, capacity=80 * MIB)

    assert run.failed is not None
    assert (run.failed.event, run.failed.requested) == (3, 100 * MIB)
    assert (run.failed.allocated, run.failed.reserved) == (5 * MIB, 20 * MIB)
    assert len(run.windows) == 2
    assert run.windows[1].retries == 1


def test_a_failure_halfway_keeps_the_pages_that_were_mapped() -> None:
    # The hole of 20 before the block in use can be filled, what lies behind it cannot.
    events, sizes = [0, 1, ~0, 2], [20 * MIB, 20 * MIB, 41 * MIB]
    run = simulate(events, sizes, settings=EXPANDABLE, windows=(0, 3), capacity=60 * MIB)

    assert run.failed is not None
    assert taken(run) == [20, 20, -20]


def test_a_cap_of_the_process_is_held_against_whole_segments() -> None:
    sizes = (15, 21)
    own = AllocatorSettings(expandable_segments=True, capped=True)

    # 16 of the 21 are missing: one page. The cap is held against the 22 of a whole segment.
    assert held(*sizes, how=EXPANDABLE, capacity=40 * MIB).failed is None
    assert held(*sizes, how=own, capacity=40 * MIB).failed is not None
    assert held(*sizes, how=own, capacity=42 * MIB).failed is None


def test_a_cap_may_suffice_for_more_than_it_says() -> None:
    own = AllocatorSettings(expandable_segments=True, capped=True)

    # The 21 are held against the cap as 22 but take two pages, so that the 18 cost nothing.
    assert smallest_capacity([0, 1], mib(21, 18), settings=own) == 22 * MIB
    assert smallest_capacity([0, 1], mib(21, 18), settings=EXPANDABLE) == 40 * MIB


# Oversize blocks and garbage.


def test_an_oversize_block_is_neither_cut_nor_given_to_a_small_request() -> None:
    how = AllocatorSettings(max_split_size=32 * MIB)
    events = [0, ~0, 1]

    assert taken(simulate(events, [64 * MIB, 8 * MIB], settings=how)) == [64, 20]
    assert taken(simulate(events, [64 * MIB, 45 * MIB], settings=how)) == [64]
    assert taken(simulate(events, [64 * MIB, 44 * MIB], settings=how)) == [64, 44]
    assert simulate(events, [64 * MIB, 45 * MIB], settings=how).windows[0].allocated == 64 * MIB
    assert simulate([0, ~0, 1, 2], mib(50, 32, 15), settings=how).windows[0].reserved == 66 * MIB


def test_only_as_many_oversize_blocks_are_given_back_as_are_needed() -> None:
    how = AllocatorSettings(max_split_size=32 * MIB)
    events, sizes = [0, 1, 2, ~0, ~1, ~2, 3], [64 * MIB, 40 * MIB, 90 * MIB, 120 * MIB]
    run = simulate(events, sizes, settings=how, capacity=200 * MIB)

    assert taken(run) == [64, 40, 90, -90, -64, 120]
    assert run.windows[0].retries == 0
    one = simulate(events, [*sizes[:3], 41 * MIB], settings=how, capacity=200 * MIB)
    assert taken(one) == [64, 40, 90, -64, 42]
    two = simulate(events, mib(60, 60, 40, 120), settings=how, capacity=170 * MIB)
    assert taken(two) == [60, 60, 40, -60, -60, 120]


def test_garbage_is_collected_above_the_threshold_oldest_first() -> None:
    how = AllocatorSettings(garbage_collection_threshold=0.5, capped=True)
    # The 30 are used again, by 3, after the 40 were last.
    events, sizes = [0, 1, 2, ~0, ~1, 3, ~3, 4], mib(30, 40, 10, 25, 50)

    assert taken(simulate(events, sizes, settings=how, capacity=140 * MIB)) == [30, 40, 10, -40, 50]
    assert taken(simulate(events, sizes, settings=how, capacity=160 * MIB)) == [30, 40, 10, 50]
    assert taken(simulate(events, sizes, capacity=140 * MIB)) == [30, 40, 10, 50]


def test_a_blocks_age_counts_the_large_requests_of_all_streams() -> None:
    how = AllocatorSettings(garbage_collection_threshold=0.5, capped=True)
    events = [0, 1, 2, 3, ~1, 4, ~2, 5, 6, 7, ~3, 8]
    sizes = [1, *mib(30, 40, 60, 10), 1, 1, 1, 70 * MIB]
    streams = [0, 0, 0, 0, 1, 0, 0, 0, 0]
    run = simulate(events, sizes, streams=streams, settings=how, capacity=280 * MIB)

    # Ages are 2, 1 and 1. Were small requests counted they would be 5, 4 and 1, and two would go.
    assert taken(run) == [2, 30, 40, 60, 10, -30, 70]


# Mistakes of the caller.


@pytest.mark.parametrize(
    ("events", "windows", "sentence"),
    [
        ([0, 0], (0,), "event 1 requests block 0"),
        ([~0], (0,), "event 0 releases block 0"),
        ([0, ~0, ~0], (0,), "event 2 releases block 0"),
        ([0], (1,), "must rise from 0"),
        ([0], (), "must rise from 0"),
        ([0, ~0], (0, 2, 1), "must rise from 0"),
        ([0], (0, 2), "at most 1"),
    ],
)
def test_what_cannot_have_happened_is_refused(
    events: list[int], windows: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        simulate(events, [MIB], windows=windows)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        simulate([0], [-1])


# Settings.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", DEFAULT),
        ("expandable_segments:True", EXPANDABLE),
        (" expandable_segments : False ,", DEFAULT),
        (
            "max_split_size_mb:64,garbage_collection_threshold:0.8",
            AllocatorSettings(max_split_size=64 * MIB, garbage_collection_threshold=0.8),
        ),
        (
            "large_segment_size_mb:15,max_split_size_mb:15,max_non_split_rounding_mb:40",
            AllocatorSettings(
                large_segment_size=15 * MIB,
                max_split_size=15 * MIB,
                max_non_split_rounding=40 * MIB,
            ),
        ),
        ("roundup_power2_divisions:8", AllocatorSettings(roundup_power2_divisions=8)),
        ("backend:native,pinned_use_background_threads:True", DEFAULT),
    ],
)
def test_settings_are_read_as_torch_writes_them(text: str, expected: AllocatorSettings) -> None:
    assert parse_settings(text) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("expandable_segments:true", "must be True or False: true"),
        ("expandable_segments", "must be True or False"),
        ("max_split_size_mb:big", "must be a number of MiB: big"),
        ("max_split_size_mb:19", "max_split_size_mb must be at least 20"),
        ("max_non_split_rounding_mb:5", "max_non_split_rounding_mb must be at least 20"),
        ("large_segment_size_mb:10", "must be a number of MiB above 10: 10"),
        ("garbage_collection_threshold:1", r"must be in \(0, 1\): 1"),
        ("roundup_power2_divisions:3", "must be one power of 2: 3"),
        ("roundup_power2_divisions:[256:1,512:2]", "must be one power of 2"),
        ("backend:cudaMallocAsync", "backend:cudaMallocAsync is not simulated"),
        ("per_process_memory_fraction:0.5", "not simulated; known are expandable_segments"),
    ],
)
def test_settings_that_are_not_understood_are_a_users_mistake(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_settings(text)


# Random programs, against the slow allocator.


@dataclass
class Cell:
    """A stretch of a segment; its state is used, free or void (no memory behind it)."""

    size: int
    state: str
    number: int


@dataclass
class Slow:
    """The allocator once more: cells in lists, all of them looked at each time.

    Segments lie in the order in which they were made and cells by address, and sorting by size
    leaves those of one size so.
    """

    how: AllocatorSettings
    capacity: int
    lists: dict[tuple[bool, int], list[list[Cell]]] = field(default_factory=dict)
    made: int = 0
    retries: int = 0
    when: int = 0
    searched: int = 0
    freed_at: dict[int, int] = field(default_factory=dict)  # by number: the searches until then
    calls: list[DriverCall] = field(default_factory=list)

    def cell(self, size: int, state: str) -> Cell:
        self.made += 1
        return Cell(size, state, self.made)

    def reserved(self) -> int:
        segments = [segment for some in self.lists.values() for segment in some]
        cells = [cell for segment in segments for cell in segment]
        return sum(cell.size for cell in cells if cell.state != "void")

    def round(self, size: int) -> int:
        divisions = self.how.roundup_power2_divisions
        if divisions > 1 and size > 512 * divisions:
            floor = round(2.0 ** math.floor(math.log2(size)))
            steps = [floor + step * floor // divisions for step in range(divisions + 1)]
            return min(step for step in steps if step >= size)
        return max(512, math.ceil(size / 512) * 512)

    def page(self, key: tuple[bool, int]) -> int:
        return 2 * MIB if key[0] else self.how.large_segment_size

    def tidy(self, segment: list[Cell], kept: Cell) -> None:
        """Merge neighbours that are alike; `kept` is the one that stays of its run."""
        runs: list[list[Cell]] = []
        for cell in segment:
            if runs and cell.state != "used" and runs[-1][-1].state == cell.state:
                runs[-1].append(cell)
            else:
                runs.append([cell])
        segment.clear()
        for run in runs:
            stays = kept if any(cell is kept for cell in run) else run[0]
            stays.size = sum(cell.size for cell in run)
            segment.append(stays)

    def free(self, segment: list[Cell], cell: Cell) -> None:
        cell.state = "free"
        self.freed_at[cell.number] = self.searched
        self.tidy(segment, cell)

    def call(self, action: Any, size: int, stream: int) -> None:
        self.calls.append(DriverCall(action, size, stream, self.when))

    def allocate(self, stream: int, size: int) -> tuple[list[Cell], Cell] | None:
        key = (size <= MIB, stream)
        segments = self.lists.setdefault(key, [])
        self.searched += not key[0]
        spot = self.fit(segments, size)
        if spot is None:
            self.collect()
            spot = self.grow(key, size)
        if spot is None and self.release_oversize(key, size):
            spot = self.grow(key, size)
        if spot is None:
            self.release()
            self.retries += 1
            spot = self.grow(key, size)
        if spot is None:
            return None
        segment, cell = spot
        rest = cell.size - size
        largest = math.inf if self.how.expandable_segments else self.oversize()
        fine = key[0] or self.how.expandable_segments
        cell.state = "used"
        if rest >= 512 if fine else (rest > MIB and size < largest):
            front = self.cell(size, "used")
            segment.insert(segment.index(cell), front)
            cell.size, cell.state = rest, "free"
            self.freed_at[cell.number] = self.searched
            cell = front
        return segment, cell

    def oversize(self) -> float:
        return math.inf if self.how.max_split_size is None else self.how.max_split_size

    def reach(self, segment: list[Cell], cell: Cell) -> int:
        after = segment[segment.index(cell) + 1 :][:1]
        return cell.size + sum(near.size for near in after if near.state == "void")

    def fit(self, segments: list[list[Cell]], size: int) -> tuple[list[Cell], Cell] | None:
        spots = [
            (segment, cell)
            for segment in segments
            for cell in segment
            if cell.state == "free" and cell.size >= size
        ]
        spots.sort(key=lambda spot: spot[1].size)
        if self.how.expandable_segments:
            while len(spots) > 1 and self.reach(*spots[1]) < self.reach(*spots[0]):
                del spots[0]
        if not spots:
            return None
        found, limit = spots[0][1].size, self.oversize()
        if size < limit <= found:
            return None
        if size >= limit and found >= size + self.how.max_non_split_rounding:
            return None
        return spots[0]

    def grow(self, key: tuple[bool, int], size: int) -> tuple[list[Cell], Cell] | None:
        own = math.ceil(size / (2 * MIB)) * 2 * MIB
        fresh = 2 * MIB if key[0] else self.how.large_segment_size if size < 10 * MIB else own
        over = self.reserved() + fresh > self.capacity
        if not self.how.expandable_segments:
            if over:
                return None
            self.call("segment_alloc", fresh, key[1])
            segment = [self.cell(fresh, "used")]
            self.lists[key].append(segment)
            return segment, segment[0]
        return None if self.how.capped and over else self.expand(key, size)

    def expand(self, key: tuple[bool, int], size: int) -> tuple[list[Cell], Cell] | None:
        if not self.lists[key]:
            self.lists[key].append([self.cell(2**60 // self.page(key) * self.page(key), "void")])
        (segment,) = self.lists[key]
        first = self.room(segment, size)
        while True:
            cell = segment[first]
            if cell.state == "free" and cell.size >= size:
                cell.state = "used"
                return segment, cell
            missing = size - (cell.size if cell.state == "free" else 0)
            void = cell if cell.state == "void" else segment[first + 1]
            pages = math.ceil(min(missing, void.size) / self.page(key)) * self.page(key)
            if not self.how.capped and self.reserved() + pages > self.capacity:
                return None
            self.call("segment_map", pages, key[1])
            rest = void.size - pages
            void.size = pages
            if rest:
                segment.insert(segment.index(void) + 1, self.cell(rest, "void"))
            self.free(segment, void)

    def room(self, segment: list[Cell], size: int) -> int:
        """The first place, beginning at or just before void, from where `size` is not in use."""
        for index in range(len(segment)):
            states = [near.state for near in segment[index : index + 2]]
            begins = states[0] == "void" or states == ["free", "void"]
            used = [near.state == "used" for near in segment[index:]]
            open_cells = segment[index:][: used.index(True)] if True in used else segment[index:]
            if begins and sum(near.size for near in open_cells) >= size:
                return index
        raise AssertionError("the end of a segment has room for everything")

    def release(self) -> None:
        for key in sorted(self.lists):
            free = [
                (segment, cell)
                for segment in self.lists[key]
                for cell in segment
                if cell.state == "free"
            ]
            for segment, cell in sorted(free, key=lambda spot: spot[1].size):
                if self.how.expandable_segments:
                    self.unmap(key, segment, cell)
                elif len(segment) == 1:
                    self.give_back(key, segment)

    def give_back(self, key: tuple[bool, int], segment: list[Cell]) -> None:
        self.call("segment_free", segment[0].size, key[1])
        self.lists[key] = [other for other in self.lists[key] if other is not segment]

    def unmap(self, key: tuple[bool, int], segment: list[Cell], cell: Cell) -> None:
        at, page = segment.index(cell), self.page(key)
        begin = sum(near.size for near in segment[:at])
        inside = [
            number
            for number in range(begin // page, (begin + cell.size) // page + 1)
            if begin <= number * page and (number + 1) * page <= begin + cell.size
        ]
        if not inside:
            return
        size, cell.size = cell.size, len(inside) * page
        ends = [inside[0] * page - begin, begin + size - (inside[-1] + 1) * page]
        for offset, end in zip((0, 1), ends, strict=True):
            if end:
                piece = self.cell(end, "free")
                self.freed_at[piece.number] = self.searched
                segment.insert(segment.index(cell) + offset, piece)
        cell.state = "void"
        self.tidy(segment, cell)
        self.call("segment_unmap", len(inside) * page, key[1])

    def release_oversize(self, key: tuple[bool, int], size: int) -> bool:
        if self.how.max_split_size is None or self.how.expandable_segments:
            return False
        needed, given = max(size, self.how.max_split_size), 0
        large = sorted(
            (
                segment
                for segment in self.lists[key]
                if segment[0].state == "free" and segment[0].size >= self.how.max_split_size
            ),
            key=lambda segment: segment[0].size,
        )
        for segment in [one for one in large if one[0].size >= needed][:1] or large[::-1]:
            if given < needed:
                given += segment[0].size
                self.give_back(key, segment)
        return given >= needed

    def collect(self) -> None:
        threshold = int(self.how.garbage_collection_threshold * self.capacity)
        while self.how.capped and 0 < threshold < self.reserved():
            whole = [
                (key, segment, self.searched - self.freed_at[segment[0].number])
                for key in sorted(self.lists)
                for segment in sorted(self.lists[key], key=lambda segment: segment[0].size)
                if not key[0] and len(segment) == 1 and segment[0].state == "free"
            ]
            if not whole:
                return
            mean = sum(age for _, _, age in whole) / len(whole)
            for key, segment, age in whole:
                if age >= mean:
                    self.give_back(key, segment)


@dataclass(frozen=True)
class Program:
    events: list[int]
    sizes: list[int]
    streams: list[int]


SIZES = [
    *(1, 512, 513, 100 * KIB, 700 * KIB, MIB, MIB + 1, 3 * MIB // 2, 5 * MIB, 9 * MIB),
    *(10 * MIB - 512, 10 * MIB, 10 * MIB + 1, 14 * MIB, 19 * MIB + 7, 20 * MIB, 21 * MIB),
    *(33 * MIB, 40 * MIB, 58 * MIB, 70 * MIB + 3, 0),
]


def program(seed: int, count: int, streams: int) -> Program:
    """So many events: living blocks are released at random, and others requested."""
    source = random.Random(seed)
    events: list[int] = []
    sizes: list[int] = []
    alive: list[int] = []
    for _ in range(count):
        if alive and source.random() < 0.5:
            events.append(~alive.pop(source.randrange(len(alive))))
        else:
            alive.append(len(sizes))
            events.append(len(sizes))
            sizes.append(source.choice(SIZES))
    return Program(events, sizes, [source.randrange(streams) for _ in sizes])


programs = st.builds(program, st.integers(0, 2**32), st.integers(1, 80), st.sampled_from([1, 2]))
WAYS = {
    "default": DEFAULT,
    "expandable": EXPANDABLE,
    "oversize": AllocatorSettings(max_split_size=20 * MIB),
    "oversize expandable": AllocatorSettings(max_split_size=20 * MIB, expandable_segments=True),
    "capped": AllocatorSettings(capped=True),
    "capped expandable": AllocatorSettings(capped=True, expandable_segments=True),
    "garbage": AllocatorSettings(capped=True, garbage_collection_threshold=0.3),
    "divisions": AllocatorSettings(roundup_power2_divisions=4),
    "large": AllocatorSettings(large_segment_size=28 * MIB, expandable_segments=True),
}
every_way = pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
random_programs = settings(derandomize=True, max_examples=100, deadline=None)


def slowly(
    some: Program, how: AllocatorSettings, capacity: int, windows: Sequence[int]
) -> Iterator[tuple[int, int, int, int, list[DriverCall]]]:
    """After each event: bytes requested, allocated and reserved, retries, calls; until it fails."""
    slow = Slow(how, capacity)
    living: dict[int, tuple[list[Cell], Cell]] = {}
    for index, event in enumerate(some.events):
        slow.when = index
        if index in windows:
            slow.release()
            slow.retries = 0
        if event >= 0 and some.sizes[event]:
            spot = slow.allocate(some.streams[event], slow.round(some.sizes[event]))
            if spot is None:
                break
            living[event] = spot
        elif event < 0 and some.sizes[~event]:
            slow.free(*living.pop(~event))
        requested = sum(some.sizes[block] for block in living)
        allocated = sum(cell.size for _, cell in living.values())
        yield requested, allocated, slow.reserved(), slow.retries, list(slow.calls)


@every_way
@random_programs
@given(
    some=programs,
    capacity=st.sampled_from([None, 50 * MIB, 90 * MIB, 150 * MIB]),
    split=st.integers(0, 60),
)
def test_every_event_is_met_as_by_the_slow_allocator(
    some: Program, capacity: int | None, split: int, how: AllocatorSettings
) -> None:
    windows = (0, min(split, len(some.events)))
    states = list(slowly(some, how, capacity or 2**62, windows))
    for count in range(1, len(some.events) + 1):
        run = simulate(
            some.events[:count],
            some.sizes,
            windows=[start for start in windows if start < count],
            streams=some.streams,
            settings=how,
            capacity=capacity,
        )
        if count > len(states):
            assert run.failed is not None
            assert run.failed.event == len(states)
            return
        start = max(start for start in windows if start < count)
        *now, retries, calls = states[count - 1]
        before = list(states[start - 1][:2]) if start else [0, 0]
        peaks = [run.windows[-1].requested, run.windows[-1].allocated]

        assert run.failed is None
        assert peaks == [
            max([before[kind], *(state[kind] for state in states[start:count])])
            for kind in range(2)
        ]
        assert run.windows[-1].reserved >= now[2]
        assert run.windows[-1].retries == retries
        assert list(run.segments) == calls


# What always holds.


def replay(run: Simulation) -> list[int]:
    """Reserved bytes after each call to the driver."""
    return list(accumulate(round(size * MIB) for size in taken(run)))


@every_way
@random_programs
@given(some=programs)
def test_each_peak_holds_the_one_before_and_nothing_is_left_in_the_end(
    some: Program, how: AllocatorSettings
) -> None:
    alive = [block for block in range(len(some.sizes)) if ~block not in some.events]
    events = [*some.events, *(~block for block in alive)]
    run = simulate(events, some.sizes, streams=some.streams, settings=how, windows=(0, len(events)))
    usage, left = run.windows
    requested = np.cumsum([some.sizes[e] if e >= 0 else -some.sizes[~e] for e in events])

    assert usage.requested == requested.max(initial=0)
    assert usage.requested <= usage.allocated <= usage.reserved == max([0, *replay(run)])
    assert (left.requested, left.allocated, left.reserved) == (0, 0, 0)
    assert min([0, *replay(run)]) == 0


@every_way
@random_programs
@given(some=programs)
def test_segments_are_tiled_by_blocks_with_no_two_free_ones_in_a_row(
    some: Program, how: AllocatorSettings
) -> None:
    state = allocator._Allocator(how, 10 * GIB)
    living: dict[int, Any] = {}
    for index, event in enumerate(some.events):
        if index % 10 == 0:
            state.begin(index)
        block = max(event, ~event)
        size = Slow(how, 0).round(some.sizes[block])
        pool = state.pool(some.streams[block], size)
        if event >= 0:
            living[block] = state.allocate(pool, size, index)
        else:
            state.release(living.pop(block))
        assert_sound(state, list(living.values()))


def assert_sound(state: Any, living: list[Any]) -> None:
    """Walk through every segment that a block in use or a free one lies in."""
    pools = list(state._pools.values())
    known = [*living, *(entry[2] for pool in pools for entry in pool.free)]
    seen: dict[int, Any] = {}
    mapped = 0
    for block in known:
        while block.before is not None:
            block = block.before
        if id(block) not in seen:
            mapped += sum(each.size for each in chain(block) if each.mapped)
            seen.update((id(each), each) for each in chain(block))
    assert mapped == state.reserved
    assert {id(block) for block in living}.isdisjoint(
        id(block) for block in seen.values() if block.free or not block.mapped
    )
    for pool in pools:
        assert pool.free == sorted(pool.free, key=lambda entry: entry[:2])
        assert [entry[:2] for entry in pool.free] == [(e[2].size, e[2].start) for e in pool.free]
        assert {id(entry[2]) for entry in pool.free} == {
            id(block) for block in seen.values() if block.free and block.pool is pool
        }
        starts = [(block.start, block.size) for block in seen.values() if block.pool is pool]
        assert all(a + size <= b for (a, size), (b, _) in pairwise(sorted(starts)))


def chain(block: Any) -> Iterator[Any]:
    """The blocks of a segment from its first; neighbours touch and differ."""
    while block is not None:
        after = block.after
        if after is not None:
            assert after.before is block
            assert block.start + block.size == after.start
            assert not (block.free and after.free)
            assert block.mapped or after.mapped
        yield block
        block = after


@both
@random_programs
@given(some=programs)
def test_the_reserved_peak_is_enough_and_less_than_is_requested_never_is(
    some: Program, how: AllocatorSettings
) -> None:
    def run(capacity: int | None) -> Simulation:
        return simulate(
            some.events, some.sizes, streams=some.streams, settings=how, capacity=capacity
        )

    usage = run(None).windows[0]
    enough = run(usage.reserved)

    assert (enough.failed, enough.windows[0].retries) == (None, 0)
    assert not usage.requested or run(usage.requested - 1).failed is not None


@every_way
@settings(derandomize=True, max_examples=40, deadline=None)
@given(some=programs)
def test_with_one_step_less_than_the_smallest_capacity_a_program_fails(
    some: Program, how: AllocatorSettings
) -> None:
    windows = (0, len(some.events) // 2)

    def fails(capacity: int) -> bool:
        run = simulate(
            some.events,
            some.sizes,
            windows=windows,
            streams=some.streams,
            settings=how,
            capacity=capacity,
        )
        assert how.capped or max([0, *replay(run)]) <= capacity
        return run.failed is not None

    least = smallest_capacity(
        some.events, some.sizes, windows=windows, streams=some.streams, settings=how
    )

    assert least % (2 * MIB) == 0
    assert not fails(least)
    assert not least or fails(least - 2 * MIB)
