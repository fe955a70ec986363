"""Interruption: Ctrl-C as a flag, so that it breaks in between two steps and not within one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def first_interruption() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, in the main thread.

    A second Ctrl-C raises KeyboardInterrupt at once; the guards end what runs in any case.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
