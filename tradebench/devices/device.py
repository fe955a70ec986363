"""A device as its data sheet has it: capacity, bandwidth, arithmetic and links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Format = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8"]

GIB = 2**30
# Between nodes: one network port of 400 Gb/s for each GPU, as in the reference systems of the
# data-centre cards (eight ports per node of eight). A smaller cluster has less.
NETWORK = 50e9


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of GPU; rates are dense, with products of 16 bits summed up in 32.

    Attributes:
        id: How a user names it: `h100-80gb`.
        name: How its vendor names it.
        architecture: What compilers call it (sm_90, gfx942).
        memory_bytes: Nominal capacity; a vendor's GB of memory is a GiB.
        reported_bytes: The least and the most that torch has been seen to report as the total:
            what the driver keeps back and what error correction takes are gone.
        bandwidth: Memory bandwidth in B/s.
        rates: FLOP/s (integer operations per second for int8) by format; a format that is absent
            has no fast unit.
        link: What joins the GPUs of a node.
        link_bandwidth: B/s that one GPU sends to the others of its node, in one direction.
        node: GPUs that the link joins.
        network_bandwidth: B/s that one GPU sends to other nodes, in one direction: assumed.
        source: Title of the data sheet.
    """

    id: str
    name: str
    architecture: str
    memory_bytes: int
    reported_bytes: tuple[int, int]
    bandwidth: float
    rates: Mapping[Format, float]
    link: str
    link_bandwidth: float
    node: int
    network_bandwidth: float = NETWORK
    source: str

    @property
    def capability(self) -> tuple[int, int] | None:
        """The compute capability, which NVIDIA's architectures are named after; AMD has none."""
        digits = self.architecture.removeprefix("sm_")
        return None if digits == self.architecture else (int(digits[:-1]), int(digits[-1]))
