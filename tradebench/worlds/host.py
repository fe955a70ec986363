"""Which tensors lie in the host's memory, beside a device that has a memory of its own.

The fake world is a CPU in name only, where everything lies in one memory. What would lie on the
host of an accelerator therefore carries a note there.
"""

from __future__ import annotations

from torch import Tensor

NOTE = "on_host"  # the attribute of a storage that would lie on the host


def on_host(tensor: Tensor) -> bool:
    """Whether the fake world has put this tensor on the host."""
    return getattr(tensor.untyped_storage(), NOTE, False)


def put_on_host(tensor: Tensor) -> None:
    """Say that the storage of a fake tensor, which no tracker has seen yet, lies on the host."""
    setattr(tensor.untyped_storage(), NOTE, True)
