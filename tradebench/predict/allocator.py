"""The caching allocator of torch on CUDA, simulated: from what a program asks for to what it takes.

A program that asks for 60 GiB may need 65 or 80 GiB of device memory, because torch takes memory
from the driver in segments, cuts blocks out of them, and keeps a segment for as long as a block of
it is in use. How much that is depends on every request and release since the start, in order, so
there is no formula: the same decisions are taken again, on numbers instead of memory.

The rules were read in torch's `c10/cuda/CUDACachingAllocator.cpp`, in a version that has
`throw_on_cudamalloc_oom` (pull request 179473) as torch 2.13 does; the constants are in the headers
of 2.13 (`c10/core/AllocatorConfig.h`). Of free blocks of one size, that of the oldest segment is
given out, and in a segment the one with the lowest address (pull request 183591); older versions
go by address alone, which is the same where one expandable segment holds all blocks of a pool.
What torch 2.11 did on an H200 is replayed call by call in `tests/gpu/test_traces.py`.

What is left out, because no program of ours does it: private pools (CUDA graphs), blocks whose
release waits for another stream (`record_stream`), and switching settings on the way. An expandable
segment's address space has no end here; torch reserves 9/8 of the device's memory.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tradebench.errors import UserError

Integers = Sequence[int] | NDArray[np.int64]

MIB = 1024**2
SMALLEST_BLOCK = 512
SMALL_REQUEST = MIB  # the largest request that is served from the pool of small blocks
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
OWN_SEGMENT = 10 * MIB  # from here on, a request gets a segment of its own size,
SEGMENT_STEP = 2 * MIB  # rounded up to this; it is also the smallest page of the driver
ENDLESS = sys.maxsize


@dataclass(frozen=True, kw_only=True)
class AllocatorSettings:
    """What `PYTORCH_ALLOC_CONF` can say, with torch's defaults; sizes in bytes.

    `capped` says what a capacity is: a limit that the process set itself, with
    `torch.cuda.set_per_process_memory_fraction`, so that torch refuses before it asks the driver
    and collects garbage at a share of it; otherwise all that the driver has to give.
    """

    expandable_segments: bool = False
    max_split_size: int | None = None
    max_non_split_rounding: int = LARGE_SEGMENT
    large_segment_size: int = LARGE_SEGMENT
    garbage_collection_threshold: float = 0.0
    roundup_power2_divisions: int = 0
    capped: bool = False


DEFAULT_SETTINGS = AllocatorSettings()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The peaks of one window, in bytes, and how often the cache was flushed to go on.

    `requested` counts what was asked for, `allocated` the blocks that were given for it, `reserved`
    the segments that hold them. Each is at least what the window began with.
    """

    requested: int
    allocated: int
    reserved: int
    retries: int

    @property
    def active(self) -> int:
        """Bytes of blocks not yet reusable: those allocated, as no release has to wait here."""
        return self.allocated


class DriverCall(NamedTuple):
    """One call to the driver, by the name that torch's memory history has for it.

    `event` is the index of the event that led to it, `size` the bytes taken or given back.
    """

    action: Literal["segment_alloc", "segment_free", "segment_map", "segment_unmap"]
    size: int
    stream: int
    event: int


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The request that could not be met, and what was in the way, in bytes.

    `allocated` is what blocks in use took, `reserved` the segments that the flush had to leave.
    """

    event: int
    requested: int
    allocated: int
    reserved: int


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A run of a program's memory.

    `windows` has one Usage per window, up to the one that failed; `segments` every call to the
    driver, in order, for comparison with a history that torch recorded on a device.
    """

    windows: tuple[Usage, ...]
    segments: tuple[DriverCall, ...]
    failed: Failure | None


