"""Collectives against the closed form of a ring, and what NCCL's tuner says of its links."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.devices import DEVICES, Device, find
from tradebench.interval import NOTHING
from tradebench.predict.collectives import KINDS, Collective, Kind, collective, seconds
from tradebench.predict.operations import Operation, Spec

GIB = 2**30
H100, A100, RTX = find("h100-80gb"), find("a100-80gb"), find("rtx-4090-24gb")


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize(("kind", "rounds"), [("all_gather", 1), ("all_reduce", 2)])
def test_much_data_takes_its_share_of_rounds_through_the_link(
    kind: Kind, rounds: int, ranks: int
) -> None:
    size = 4 * GIB
    moved = rounds * (ranks - 1) / ranks * size
    found = seconds(kind, size, ranks, H100)

    # NCCL's tuner counts on 370 GB/s of the NVLinks of a Hopper.
    assert found.value == pytest.approx(moved / 370e9, rel=0.05)
    assert moved / 450e9 < found.low < found.value < found.high


@pytest.mark.parametrize(
    ("device", "bus"), [(A100, 240e9), (find("b200-180gb"), 720e9), (RTX, 24e9)]
)
def test_the_bus_is_as_fast_as_the_tuner_says(device: Device, bus: float) -> None:
    size = 8 * GIB

    assert seconds("reduce_scatter", size, 8, device).value == pytest.approx(
        7 / 8 * size / bus, rel=0.08
    )


@pytest.mark.parametrize("ranks", [2, 8, 16, 256])
def test_little_data_takes_the_quick_protocol_and_its_hops(ranks: int) -> None:
    nodes = math.ceil(ranks / 8)
    hops = (ranks - nodes) * 0.6e-6 + (nodes - 1) * 2.7e-6

    assert seconds("all_gather", 8, ranks, H100).value == pytest.approx(6.6e-6 + hops, rel=0.001)


def test_eight_ports_carry_the_rings_of_a_node() -> None:
    size = 64 * GIB
    found = seconds("all_gather", size, 16, H100)

    # Eight ports of 50 GB/s against links of 450: the ports are the narrower.
    assert found.value == pytest.approx(15 / 16 * size / (0.7 * 400e9), rel=0.01)
    assert found.value > seconds("all_gather", size, 8, H100).value


def test_cards_without_links_are_slow_within_a_node_already() -> None:
    assert seconds("all_gather", GIB, 16, RTX).value < 1.1 * seconds(
        "all_gather", GIB, 8, RTX
    ).value * (15 / 16) / (7 / 8)


@settings(derandomize=True, max_examples=80, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 2**34),
    st.integers(2, 1024),
    st.sampled_from(sorted(DEVICES)),
)
def test_more_data_and_more_ranks_never_take_less(
    kind: Kind, size: int, ranks: int, name: str
) -> None:
    device = find(name)
    found = seconds(kind, size, ranks, device)

    assert found.value <= seconds(kind, 2 * size, ranks, device).value
    assert found.value <= seconds(kind, size, ranks + 1, device).value
    assert found.value <= seconds("all_reduce", size, ranks, device).value
    fastest = max(device.link_bandwidth, device.network_bandwidth * device.node)
    assert found.low > (ranks - 1) / ranks * size / fastest


def test_alone_there_is_nothing_to_exchange() -> None:
    assert seconds("all_reduce", GIB, 1, H100) == NOTHING


whole, part = Spec((8, 1000), "bfloat16"), Spec((1, 1000), "bfloat16")


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "expected"),
    [
        ("c10d._allgather_base_.default", (whole, part), (whole,), ("all_gather", 8)),
        ("_c10d_functional.all_gather_into_tensor.default", (part,), (whole,), ("all_gather", 8)),
        ("c10d._reduce_scatter_base_.default", (part, whole), (part,), ("reduce_scatter", 8)),
        (
            "_c10d_functional.reduce_scatter_tensor.default",
            (whole,),
            (part,),
            ("reduce_scatter", 8),
        ),
        ("c10d.allreduce_.default", (whole,), (whole,), ("all_reduce", 0)),
        ("_c10d_functional.all_reduce.default", (whole,), (whole,), ("all_reduce", 0)),
        ("c10d.broadcast_.default", (whole,), (whole,), ("broadcast", 0)),
    ],
)
def test_a_collective_is_known_by_its_name_and_its_ranks_by_its_sizes(
    name: str,
    inputs: tuple[Spec, ...],
    outputs: tuple[Spec, ...],
    expected: tuple[Kind, int],
) -> None:
    kind, ranks = expected

    assert collective(Operation(name, inputs, outputs)) == Collective(kind, 16000, ranks)


@pytest.mark.parametrize(
    "name",
    [
        "_c10d_functional.wait_tensor.default",
        "c10d.barrier.default",
        "fsdp.all_gather_copy_in.default",
        "aten.mm.default",
    ],
)
def test_waiting_and_copying_are_no_collectives(name: str) -> None:
    assert collective(Operation(name, (whole,), (whole,))) is None
