"""Seconds of a collective: NCCL's own model of a ring.

A ring of n ranks takes n - 1 steps for an all-gather or a reduce-scatter of B bytes (the whole, on
no rank's account), and twice as many for an all-reduce:

    seconds = base + steps x hop + steps / n x B / bus bandwidth

NCCL estimates this for each of its protocols and takes the fastest. Two stand for all here: LL
(8-byte stores that carry a flag: quick to start, half the bandwidth) and Simple. Base and hop
latencies are those of NCCL's tuner (src/graph/tuning.cc, as also kept in torch's
torch/_inductor/comm_analysis.py). The bus is as wide as a GPU's link or, across nodes, as what the
node's network ports carry together, since rings leave a node through every port.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from tradebench.devices import Device
from tradebench.interval import NOTHING, Interval, exactly
from tradebench.predict.operations import Operation

Kind = Literal["all_gather", "reduce_scatter", "all_reduce", "broadcast"]
KINDS: tuple[Kind, ...] = ("all_gather", "reduce_scatter", "all_reduce", "broadcast")

# By protocol, LL and Simple: seconds before anything moves, seconds of one hop within a node over
# its link or over PCIe, and between nodes; and the share of the bandwidth that is left for data.
BASE = (6.6e-6, 8.4e-6)
LINK_HOP = (0.6e-6, 3.4e-6)
PCIE_HOP = (1.0e-6, 5.7e-6)
NETWORK_HOP = (2.7e-6, 14.0e-6)
DATA = (0.5, 1.0)

# Share of the nominal bandwidth that rings reach. Within a node: NCCL's tuner counts on 240 of 300,
# 370 of 450 and 720 of 900 GB/s for three generations of NVLink, and torch on 24 of PCIe's 32.
# Across nodes it depends on the network; torch's fit of a large Ethernet cluster is at the low end.
LINK_SHARE = Interval(0.60, 0.80, 0.92)
NETWORK_SHARE = Interval(0.30, 0.70, 0.92)
# Latencies are a tuner's rules of thumb; nobody has checked them here.
LATENCY_ERROR = 1.0


class Collective(NamedTuple):
    """What is done, with how many bytes in all, and among how many ranks (0: all there are)."""

    kind: Kind
    bytes: int
    ranks: int


def collective(operation: Operation) -> Collective | None:
    """What an operation of a process group does; None for any other operation.

    The bytes are those of the larger buffer, the whole. How many ranks take part shows in how many
    times it is larger than the smaller one.
    """
    namespace, _, name = operation.name.partition(".")
    if namespace not in ("c10d", "_c10d_functional"):
        return None
    plain = name.replace("allgather", "all_gather").replace("allreduce", "all_reduce")
    kind = next((kind for kind in KINDS if kind in plain), None)
    sizes = [each.bytes for each in (*operation.inputs, *operation.outputs) if each.bytes]
    if kind is None or not sizes:  # a barrier, or waiting for one of the others
        return None
    scattered = kind in ("all_gather", "reduce_scatter")
    return Collective(kind, max(sizes), max(sizes) // min(sizes) if scattered else 0)


def seconds(kind: Kind, size: int, ranks: int, device: Device) -> Interval:
    """Seconds until `size` bytes, the whole, have gone round `ranks` devices."""
    if ranks == 1:
        return NOTHING
    nodes = math.ceil(ranks / device.node)
    rounds = 2 if kind == "all_reduce" else 1
    steps = rounds * (ranks - 1)
    between = rounds * (nodes - 1)
    within = PCIE_HOP if device.link.startswith("PCIe") else LINK_HOP
    if nodes == 1:
        bus = LINK_SHARE.times(device.link_bandwidth)
    else:
        bus = LINK_SHARE.times(device.link_bandwidth).or_less(
            NETWORK_SHARE.times(device.network_bandwidth * device.node)
        )
    moved = exactly(steps / ranks * size)
    protocols = [
        Interval.around(
            BASE[each] + (steps - between) * within[each] + between * NETWORK_HOP[each],
            LATENCY_ERROR,
        )
        + moved.per(bus.times(DATA[each]))
        for each in (0, 1)
    ]
    return protocols[0].or_less(protocols[1])
