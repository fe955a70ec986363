"""Sharded models in the fake world: a group of processes of which only the first exists.

Its collectives return at once, which is all that shapes and bytes need. The first process holds the
largest share of every parameter, so it is the one that decides what fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from torch.distributed.tensor import _sharding_prop
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def fake_group(ranks: int) -> Iterator[None]:
    """Be the first of so many processes; a group that is there already ends.

    Only a process that trains alone can have one, and it makes another when it is asked to again.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _no_world() -> None:
    """Let sharded tensors find out shapes, which takes whole tensors, in a world of their own.

    They would do so in this one, where whatever is made is taken for memory.
    """


def _first_share(tensor: Tensor, ranks: int, dim: int) -> tuple[Tensor]:
    """The first share of a parameter, the only one that is asked for.

    torch cuts a parameter into all of its shares, twice: that takes half a minute where a few
    layers are cut into 1,024.
    """
    return (tensor.narrow(dim, 0, -(-tensor.shape[dim] // ranks)),)


def _stay(parameter: FSDPParam) -> None:
    """Leave a sharded parameter as it is.

    Before the first step torch pads again whatever no longer lies at its address. Fake tensors have
    none, and nothing has moved them.
    """


SHARDING: tuple[tuple[Any, str, Any], ...] = (
    (_sharding_prop, "detect_fake_mode", _no_world),
    (_fsdp_param, "_chunk_with_empty", _first_share),
    (FSDPParam, "reset_sharded_param", _stay),
)