def parse_settings(text: str) -> AllocatorSettings:
    """Settings as `PYTORCH_ALLOC_CONF` has them: `expandable_segments:True,max_split_size_mb:64`.

    Sizes are in MiB there. Settings that change nothing here (pinned memory, locks, graphs) are
    passed over. Names and limits are those of torch 2.13.

    Raises:
        UserError: a setting is unknown, is not simulated, or has a value that torch refuses.
    """
    found: dict[str, bool | int | float] = {}
    for part in "".join(text.split()).split(","):
        name, _, value = part.partition(":")
        if name in _SETTINGS:
            field, read, expected = _SETTINGS[name]
            try:
                found[field] = read(value)
            except ValueError as error:
                raise UserError(f"allocator setting {name} must be {expected}: {value}") from error
        elif part and part != "backend:native" and not name.startswith(_WITHOUT_EFFECT):
            raise UserError(
                f"allocator setting {part} is not simulated; known are {', '.join(_SETTINGS)}"
            )
    settings = AllocatorSettings(**found)  # type: ignore[arg-type]  # each reader gives its field's
    for field in ("max_split_size", "max_non_split_rounding"):
        if found.get(field, ENDLESS) < settings.large_segment_size:
            least = settings.large_segment_size // MIB
            raise UserError(f"allocator setting {field}_mb must be at least {least}")
    return settings


