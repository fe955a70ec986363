"""A record: what one trial allocates, releases and computes, from loading to its last evaluation.

Recorded in the fake world, so a config is all it takes. Everything that follows (the model's whole
depth, a device's allocator, the time of a step) is worked out from a record and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradebench.predict.operations import Operation
from tradebench.predict.recorder import ALL_ON_DEVICE, HostPeak, Mark, Recorder
from tradebench.result import CATEGORIES, Phase
from tradebench.worlds.meters import MemoryMeter, Part

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The events of a trial, in order.

    Of each event, `events` says which block is allocated (b) or released (~b), or which operation
    runs (CALL plus its index in `operations`, ahead of what it allocates); `layers` says to which
    decoder layer that belongs, -1 where to none. Of each block, `sizes` has the bytes asked for,
    `categories` what it was for (an index into CATEGORIES), and `paths` the module it was made in
    (an index into `modules`). `placed` says whether layers are known throughout; they are not where
    weights lie on the host, whose tensors are not recorded; `host` has the most that those took.
    """

    events: Integers
    layers: Integers
    sizes: Integers
    categories: Integers
    paths: Integers
    modules: tuple[str, ...]
    operations: tuple[Operation, ...]
    marks: tuple[Mark, ...]
    placed: bool = True
    host: HostPeak = ALL_ON_DEVICE

    @property
    def host_bytes(self) -> int:
        """The most bytes that lay on the host."""
        return sum(self.host.layers.values())

    @classmethod
    def of(cls, recorder: Recorder) -> Record:
        """What a recorder has written down so far.

        What is let go of when the last phase is over decides nothing, and is put in the order of
        layers: what LLM.int8() keeps of them goes last, and latest of those that are recomputed.
        """
        events = np.array(recorder.events, dtype=np.int64)
        layers = np.array(recorder.layers, dtype=np.int64)
        over = recorder.marks[-1].position if recorder.marks else len(events)
        if (events[over:] < 0).all():
            order = over + np.argsort(layers[over:], kind="stable")
            events[over:], layers[over:] = events[order], layers[order]
        modules = {path: index for index, path in enumerate(dict.fromkeys(recorder.paths))}
        kinds = {category: index for index, category in enumerate(CATEGORIES)}
        return cls(
            events=events,
            layers=layers,
            sizes=np.array(recorder.sizes, dtype=np.int64),
            categories=np.array(
                [kinds[storage.category] for storage in recorder.storages], dtype=np.int64
            ),
            paths=np.array([modules[path] for path in recorder.paths], dtype=np.int64),
            modules=tuple(modules),
            operations=tuple(recorder.operations),
            marks=tuple(recorder.marks),
            placed=recorder.placed,
            host=recorder.at_host_peak,
        )


class RecordingMeter(MemoryMeter):
    """A memory meter whose tracker writes everything down."""

    tracker: Recorder

    def __init__(self) -> None:
        super().__init__("cpu", fake=True, tracker=Recorder("cpu"))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count and record everything that happens inside."""
        with self.tracker.following(), super().running():
            yield

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Mark the phase."""
        with self.tracker.within("phase", name), super().phase(name):
            yield

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Mark the part."""
        with self.tracker.within("part", name), super().part(name):
            yield

    @contextmanager
    def step(self) -> Iterator[None]:
        """Mark the step."""
        with self.tracker.within("step", "step"), super().step():
            yield
