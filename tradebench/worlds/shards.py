"""A tracker that sees through sharded models, in either world.

A sharded parameter is a tensor made of a tensor: only the inner one, this process's share, takes
memory. Weights are gathered into storages that stay and whose memory comes and goes, which no
operation shows. To find out shapes, whole tensors are made in a fake world of their own. And what
is offloaded lies on the host.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import (
    is_traceable_wrapper_subclass,
    is_traceable_wrapper_subclass_type,
)

from tradebench.worlds.host import on_host
from tradebench.worlds.memory import Tracker, tensors_in

# torch's operations for collectives, and for what surrounds them in a sharded model.
COLLECTIVES, SHARDING = "c10d", "fsdp"


class ShardTracker(Tracker):
    """Follows this process's share of everything; `host` counts what is offloaded."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.host = self.host_peak = 0
        self._on_host: set[int] = set()
        self._world: object | None = None
        self._resize_storage = UntypedStorage.resize_

    def __enter__(self) -> Self:
        self._world = current_world()

        def resize(storage: UntypedStorage, size: int) -> None:
            self._resize_storage(storage, size)
            self._resized(storage)

        UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        super().__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        UntypedStorage.resize_ = self._resize_storage  # type: ignore[method-assign]

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Follow an operation on plain tensors of this world; all others are not followed."""
        if made_of_tensors(types):
            return NotImplemented
        if current_world() is not self._world:
            return func(*args, **(kwargs or {}))
        return self.follow(func, types, args, kwargs or {})

    def follow(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Run the operation, count what it returns, and say what travels between processes."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.label(buffers(func, args, kwargs), "communication")
        return result

    def label(self, tensors: Iterable[Tensor], category: str) -> None:
        """Say what these tensors, or this process's shares of them, are."""
        super().label((part for tensor in tensors for part in parts(tensor)), category)

    def _see(self, tensor: Tensor) -> None:
        for part in parts(tensor):
            if on_host(part):
                self._see_on_host(part.untyped_storage())
            else:
                super()._see(part)

    def _resized(self, storage: UntypedStorage) -> None:
        """Weights have been gathered into a storage, or dropped: nothing else is resized."""
        known = self._known.get(storage._cdata)
        if known is None:
            return
        if known.category != "weights":
            self._move(self.bytes, known, "weights")
            if known.born <= self._born_at_peak:
                self._move(self.at_peak, known, "weights")
            known.category = "weights"
        self._resize(known, storage.nbytes())

    def _see_on_host(self, storage: UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._on_host:
            self._on_host.add(key)
            self.host += size
            self.host_peak = max(self.host_peak, self.host)
            weakref.finalize(storage, self._forget_on_host, key, size).atexit = False

    def _forget_on_host(self, key: int, size: int) -> None:
        self._on_host.remove(key)
        self.host -= size


def parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of: of a sharded one, this process's share."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        inner = getattr(tensor, name)
        if isinstance(inner, Tensor):  # a mesh is among the names, too
            yield from parts(inner)


def made_of_tensors(types: Iterable[type]) -> bool:
    """Whether one of these classes of tensors is made of others.

    An operation on them is taken apart into operations on what they are made of, so a dispatch mode
    leaves it alone (it returns NotImplemented) and sees those.
    """
    return any(map(_is_made_of_tensors, types))


@cache
def _is_made_of_tensors(kind: type) -> bool:
    return is_traceable_wrapper_subclass_type(kind)


def current_world() -> object | None:
    """The fake world in which operations run at this moment; None in the real one."""
    found: object | None = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return found


def buffers(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What an operation sends, receives, or puts together to be sent."""
    if func.namespace == COLLECTIVES:
        return list(tensors_in(args))
    if func.namespace == SHARDING:
        # Shares are copied into a buffer that will hold them all, gradients into one by ranks.
        sent = {"all_gather_copy_in": lambda: args[1], "chunk_cat": lambda: kwargs["out"]}
        return [sent[name]()] if (name := func._opname) in sent else []
    return []
