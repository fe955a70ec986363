"""The ranks of a trial, as its program sees them: how they meet, and what they add up together.

Every rank trains on micro-batches of its own. A loss is divided by the answer tokens of all of
them, and gradients are summed, so a step is that of one process which takes all micro-batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from tradebench.rank import Rank

# Of sharded models and of this module; the last two are names that older releases of torch have.
_COLLECTIVES = (
    "all_reduce",
    "all_gather_single",
    "reduce_scatter_single",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
)
_CALM_SECONDS = 0.005


@contextmanager
def together(rank: Rank) -> Iterator[None]:
    """Meet the other ranks, and part from them where all went well.

    Where something failed, others may hang in an operation that needs this one: whoever watches the
    processes ends them.
    """
    if rank.of == 1:
        yield
        return
    device = "cpu"
    if torch.cuda.is_available():
        device = "cuda"
        torch.cuda.set_device(rank.local)
    dist.init_process_group(
        dist.get_default_backend_for_device(device),
        init_method=rank.rendezvous,
        rank=rank.number,
        world_size=rank.of,
        timeout=timedelta(seconds=rank.patience),
    )
    yield
    dist.destroy_process_group()


def place() -> tuple[int, int]:
    """Which rank this process is, and of how many: the first of one where it is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def total(value: float, device: torch.device) -> float:
    """The sum of what every rank has; integers below 2**53 stay exact."""
    if place()[1] == 1:
        return value
    own = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(own)
    return float(own)


@contextmanager
def calm(needed: bool) -> Iterator[None]:
    """Let collective operations end only when nothing is left of them, where bytes are counted.

    gloo answers before its threads have let go of the buffers, and it may add up in a copy.
    """
    whole = {name: getattr(dist, name) for name in _COLLECTIVES if needed and hasattr(dist, name)}
    for name, collective in whole.items():
        setattr(dist, name, _calmly(collective))
    try:
        yield
    finally:
        for name, collective in whole.items():
            setattr(dist, name, collective)


def _calmly(collective: Callable[..., Any]) -> Callable[..., None]:
    def call(*arguments: Any, async_op: bool = False, **options: Any) -> None:
        work = collective(*arguments, async_op=True, **options)
        with _disable_current_modes():
            work.wait()
        del work
        time.sleep(_CALM_SECONDS)

    return call
