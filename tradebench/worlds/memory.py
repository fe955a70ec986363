"""The storage tracker: every byte of tensor memory, by category, as operations ask for it.

It counts what is requested, so the same program gives the same figures on any device and any
allocator. It is a dispatch mode and slows every operation down, so it never runs in a pass that is
timed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tradebench.result import CATEGORIES


class Tracker(TorchDispatchMode):
    """Follows the storages of one device from the operation that makes them to their release.

    A storage carries the category that was current when it was made, until `label` says better. A
    storage that several tensors share counts once.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.device = device
        self.category: Callable[[], str] = lambda: "other"
        self.bytes = dict.fromkeys(CATEGORIES, 0)
        self.total = 0
        self.peak = 0
        self.at_peak: Mapping[str, int] = dict(self.bytes)
        self._known: dict[int, tuple[int, str]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count the storages of what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    @contextmanager
    def labelled(self, category: str | Callable[[], str]) -> Iterator[None]:
        """Give new storages this category; a function is asked for every one of them."""
        before = self.category
        self.category = category if callable(category) else lambda: category
        try:
            yield
        finally:
            self.category = before

    def label(self, tensors: Iterable[Tensor], category: str) -> None:
        """Say what these tensors are, seen before or not."""
        for tensor in tensors:
            self._see(tensor)
            key = tensor.untyped_storage()._cdata
            if key in self._known:
                size, old = self._known[key]
                self._known[key] = (size, category)
                self.bytes[old] -= size
                self.bytes[category] += size

    def label_all(self, category: str) -> None:
        """Say that everything alive is of one category."""
        self._known = {key: (size, category) for key, (size, _) in self._known.items()}
        self.bytes = dict.fromkeys(CATEGORIES, 0) | {category: self.total}

    def reset_peak(self) -> None:
        """Start a new phase: its peak is at least what is alive now."""
        self.peak, self.at_peak = self.total, dict(self.bytes)

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is None:
            category = self.category()
            self._known[key] = (size, category)
            weakref.finalize(storage, self._forget, key).atexit = False
            self._grow(size, category)
        elif known[0] != size:  # a storage that was resized in place
            self._known[key] = (size, known[1])
            self._grow(size - known[0], known[1])

    def _grow(self, size: int, category: str) -> None:
        self.bytes[category] += size
        self.total += size
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, dict(self.bytes)

    def _forget(self, key: int) -> None:
        size, category = self._known.pop(key)
        self.bytes[category] -= size
        self.total -= size
