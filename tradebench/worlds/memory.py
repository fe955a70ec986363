"""The storage tracker: every byte of tensor memory, by category, as operations ask for it.

It counts what is requested, so the same program gives the same figures on any device and any
allocator. It is a dispatch mode and slows every operation down, so it never runs in a pass that is
timed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tradebench.result import CATEGORIES


@dataclass(slots=True)
class Storage:
    """A living storage; `born` counts the storages seen until it was made, itself included.

    `block` is the number that whoever writes the storages down has given it.
    """

    size: int
    category: str
    born: int
    block: int = -1


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
        self.at_peak = dict(self.bytes)
        self.part_peak = 0  # the peak since `part_peak` was last set
        self._known: dict[int, Storage] = {}
        self._born = 0  # storages seen so far
        self._born_at_peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count the storages of what it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in((result,)):
            self._see(tensor)
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
        """Say what these tensors are and, if they were part of the peak, were there."""
        for tensor in tensors:
            self._see(tensor)
            known = self._known.get(tensor.untyped_storage()._cdata)
            if known is not None and known.category != category:
                self._move(self.bytes, known, category)
                if known.born <= self._born_at_peak:
                    self._move(self.at_peak, known, category)
                known.category = category

    @staticmethod
    def _move(count: dict[str, int], storage: Storage, category: str) -> None:
        count[storage.category] -= storage.size
        count[category] += storage.size

    def label_all(self, category: str) -> None:
        """Say that everything alive is of one category."""
        for storage in self._known.values():
            storage.category = category
        self.bytes = dict.fromkeys(CATEGORIES, 0) | {category: self.total}

    def reset_peak(self) -> None:
        """Start a new phase: its peak is at least what is alive now."""
        self._keep_peak()

    def _keep_peak(self) -> None:
        self.peak, self.at_peak, self._born_at_peak = self.total, dict(self.bytes), self._born

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is None:
            self._born += 1
            self._known[key] = known = Storage(0, self.category(), self._born)
            weakref.finalize(storage, self._forget, key).atexit = False
        if known.size != size:  # new, or resized in place
            self._resize(known, size)

    def _resize(self, storage: Storage, size: int) -> None:
        """Count another size of a storage: none where it has been released."""
        grown, storage.size = size - storage.size, size
        self.bytes[storage.category] += grown
        self.total += grown
        if self.total > self.peak:
            self._keep_peak()
        if self.total > self.part_peak:
            self.part_peak = self.total

    def _forget(self, key: int) -> None:
        self._resize(self._known.pop(key), 0)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Every tensor among values and lists of values."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
