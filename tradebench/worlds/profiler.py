"""torch's own profiler as a second reading of tensor memory on a CPU.

It counts inside the CPU allocator, so it also sees the buffers that kernels keep to themselves; the
tracker sees what operations return. The two agree within a few kilobytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function


class Profiler:
    """Records allocations while it is open; windows name the phases to ask about afterwards."""

    def __init__(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._events: list[Any] | None = None

    def __enter__(self) -> None:
        self._profile.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """Name what happens inside."""
        with record_function(f"tradebench.{name}"):
            yield

    def peak(self, name: str) -> int:
        """The largest number of bytes allocated at any moment of the window.

        torch counts from the start of the process; what was there when the profiler was opened is
        taken off.
        """
        if self._events is None:
            recorded: Any = self._profile.profiler
            self._events = list(_walk(recorded.kineto_results.experimental_event_tree()))
        window = next(event for event in self._events if event.name == f"tradebench.{name}")
        kind = torch._C._profiler._EventType.Allocation
        changes = [event for event in self._events if event.tag == kind]
        first = min(changes, key=lambda event: event.start_time_ns).extra_fields
        before: int = first.total_allocated - first.alloc_size
        highest: int = max(
            event.extra_fields.total_allocated
            for event in changes
            if window.start_time_ns <= event.start_time_ns <= window.end_time_ns
        )
        return highest - before


def _walk(events: Iterable[Any]) -> Iterator[Any]:
    """Every event of the tree, without recursion: backward passes nest deeply."""
    stack = list(events)
    while stack:
        event = stack.pop()
        yield event
        stack.extend(event.children)
