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

    def growth(self, name: str) -> int:
        """How far the allocated bytes rose within a window above what they were at its start.

        Only growth is comparable: torch counts from the start of the process, and weights that are
        mapped from a file never pass through its allocator.
        """
        if self._events is None:
            recorded: Any = self._profile.profiler
            events = _walk(recorded.kineto_results.experimental_event_tree())
            self._events = sorted(events, key=lambda event: event.start_time_ns)
        window = next(event for event in self._events if event.name == f"tradebench.{name}")
        kind = torch._C._profiler._EventType.Allocation
        inside = [
            event.extra_fields
            for event in self._events
            if event.tag == kind
            and window.start_time_ns <= event.start_time_ns <= window.end_time_ns
        ]
        start: int = inside[0].total_allocated - inside[0].alloc_size
        highest: int = max(change.total_allocated for change in inside)
        return highest - start


def _walk(events: Iterable[Any]) -> Iterator[Any]:
    """Every event of the tree, without recursion: backward passes nest deeply."""
    stack = list(events)
    while stack:
        event = stack.pop()
        yield event
        stack.extend(event.children)
