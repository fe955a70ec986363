"""From a record to a device's memory: what kernels keep inside is added, then the allocator runs.

The record has what operations return. On a device some of them allocate more while they run, and
matrix products keep a workspace for good; both go in where the operation happens. The allocator
then sees every allocation and release of the trial in the order the host issues them, because what
it reserves depends on its history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tradebench.predict.allocator import AllocatorSettings, Usage, simulate, smallest_capacity
from tradebench.predict.figures import spans
from tradebench.predict.hidden import Buffer, hidden, persistent
from tradebench.predict.record import Integers, Record
from tradebench.predict.recorder import CALL
from tradebench.result import CATEGORIES, Phase

COLLECTIVE = CATEGORIES.index("communication")


@dataclass(frozen=True, kw_only=True)
class Tape:
    """What an allocator is asked for: blocks allocated (b) and released (~b), and their sizes.

    `streams` has the stream that each block is allocated on: collectives have one of their own.
    `windows` has the event with which each phase begins, by name; `places` the event that each of
    the record's comes to, and its end. `unverified` says what no device has confirmed.
    """

    events: Integers
    sizes: Integers
    streams: Integers
    windows: Mapping[Phase, int]
    places: Integers
    unverified: tuple[str, ...]

    def usages(self, settings: AllocatorSettings) -> dict[Phase, Usage]:
        """What every phase comes to."""
        simulated = simulate(
            self.events,
            self.sizes,
            windows=tuple(self.windows.values()),
            streams=self.streams,
            settings=settings,
        )
        return dict(zip(self.windows, simulated.windows, strict=True))

    def smallest_capacity(self, settings: AllocatorSettings) -> int:
        """The fewest bytes that segments may take without the program running out of memory."""
        return smallest_capacity(
            self.events,
            self.sizes,
            windows=tuple(self.windows.values()),
            streams=self.streams,
            settings=settings,
        )

    def until(self, end: int, window: int, settings: AllocatorSettings) -> Usage:
        """What it comes to from `window`, with which a phase may begin, to `end`."""
        starts = sorted({*(start for start in self.windows.values() if start < window), window})
        return simulate(
            self.events[:end],
            self.sizes,
            windows=starts,
            streams=self.streams,
            settings=settings,
        ).windows[-1]


def tape(record: Record, architecture: str) -> Tape:
    """The record's allocations with what an architecture's kernels add to them."""
    calls = np.flatnonzero(record.events >= CALL)
    kinds = record.events[calls] - CALL
    ends = _ends(record.events)
    added = _Added(len(record.sizes))
    # Autograd runs in a thread of its own, which has its own workspaces.
    backward = np.zeros(len(record.events), dtype=bool)
    for span in spans(record, "part"):
        backward[span.start : span.end] = span.name == "backward"
    workspaces: dict[tuple[str, bool], tuple[int, Buffer]] = {}
    for kind, operation in enumerate(record.operations):
        where = calls[kinds == kind]
        for buffer in hidden(operation, architecture):
            added.temporary(buffer, where, ends[where])
        for buffer in persistent(operation, architecture):
            for thread in (True, False):
                mine = where[backward[where] == thread]
                first, _ = workspaces.get((buffer.provenance, thread), (len(backward), buffer))
                if len(mine) and mine[0] < first:
                    workspaces[buffer.provenance, thread] = int(mine[0]), buffer
    for place, buffer in workspaces.values():
        added.lasting(buffer, place)
    events = np.insert(record.events, *added.entries())
    extra = added.blocks - len(record.sizes)
    places = added.before(len(record.events) + 1)
    places[1:] += np.cumsum(record.events < CALL)
    phases = {span.name: int(places[span.start]) for span in spans(record, "phase")}
    return Tape(
        events=events[events < CALL],
        sizes=np.concatenate([record.sizes, *added.sizes]),
        streams=np.concatenate([record.categories == COLLECTIVE, np.zeros(extra, dtype=bool)]) * 1,
        windows=phases,  # type: ignore[arg-type]  # the program's marks are phases
        places=places,
        unverified=tuple(added.unverified),
    )


def _ends(events: Integers) -> Integers:
    """For each event, the first one after it that allocates nothing: an operation's outputs end."""
    indices = np.arange(len(events) + 1)
    quiet = np.append((events < 0) | (events >= CALL), True)
    following = np.minimum.accumulate(np.where(quiet, indices, len(events))[::-1])[::-1]
    return following[1:]


class _Added:
    """Blocks that come and go with operations, and where in the record."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.sizes: list[Integers] = []
        self.unverified: dict[str, None] = {}
        # In the order in which entries at one and the same place must follow each other.
        self.made_after: list[tuple[Integers, Integers]] = []
        self.released: list[tuple[Integers, Integers]] = []
        self.made_before: list[tuple[Integers, Integers]] = []

    def temporary(self, buffer: Buffer, starts: Integers, ends: Integers) -> None:
        """A block for every one of these operations, released when it ends."""
        blocks = self.blocks + np.arange(len(starts))
        self.blocks += len(starts)
        self.sizes.append(np.full(len(starts), buffer.bytes, dtype=np.int64))
        if buffer.when == "before":
            self.made_before.append((starts, blocks))
        else:
            self.made_after.append((ends, blocks))
        self.released.append((ends, ~blocks))
        if not buffer.verified:
            self.unverified[buffer.provenance] = None

    def lasting(self, buffer: Buffer, place: int) -> None:
        """A block that the operation at this place makes and nobody releases."""
        self.made_before.append((np.array([place]), np.array([self.blocks])))
        self.blocks += 1
        self.sizes.append(np.array([buffer.bytes]))
        if not buffer.verified:
            self.unverified[buffer.provenance] = None

    def entries(self) -> tuple[Integers, Integers]:
        """Places in the record, and what goes there."""
        found = [*self.made_after, *self.released, *self.made_before]
        if not found:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        return np.concatenate([at for at, _ in found]), np.concatenate([what for _, what in found])

    def before(self, places: int) -> Integers:
        """How many entries come before what is at each of so many places."""
        every = np.arange(places)
        early = _joined([at for at, _ in (*self.made_after, *self.released)])
        late = _joined([at for at, _ in self.made_before])
        return np.searchsorted(early, every, "right") + np.searchsorted(late, every, "left")


def _joined(found: list[Integers]) -> Integers:
    """All these places, sorted."""
    return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)
