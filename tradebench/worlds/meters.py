"""What listens while the trial program runs: a memory meter in one pass, a clock in another.

The program announces its phases, the parts of a step and what it holds; a meter turns that into
measurements. The two never run together, because counting memory slows every operation down.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from tradebench.result import CATEGORIES, Measurement, Phase
from tradebench.worlds.process import (
    process_peak_bytes,
    process_used_bytes,
    reset_process_peak,
)
from tradebench.worlds.profiler import Profiler
from tradebench.worlds.ranks import calm, place
from tradebench.worlds.shards import ShardTracker

THREADED_LOADING = "HF_DEACTIVATE_ASYNC_LOAD"
# How far the profiler may be from the tracker: small models have small tensors, but the buffers
# that kernels keep to themselves do not shrink with them.
AGREEMENT, AGREEMENT_BYTES = 0.0005, 64 * 1024

Part = Literal["forward", "backward", "optimizer"]


class Meter(Protocol):
    """What the trial program tells whoever measures it."""

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """A phase of the trial runs inside this context."""

    def part(self, name: Part) -> AbstractContextManager[None]:
        """A part of a training step runs inside this context."""

    def step(self) -> AbstractContextManager[None]:
        """A whole training step runs inside this context."""

    def trains(self, parameters: Iterable[nn.Parameter]) -> None:
        """These parameters are about to be trained."""

    def holds(self, category: str, tensors: Iterable[Tensor]) -> None:
        """These tensors, alive now, are of this category."""

    @property
    def bytes(self) -> int | None:
        """The highest memory seen so far, for progress."""


class MemoryMeter:
    """Counts tensor bytes by category and phase; on a CPU, torch's profiler counts beside it.

    Fake tensors take no memory, so the profiler would find none. Between ranks on a CPU it would
    also find what gloo's threads hold, at moments that they choose.
    """

    def __init__(
        self, device: str, *, fake: bool = False, tracker: ShardTracker | None = None
    ) -> None:
        self.tracker = tracker or ShardTracker(device)
        real = device == "cpu" and not fake
        self.several = real and place()[1] > 1
        self.profiler = Profiler() if real and not self.several else None
        self.peaks: dict[str, int] = {}
        self.parts: dict[Part, int] = {}  # the peak of each part of a training step
        self.start = 0  # bytes at the beginning of training
        self.categories: Mapping[str, int] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count everything that happens inside."""
        # transformers copies weights in a thread pool; a dispatch mode sees its own thread only.
        before = os.environ.get(THREADED_LOADING)
        os.environ[THREADED_LOADING] = "1"
        try:
            with self.profiler or nullcontext(), self.tracker, calm(self.several):
                yield
        finally:
            del os.environ[THREADED_LOADING]
            if before is not None:
                os.environ[THREADED_LOADING] = before

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Keep the peak of this phase; what a preparing phase leaves behind are the weights."""
        self.tracker.reset_peak()
        if name == "train":
            self.start = self.tracker.total
        mark = self.profiler.window(name) if self.profiler else nullcontext()
        try:
            with mark, self.tracker.labelled("activations" if "evaluate" in name else "other"):
                yield
        finally:
            self.peaks[name] = self.tracker.peak
            if name == "train":
                self.categories = dict(self.tracker.at_peak)
        if name in ("load", "compress"):
            gc.collect()
            self.tracker.label_all("weights")

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Say what new storages are: kept for the way back, or needed for a moment."""
        label = {
            "forward": lambda: "activations",
            # A recomputed forward runs inside the backward pass, with gradients enabled.
            "backward": lambda: "activations" if torch.is_grad_enabled() else "temporaries",
            "optimizer": lambda: "temporaries",
        }[name]
        self.tracker.part_peak = self.tracker.total
        with self.tracker.labelled(label):
            yield
        self.parts[name] = max(self.parts.get(name, 0), self.tracker.part_peak)

    def step(self) -> AbstractContextManager[None]:
        """Steps are not timed here."""
        return nullcontext()

    def trains(self, parameters: Iterable[nn.Parameter]) -> None:
        """Call each gradient a gradient as soon as it is accumulated."""

        def relabel(parameter: Tensor) -> None:
            assert parameter.grad is not None, "the hook runs after accumulation"
            self.tracker.label([parameter.grad], "gradients")

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(relabel)

    def holds(self, category: str, tensors: Iterable[Tensor]) -> None:
        """Relabel what is alive."""
        self.tracker.label(tensors, category)

    @property
    def bytes(self) -> int | None:
        """The tensor peak so far."""
        return max((*self.peaks.values(), self.tracker.peak))

    def measurements(self) -> dict[str, Measurement]:
        """Peaks by phase, the training peak by category, and the profiler's own reading."""
        found = phase_peaks("peak_tensor_bytes", self.peaks)
        found |= {
            f"peak_{category}_bytes": Measurement(value=self.categories[category], unit="B")
            for category in CATEGORIES
            if self.categories
        }
        if self.profiler and "train" in self.peaks:
            seen = self.start + self.profiler.growth("train")
            found["peak_profiler_bytes"] = Measurement(value=seen, unit="B")
        return found

    def disagreements(self) -> list[str]:
        """A sentence where the profiler's reading of the training peak is another one."""
        if self.profiler is None:
            return []
        counted, seen = self.peaks["train"], self.start + self.profiler.growth("train")
        if abs(seen - counted) <= max(AGREEMENT * counted, AGREEMENT_BYTES):
            return []
        return [
            f"torch's profiler saw a training peak of {seen} bytes where operations returned "
            f"{counted}: peak_tensor_bytes may miss what a kernel holds inside"
        ]


