"""The device catalogue: rows that contradict neither themselves nor what is known of the chips."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError

import pytest

from tradebench.devices import DEVICES, GIB, Device, able, find, names
from tradebench.errors import UserError

every_device = pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)

# Products of 16 bits that one multiprocessor finishes per clock when sums have 32 bits, the
# multiprocessors of each device, and its boost clock in GHz: what a peak rate is made of.
TENSOR_CORES = {
    "a100-40gb": (1024, 108, 1.410),
    "a100-80gb": (1024, 108, 1.410),
    "h100-80gb": (2048, 132, 1.830),
    "h200-141gb": (2048, 132, 1.830),
    "l4-24gb": (512, 58, 2.040),
    "l40s-48gb": (512, 142, 2.520),
    "a10g-24gb": (256, 80, 1.710),
    "a5000-24gb": (512, 64, 1.695),
    "a6000-48gb": (512, 84, 1.800),
    "rtx-6000-ada-48gb": (512, 142, 2.505),
    "rtx-3090-24gb": (256, 82, 1.695),
    "rtx-4090-24gb": (256, 128, 2.520),
    "rtx-5090-32gb": (256, 170, 2.407),
    "mi300x-192gb": (1024, 304, 2.100),
    "mi325x-256gb": (1024, 304, 2.100),
}
# Bits of the memory bus and Gb/s on each of its wires.
MEMORY = {
    "l4-24gb": (192, 12.5),
    "l40s-48gb": (384, 18),
    "a10g-24gb": (384, 12.5),
    "a5000-24gb": (384, 16),
    "a6000-48gb": (384, 16),
    "rtx-6000-ada-48gb": (384, 20),
    "rtx-3090-24gb": (384, 19.5),
    "rtx-4090-24gb": (384, 21),
    "rtx-5090-32gb": (512, 28),
    "a100-40gb": (5120, 2.43),
    "a100-80gb": (5120, 3.186),
}


# As NVIDIA's table of CUDA GPUs has them (https://developer.nvidia.com/cuda-gpus).
CAPABILITIES = {
    "a100-40gb": (8, 0),
    "a100-80gb": (8, 0),
    "h100-80gb": (9, 0),
    "h200-141gb": (9, 0),
    "b200-180gb": (10, 0),
    "gb200-186gb": (10, 0),
    "l4-24gb": (8, 9),
    "l40s-48gb": (8, 9),
    "a10g-24gb": (8, 6),
    "a5000-24gb": (8, 6),
    "a6000-48gb": (8, 6),
    "rtx-6000-ada-48gb": (8, 9),
    "rtx-3090-24gb": (8, 6),
    "rtx-4090-24gb": (8, 9),
    "rtx-5090-32gb": (12, 0),
    "mi300x-192gb": None,
    "mi325x-256gb": None,
}


@every_device
def test_an_id_ends_in_the_capacity(device: Device) -> None:
    found = re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-(\d+)gb", device.id)

    assert found is not None
    assert device.memory_bytes == int(found[2]) * GIB


@every_device
def test_a_device_has_the_compute_capability_of_nvidias_table(device: Device) -> None:
    assert device.capability == CAPABILITIES[device.id]


@pytest.mark.parametrize(
    ("capability", "gigabytes", "found"),
    [
        ((8, 0), 24, "a10g-24gb"),
        ((8, 9), 80, "h100-80gb"),
        ((9, 0), 24, "rtx-5090-32gb"),
        ((10, 0), 141, "b200-180gb"),
        ((8, 0), 192, "gb200-186gb"),
    ],
)
def test_a_device_that_can_do_it_is_no_smaller_where_there_is_one(
    capability: tuple[int, int], gigabytes: int, found: str
) -> None:
    assert able(capability, gigabytes * GIB).id == found


@every_device
def test_torch_reports_a_little_less_than_the_capacity(device: Device) -> None:
    low, high = device.reported_bytes

    assert 0.9 * device.memory_bytes < low < high <= device.memory_bytes


@every_device
def test_every_row_says_where_it_is_from(device: Device) -> None:
    assert re.search("data sheet|white paper", device.source)
    assert device.name.split()[0] in ("NVIDIA", "AMD")
    assert re.fullmatch(r"sm_\d{2,3}|gfx\d{3}", device.architecture)


@every_device
def test_both_formats_of_16_bits_run_at_one_rate_and_tf32_at_half_of_it(device: Device) -> None:
    rates = device.rates

    assert rates["bf16"] == rates["fp16"]
    # Data sheets round: 1.1 for half of 2.25 PFLOP/s.
    assert rates["tf32"] == pytest.approx(rates["bf16"] / 2, rel=0.025)


@every_device
def test_formats_of_8_bits_run_at_twice_or_four_times_the_rate_of_16(device: Device) -> None:
    assert device.rates.get("fp8", 0) / device.rates["bf16"] == pytest.approx(
        2 if "fp8" in device.rates else 0, rel=0.02
    )
    # GeForce cards halve their rate for sums of 32 bits, which integers do not need.
    assert device.rates["int8"] / device.rates["bf16"] == pytest.approx(
        4 if device.id.startswith("rtx-") and "ada" not in device.id else 2, rel=0.02
    )


@every_device
def test_fp8_is_there_from_ada_and_hopper_on(device: Device) -> None:
    assert ("fp8" in device.rates) == (device.architecture not in ("sm_80", "sm_86"))


@pytest.mark.parametrize("name", TENSOR_CORES)
def test_a_rate_is_what_the_cores_do_in_a_second(name: str) -> None:
    products, processors, gigahertz = TENSOR_CORES[name]
    rate = 2 * products * processors * gigahertz * 1e9

    assert find(name).rates["bf16"] == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("name", MEMORY)
def test_a_bandwidth_is_what_the_wires_carry(name: str) -> None:
    bits, gigabits = MEMORY[name]

    assert find(name).bandwidth == pytest.approx(bits / 8 * gigabits * 1e9, rel=0.005)


@every_device
def test_the_link_within_a_node_is_no_slower_than_the_network(device: Device) -> None:
    """Except where there is none: then both go through a slot."""
    if not device.link.startswith("PCIe"):
        assert device.link_bandwidth > device.network_bandwidth
    assert device.node > 1


def test_a_device_is_found_in_whatever_case() -> None:
    assert find("H100-80GB") is find(" h100-80gb ") is DEVICES["h100-80gb"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("a100", "a100-40gb or a100-80gb"),
        ("4090", "rtx-4090-24gb"),
        ("rtx4090", "rtx-4090-24gb"),
        ("h100-80", "h100-80gb"),
        ("h100-81gb", "h100-80gb"),
    ],
)
def test_a_near_miss_is_told_what_may_be_meant(given: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        find(given)

    assert str(caught.value) == f"unknown device {given!r}: did you mean {meant}?"


@pytest.mark.parametrize("given", ["", "tpu", "%"])
def test_anything_else_is_told_what_there_is_in_one_line(given: str) -> None:
    with pytest.raises(UserError) as caught:
        find(given)

    sentence = str(caught.value)
    assert "\n" not in sentence
    assert all(name in sentence for name in names())


def test_a_device_and_the_catalogue_cannot_be_changed() -> None:
    device = find("h200-141gb")
    with pytest.raises(FrozenInstanceError):
        device.bandwidth = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        device.rates["bf16"] = 1.0  # type: ignore[index]
    with pytest.raises(TypeError):
        DEVICES["new"] = device  # type: ignore[index]