def _read_switch(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(text)
    return text == "True"


def _read_size(text: str) -> int:
    return int(text) * MIB


def _read_segment(text: str) -> int:
    if _read_size(text) <= OWN_SEGMENT:
        raise ValueError(text)
    return _read_size(text)


def _read_share(text: str) -> float:
    if not 0 < float(text) < 1:
        raise ValueError(text)
    return float(text)


def _read_divisions(text: str) -> int:
    if int(text).bit_count() != 1:
        raise ValueError(text)
    return int(text)


# Of each setting its field, its reader, and what it must be.
_SETTINGS: dict[str, tuple[str, Callable[[str], bool | int | float], str]] = {
    "expandable_segments": ("expandable_segments", _read_switch, "True or False"),
    "max_split_size_mb": ("max_split_size", _read_size, "a number of MiB"),
    "max_non_split_rounding_mb": ("max_non_split_rounding", _read_size, "a number of MiB"),
    "large_segment_size_mb": ("large_segment_size", _read_segment, "a number of MiB above 10"),
    "garbage_collection_threshold": ("garbage_collection_threshold", _read_share, "in (0, 1)"),
    "roundup_power2_divisions": ("roundup_power2_divisions", _read_divisions, "one power of 2"),
}
_WITHOUT_EFFECT = ("pinned_", "release_lock_on_", "graph_capture_")


def simulate(
    events: Integers,
    sizes: Integers,
    *,
    windows: Integers = (0,),
    streams: Integers | None = None,
    settings: AllocatorSettings = DEFAULT_SETTINGS,
    capacity: int | None = None,
    addresses: Integers | None = None,
) -> Simulation:
    """Run a program's requests and releases through the allocator, from its first to its last.

    Where the capacity does not suffice, not even with an empty cache, the run ends as failed.

    Args:
        events: what happens, in the order in which the program does it: `b` requests block `b`,
            `~b` releases it. A block may be requested again once it is released.
        sizes: requested bytes per block. A block of no bytes takes no memory.
        windows: indices of events, the first of them 0. At each, before the event, the program
            waits for the device, empties the cache (`torch.cuda.empty_cache`) and resets the peaks.
            One that is `len(events)` shows what is left in the end.
        streams: the stream that requests each block; without it all share one.
        settings: how the allocator is set up.
        capacity: bytes that segments may take altogether; without it as many as they want.
        addresses: where the driver puts each segment that cannot grow, in the order of its calls;
            without them each lies behind those before it, which is how torch 2.13 looks at them.

    Raises:
        ValueError: windows out of order, a negative size, or a block that is requested while it is
            held or released while it is not.
    """
    steps, requests = _plain(events), _plain(sizes)
    edges = [*_plain(windows), len(steps)]
    if len(edges) < 2 or edges[0] != 0 or any(start > end for start, end in pairwise(edges)):
        raise ValueError(f"windows must rise from 0 to at most {len(steps)}: {list(windows)}")
    places = () if addresses is None else _plain(addresses)
    allocator = _Allocator(settings, ENDLESS if capacity is None else capacity, places)
    of_streams = [0] * len(requests) if streams is None else _plain(streams)
    program = _Program(allocator, requests, of_streams)
    usages: list[Usage] = []
    failed: Failure | None = None
    for start, end in pairwise(edges):
        usage, failed = program.run(steps, start, end)
        usages.append(usage)
        if failed is not None:
            break
    return Simulation(windows=tuple(usages), segments=tuple(allocator.calls), failed=failed)


def smallest_capacity(
    events: Integers,
    sizes: Integers,
    *,
    windows: Integers = (0,),
    streams: Integers | None = None,
    settings: AllocatorSettings = DEFAULT_SETTINGS,
) -> int:
    """The least capacity, in whole steps of 2 MiB, with which a program runs to its end.

    Found by halving, between what is requested at the peak and what is reserved where memory has no
    end. One step less fails. That still less would run again is conceivable, as an earlier flush
    of the cache may leave other holes, but nothing to build on.

    Raises:
        ValueError: as `simulate`.
    """
    steps, requests = _plain(events), _plain(sizes)

    def run(capacity: int | None) -> Simulation:
        return simulate(
            steps, requests, windows=windows, streams=streams, settings=settings, capacity=capacity
        )

    endless = run(None).windows
    # In steps: the first is too few, as it is less than what is in use at once; the second is what
    # is taken where nothing is in the way.
    few = (max(usage.requested for usage in endless) - 1) // SEGMENT_STEP
    enough = -(-max(usage.reserved for usage in endless) // SEGMENT_STEP)
    if settings.capped:
        # torch holds its own cap against more, or less, than it then takes.
        few = min(few, 0)
        while run(enough * SEGMENT_STEP).failed is not None:
            few, enough = enough, 2 * enough
    while enough - few > 1:
        middle = (few + enough) // 2
        if run(middle * SEGMENT_STEP).failed is None:
            enough = middle
        else:
            few = middle
    return enough * SEGMENT_STEP


def _plain(numbers: Integers) -> list[int]:
    """The numbers as Python's own, which are faster one by one than numpy's."""
    plain: list[int] = np.asarray(numbers, dtype=np.int64).tolist()
    return plain


def _block_size(size: int, divisions: int) -> int:
    """What a request is rounded up to: 512 bytes, or one of the steps between powers of two."""
    step = SMALLEST_BLOCK
    if divisions > 1 and size > SMALLEST_BLOCK * divisions:
        step = 2 ** (size.bit_length() - 1) // divisions
    return -(-size // step) * step


class _Program:
    """A program's blocks: what was asked for each, and which of them it holds."""

    def __init__(self, allocator: _Allocator, sizes: list[int], streams: list[int]) -> None:
        if min(sizes, default=0) < 0:
            raise ValueError(f"a block cannot have {min(sizes)} bytes")
        divisions = allocator.settings.roundup_power2_divisions
        rounded = {size: _block_size(size, divisions) for size in set(sizes)}
        self.allocator = allocator
        self.sizes = sizes
        self.rounded = [rounded[size] for size in sizes]
        self.pools = [
            allocator.pool(stream, size) for stream, size in zip(streams, self.rounded, strict=True)
        ]
        self.held: list[_Block | None] = [None] * len(sizes)
        self.requested = 0
        self.allocated = 0

    def run(self, events: list[int], start: int, end: int) -> tuple[Usage, Failure | None]:
        """Follow the events of one window, up to the first request that cannot be met."""
        # Everything that an event touches is a local here: there are millions of events.
        sizes, rounded, pools, held = self.sizes, self.rounded, self.pools, self.held
        allocate, release = self.allocator.allocate, self.allocator.release
        self.allocator.begin(start)
        requested = requested_peak = self.requested
        allocated = allocated_peak = self.allocated
        failed = None
        for index in range(start, end):
            event = events[index]
            if event >= 0:
                if held[event] is not None:
                    raise ValueError(f"event {index} requests block {event}, which is held")
                if not rounded[event]:
                    continue
                block = allocate(pools[event], rounded[event], index)
                if block is None:
                    failed = Failure(
                        event=index,
                        requested=sizes[event],
                        allocated=allocated,
                        reserved=self.allocator.reserved,
                    )
                    break
                held[event] = block
                requested += sizes[event]
                if requested > requested_peak:
                    requested_peak = requested
                allocated += block.size
                if allocated > allocated_peak:
                    allocated_peak = allocated
            else:
                event = ~event
                block = held[event]
                if block is not None:
                    held[event] = None
                    requested -= sizes[event]
                    allocated -= block.size
                    release(block)
                elif rounded[event]:
                    raise ValueError(f"event {index} releases block {event}, which is not held")
        self.requested, self.allocated = requested, allocated
        usage = Usage(
            requested=requested_peak,
            allocated=allocated_peak,
            reserved=self.allocator.peak,
            retries=self.allocator.retries,
        )
        return usage, failed


class _Block:
    """A stretch of a segment: in use, free to be given out, or without memory behind it.

    `start` counts in the address space of its pool; `before` and `after` are its neighbours in the
    segment; `born` is when it became free, in searches.
    """

    __slots__ = ("after", "before", "born", "free", "mapped", "pool", "size", "start")

    def __init__(self, pool: _Pool, start: int, size: int) -> None:
        self.pool = pool
        self.start = start
        self.size = size
        self.before: _Block | None = None
        self.after: _Block | None = None
        self.free = False
        self.mapped = True
        self.born = 0


class _Pool:
    """The blocks of one stream that can be given out, either the small or the large ones.

    `free` is sorted by size and address, `unmapped` (stretches of an expandable segment without
    memory) by address. A block is cut where at least `least` bytes are left over; an expandable
    segment grows by whole pages.
    """

    __slots__ = ("end", "free", "least", "page", "small", "stream", "unmapped")

    def __init__(self, stream: int, small: bool, settings: AllocatorSettings) -> None:
        self.stream = stream
        self.small = small
        self.page = SMALL_SEGMENT if small else settings.large_segment_size
        to_the_last = small or settings.expandable_segments
        self.least = SMALLEST_BLOCK if to_the_last else SMALL_REQUEST + 1
        self.free: list[tuple[int, int, _Block]] = []
        self.unmapped: list[_Block] = []
        self.end = 0  # where the next segment starts


class _Allocator:
    """The state of one device's allocator."""

    def __init__(
        self, settings: AllocatorSettings, capacity: int, addresses: Iterable[int] = ()
    ) -> None:
        self.settings = settings
        self.capacity = capacity
        self.reserved = 0
        self.peak = 0
        self.retries = 0
        self.calls: list[DriverCall] = []
        self._pools: dict[tuple[bool, int], _Pool] = {}
        self._event = 0
        self._addresses = iter(addresses)
        self._searches = 0  # of the large pools, counted only where garbage is collected
        self._oversize = ENDLESS if settings.max_split_size is None else settings.max_split_size
        self._cut_below = ENDLESS if settings.expandable_segments else self._oversize
        self._collects = settings.capped and settings.garbage_collection_threshold > 0
        # The best fit is then simply the smallest block that is large enough.
        self._simple = not (
            settings.expandable_segments or settings.max_split_size is not None or self._collects
        )

    def pool(self, stream: int, size: int) -> _Pool:
        """Where a block of this size is looked for."""
        key = (size <= SMALL_REQUEST, stream)
        if key not in self._pools:
            self._pools[key] = _Pool(stream, key[0], self.settings)
        return self._pools[key]

    def begin(self, event: int) -> None:
        """Empty the cache and start the peaks anew."""
        self._event = event
        self._release_cached()
        self.peak = self.reserved
        self.retries = 0

    def allocate(self, pool: _Pool, size: int, event: int) -> _Block | None:
        """A block of at least this size, or None where there is no memory left for it."""
        free = pool.free
        at = bisect_left(free, (size,)) if self._simple else self._search(pool, size)
        if at < len(free):
            block = free.pop(at)[2]
            block.free = False
        else:
            self._event = event
            found = self._obtain(pool, size)
            if found is None:
                return None
            block = found
        rest = block.size - size
        if rest < pool.least or size >= self._cut_below:
            return block
        # The front is given out as a new block; what is left stays the old one.
        front = _Block(pool, block.start, size)
        _link(block.before, front)
        _link(front, block)
        block.start += size
        block.size = rest
        block.free = True
        insort(free, (rest, block.start, block))
        return front

    def release(self, block: _Block) -> None:
        """Make a block free, as one with its free neighbours."""
        free = block.pool.free
        before, after = block.before, block.after
        if before is not None and before.free:
            del free[bisect_left(free, (before.size, before.start))]
            block.start = before.start
            block.size += before.size
            _link(before.before, block)
        if after is not None and after.free:
            del free[bisect_left(free, (after.size, after.start))]
            block.size += after.size
            _link(block, after.after)
        block.free = True
        block.born = self._searches
        insort(free, (block.size, block.start, block))

    def _search(self, pool: _Pool, size: int) -> int:
        """Where in the pool the best fit lies; its length where nothing fits."""
        free = pool.free
        if self._collects and not pool.small:
            self._searches += 1
        at = bisect_left(free, (size,))
        if at == len(free):
            return at
        if self.settings.expandable_segments:
            # The end of a segment can grow, so it counts as large and is spared for large requests.
            while at + 1 < len(free) and _reach(free[at + 1][2]) < _reach(free[at][2]):
                at += 1
        found = free[at][0]
        # Oversize blocks are never cut, so they serve requests of nearly their size only.
        if size < self._oversize:
            fits = found < self._oversize
        else:
            fits = found < size + self.settings.max_non_split_rounding
        return at if fits else len(free)

    def _obtain(self, pool: _Pool, size: int) -> _Block | None:
        """Memory from the driver, if need be after giving back what is cached."""
        if self._collects:
            self._collect_garbage()
        block = self._grow(pool, size)
        if block is None and self._release_oversize(pool, size):
            block = self._grow(pool, size)
        if block is None:
            self._release_cached()
            self.retries += 1
            block = self._grow(pool, size)
        return block

    def _grow(self, pool: _Pool, size: int) -> _Block | None:
        """A new segment, or a longer one, with a block of at least this size."""
        segment = pool.page if size < OWN_SEGMENT else -(-size // SEGMENT_STEP) * SEGMENT_STEP
        expandable = self.settings.expandable_segments
        # The driver looks at pages; a cap is held against the segment that would have been needed.
        if (self.settings.capped or not expandable) and self.reserved + segment > self.capacity:
            return None
        if expandable:
            return self._expand(pool, size)
        self._take("segment_alloc", pool, segment)
        start = next(self._addresses, pool.end)
        pool.end = start + segment
        return _Block(pool, start, segment)

    def _expand(self, pool: _Pool, size: int) -> _Block | None:
        """Put memory behind the first stretch of free or unmapped addresses that is long enough."""
        block = self._room(pool, size)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            unmapped = block.after
            assert unmapped is not None, "the room was measured"
            if not self._map(unmapped, min(size - block.size, unmapped.size)):
                return None
            block = unmapped  # it has swallowed what lies before it
        del pool.free[bisect_left(pool.free, (block.size, block.start))]
        block.free = False
        return block

    def _room(self, pool: _Pool, size: int) -> _Block:
        """The block with which such a stretch begins."""
        for unmapped in pool.unmapped:
            before = unmapped.before
            first = before if before is not None and before.free else unmapped
            room = 0
            block: _Block | None = first
            while block is not None and room < size and (block.free or not block.mapped):
                room += block.size
                block = block.after
            if room >= size:
                return first
        endless = _Block(pool, 0, ENDLESS // pool.page * pool.page)
        endless.mapped = False
        pool.unmapped.append(endless)
        return endless

    def _map(self, block: _Block, size: int) -> bool:
        """Put whole pages behind the start of an unmapped block, which becomes free."""
        pool = block.pool
        mapped = -(-size // pool.page) * pool.page
        if not self.settings.capped and self.reserved + mapped > self.capacity:
            return False
        at = pool.unmapped.index(block)
        del pool.unmapped[at]
        if mapped < block.size:
            rest = _Block(pool, block.start + mapped, block.size - mapped)
            rest.mapped = False
            _link(rest, block.after)
            _link(block, rest)
            pool.unmapped.insert(at, rest)
            block.size = mapped
        block.mapped = True
        self.release(block)
        self._take("segment_map", pool, mapped)
        return True

    def _unmap(self, block: _Block) -> None:
        """Give the whole pages of a free block back; its ends stay free."""
        pool = block.pool
        start = -(-block.start // pool.page) * pool.page
        end = (block.start + block.size) // pool.page * pool.page
        if start >= end:
            return
        del pool.free[bisect_left(pool.free, (block.size, block.start))]
        if start > block.start:
            self._cut_off(block, block.start, start)
        if end < block.start + block.size:
            self._cut_off(block, end, block.start + block.size)
        block.start, block.size = start, end - start
        block.free = block.mapped = False
        before, after = block.before, block.after
        if before is not None and not before.mapped:
            pool.unmapped.remove(before)
            block.start = before.start
            block.size += before.size
            _link(before.before, block)
        if after is not None and not after.mapped:
            pool.unmapped.remove(after)
            block.size += after.size
            _link(block, after.after)
        insort(pool.unmapped, block, key=_start)
        self._give("segment_unmap", pool, end - start)

    def _cut_off(self, block: _Block, start: int, end: int) -> None:
        """Make one end of a block a free block of its own."""
        piece = _Block(block.pool, start, end - start)
        if start == block.start:
            _link(block.before, piece)
            _link(piece, block)
        else:
            _link(piece, block.after)
            _link(block, piece)
        piece.free = True
        insort(block.pool.free, (piece.size, piece.start, piece))

    def _release_cached(self) -> None:
        """Give back every segment that is free as a whole, and every free page."""
        for key in sorted(self._pools):  # the large blocks of all streams, then the small ones
            for _, _, block in [*self._pools[key].free]:
                if self.settings.expandable_segments:
                    self._unmap(block)
                elif _is_whole(block):
                    self._return(block)

    def _release_oversize(self, pool: _Pool, size: int) -> bool:
        """Give back just enough oversize blocks for this request; whether that was enough."""
        if self.settings.max_split_size is None or self.settings.expandable_segments:
            return False
        free = pool.free
        at = bisect_left(free, (size,))
        if at < len(free):
            self._return(free[at][2])
            return True
        released = 0
        while released < size and free and free[-1][0] >= self._oversize:
            released += free[-1][0]
            self._return(free[-1][2])
        return released >= size

    def _collect_garbage(self) -> None:
        """Give back large segments that were not used for long, until enough is free again."""
        share = self.settings.garbage_collection_threshold
        excess = self.reserved - int(share * self.capacity)
        whole = [
            block
            for key in sorted(self._pools)
            for _, _, block in self._pools[key].free
            if not key[0] and _is_whole(block)
        ]
        while excess > 0 and whole:
            ages = [self._searches - block.born for block in whole]
            mean = sum(ages) / len(ages)
            for block, age in zip(whole, ages, strict=True):
                if age >= mean:
                    excess -= block.size
                    self._return(block)
            whole = [block for block, age in zip(whole, ages, strict=True) if age < mean]

    def _return(self, block: _Block) -> None:
        """Give a whole segment back."""
        pool = block.pool
        del pool.free[bisect_left(pool.free, (block.size, block.start))]
        self._give("segment_free", pool, block.size)

    def _take(
        self, action: Literal["segment_alloc", "segment_map"], pool: _Pool, size: int
    ) -> None:
        self.reserved += size
        self.peak = max(self.peak, self.reserved)
        self.calls.append(DriverCall(action, size, pool.stream, self._event))

    def _give(
        self, action: Literal["segment_free", "segment_unmap"], pool: _Pool, size: int
    ) -> None:
        self.reserved -= size
        self.calls.append(DriverCall(action, size, pool.stream, self._event))


def _link(before: _Block | None, after: _Block | None) -> None:
    """Make two blocks neighbours; None is the end of a segment."""
    if before is not None:
        before.after = after
    if after is not None:
        after.before = before


def _is_whole(block: _Block) -> bool:
    """Whether a block fills its segment."""
    return block.before is None and block.after is None


def _reach(block: _Block) -> int:
    """The size that a block can grow to."""
    after = block.after
    return block.size if after is None or after.mapped else block.size + after.size


def _start(block: _Block) -> int:
    return block.start