class Clock:
    """Times every step, and reads the device's and the process's own memory counters by phase."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.samples: list[float] = []
        self.seconds: dict[str, float] = {}
        self.process: dict[str, int] = {}
        self.allocated: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        self.retries = 0

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Start the counters of a phase and read them when it is over, also when it failed."""
        gc.collect()
        self._start()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start
            self._read(name)

    def _start(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_process_peak()

    def _read(self, name: Phase) -> None:
        if self.cuda:
            stats = torch.cuda.memory_stats()
            self.allocated[name] = stats["allocated_bytes.all.peak"]
            self.reserved[name] = stats["reserved_bytes.all.peak"]
            self.retries = stats["num_alloc_retries"]
            outside = max(0, process_used_bytes() - torch.cuda.memory_reserved())
            self.process[name] = self.reserved[name] + outside
        else:
            self.process[name] = process_peak_bytes()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one step, to the end of the device's work."""
        start = self._now()
        yield
        self.samples.append(self._now() - start)

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def part(self, name: Part) -> AbstractContextManager[None]:
        """Parts of a step are not timed: stopping between them would change the step."""
        return nullcontext()

    def trains(self, parameters: Iterable[nn.Parameter]) -> None:
        """Nothing to prepare."""

    def holds(self, category: str, tensors: Iterable[Tensor]) -> None:
        """Categories are the memory meter's."""

    @property
    def bytes(self) -> int | None:
        """The device's or the process's peak in the current phase."""
        return torch.cuda.max_memory_reserved() if self.cuda else process_peak_bytes()

    def measurements(self) -> dict[str, Measurement]:
        """Memory counters by phase and the seconds that loading took."""
        found = phase_peaks("peak_process_bytes", self.process)
        found |= phase_peaks("peak_allocated_bytes", self.allocated)
        found |= phase_peaks("peak_reserved_bytes", self.reserved)
        if "load" in self.seconds:
            found["load_seconds"] = Measurement(value=self.seconds["load"], unit="s")
        return found


def phase_peaks(name: str, peaks: Mapping[str, int]) -> dict[str, Measurement]:
    """`name` for the training phase, `name.<phase>` for every other."""
    return {
        name if phase == "train" else f"{name}.{phase}": Measurement(value=value, unit="B")
        for phase, value in peaks.items()
    }
