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

        The count starts with the process: everything that was allocated before the profiler was
        opened is part of it.
        """
        if self._events is None:
            recorded: Any = self._profile.profiler
            self._events = list(_walk(recorded.kineto_results.experimental_event_tree()))
        window = next(event for event in self._events if event.name == f"tradebench.{name}")
        kind = torch._C._profiler._EventType.Allocation
        return max(  # type: ignore[no-any-return]  # events come from C++
            event.extra_fields.total_allocated
            for event in self._events
            if event.tag == kind
            and window.start_time_ns <= event.start_time_ns <= window.end_time_ns
        )


def _walk(events: Iterable[Any]) -> Iterator[Any]:
    """Every event of the tree, without recursion: backward passes nest deeply."""
    stack = list(events)
    while stack:
        event = stack.pop()
        yield event
        stack.extend(event.children)
