"""Seconds of operations: the roofline by hand, and how shapes, formats and devices change it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.devices import DEVICES, Device, find
from tradebench.devices.calibration import Calibration, Product, Sized
from tradebench.interval import NOTHING
from tradebench.predict.cost import (
    ATTENTION_SHARE,
    BANDWIDTH_SHARE,
    GATHERED,
    KERNEL_SECONDS,
    PRODUCT_SHARE,
    cost,
    seconds,
)
from tradebench.predict.operations import Operation, Spec
from tradebench.predict.traffic import traffic

H100, A100, L4 = find("h100-80gb"), find("a100-80gb"), find("l4-24gb")
sizes = st.integers(1, 20000)
devices = st.sampled_from(sorted(DEVICES)).map(find)
drawn = settings(derandomize=True, max_examples=60, deadline=None)


def matrix(m: int, n: int, k: int, format: str = "bfloat16") -> Operation:
    left, right, output = (Spec(shape, format) for shape in ((m, k), (k, n), (m, n)))
    return Operation("aten.mm.default", (left, right), (output,))


def cast(elements: int) -> Operation:
    return Operation(
        "aten._to_copy.default", (Spec((elements,), "float32"),), (Spec((elements,), "bfloat16"),)
    )


def packed(m: int, n: int, k: int) -> Operation:
    return Operation(
        "bitsandbytes.gemm_4bit.default",
        (
            Spec((1, m, k), "bfloat16"),
            Spec((n * k // 2, 1), "uint8"),
            Spec((n * k // 64,), "float32"),
        ),
        (Spec((1, m, n), "bfloat16"),),
    )


def attend(sequence: int, *, backward: bool = False) -> Operation:
    query, key = (Spec((1, heads, sequence, 128), "bfloat16") for heads in (64, 8))
    sums = Spec((1, 64, sequence), "float32")
    name = "aten._scaled_dot_product_flash_attention"
    if backward:
        inputs = (query, query, key, key, query, sums)
        return Operation(f"{name}_backward.default", inputs, (query, key, key))
    return Operation(f"{name}.default", (query, key, key), (query, sums))


def test_a_large_product_takes_its_flops_at_a_share_of_the_rate() -> None:
    found = cost(matrix(8192, 28672, 8192), H100)
    ideal = 2 * 8192 * 28672 * 8192 / (0.80 * 989.4e12)

    assert found.bound == "compute"
    assert found.seconds.value == pytest.approx(ideal / PRODUCT_SHARE.value + KERNEL_SECONDS.value)
    assert found.seconds.low == pytest.approx(ideal / PRODUCT_SHARE.high + KERNEL_SECONDS.low)
    assert found.seconds.high == pytest.approx(ideal / PRODUCT_SHARE.low + KERNEL_SECONDS.high)


def test_a_cast_takes_its_bytes_at_a_share_of_the_bandwidth() -> None:
    found = cost(cast(10**9), H100)

    assert found.bound == "bandwidth"
    assert found.seconds.value == pytest.approx(
        6e9 / (BANDWIDTH_SHARE.value * 3.35e12) + KERNEL_SECONDS.value
    )


def test_what_is_small_takes_a_start() -> None:
    found = cost(cast(10), H100)

    assert found.bound == "launch"
    assert found.seconds.value == pytest.approx(KERNEL_SECONDS.value, rel=1e-3)


def test_a_product_with_a_low_rank_is_bound_by_its_activations() -> None:
    assert cost(matrix(8192, 16, 8192), H100).bound == "bandwidth"


def test_attention_is_bound_by_arithmetic_and_its_backward_takes_longer() -> None:
    forward, backward = cost(attend(8192), H100), cost(attend(8192, backward=True), H100)
    flops = 2 * 2 * 64 * 8192**2 * 128 / 2

    assert forward.bound == backward.bound == "compute"
    assert forward.seconds.value == pytest.approx(
        flops / (ATTENTION_SHARE.value * 989.4e12), rel=0.01
    )
    assert backward.seconds.value == pytest.approx(2.5 * forward.seconds.value, rel=0.01)


@pytest.mark.parametrize("name", ["aten.empty.memory_format", "aten.lift_fresh.default"])
def test_what_runs_no_kernel_takes_nothing(name: str) -> None:
    spec = (Spec((8,), "float32"),)

    assert seconds(Operation(name, spec, spec), H100) == NOTHING


def test_what_is_made_of_nothing_takes_what_it_writes() -> None:
    numbers = Operation("aten.arange.default", (), (Spec((10**9,), "int64"),))

    assert seconds(numbers, H100).value == pytest.approx(
        8e9 / (BANDWIDTH_SHARE.value * 3.35e12) + KERNEL_SECONDS.value
    )


def test_each_format_runs_at_its_own_rate() -> None:
    shape = (8192, 8192, 8192)
    fp32, bf16, int8 = (
        seconds(matrix(*shape, format), H100).value for format in ("float32", "bfloat16", "int8")
    )

    assert fp32 / bf16 == pytest.approx(989.4 / 66.9, rel=0.01)
    assert bf16 / int8 == pytest.approx(2, rel=0.01)


def test_a_format_without_units_runs_at_the_rate_of_16_bits() -> None:
    shape = (8192, 8192, 8192)

    assert seconds(matrix(*shape, "float8_e4m3fn"), A100).value == pytest.approx(
        seconds(matrix(*shape), A100).value, rel=0.01
    )


@drawn
@given(devices, sizes, sizes, sizes)
def test_more_rows_never_take_less(device: Device, m: int, n: int, k: int) -> None:
    for make in (matrix, packed):
        fewer, more = (seconds(make(rows, n, 64 * k), device) for rows in (m, 2 * m))

        assert fewer.low <= more.low
        assert fewer.value <= more.value
        assert fewer.high <= more.high


@drawn
@given(devices, sizes, sizes, sizes)
def test_nothing_is_faster_than_the_data_sheet(device: Device, m: int, n: int, k: int) -> None:
    found = seconds(matrix(m, n, k), device)
    moved = 2 * (m * k + k * n + m * n)

    assert found.low > max(2 * m * n * k / device.rates["bf16"], moved / device.bandwidth)


def test_a_better_device_takes_less() -> None:
    for operation in (matrix(8192, 8192, 8192), cast(10**8), packed(4096, 8192, 8192)):
        assert seconds(operation, H100).value < seconds(operation, A100).value
        assert seconds(operation, A100).value < seconds(operation, L4).value


# Products with weights of 4 bits.


def unpacking(m: int, n: int, k: int) -> float:
    """Reads 4 bits and a scale for every 64, writes 16, and multiplies then."""
    moved = n * k * (1 / 2 + 4 / 64 + 2)
    share = BANDWIDTH_SHARE.value * H100.bandwidth
    return moved / share + KERNEL_SECONDS.value + seconds(matrix(m, n, k), H100).value


@pytest.mark.parametrize("m", [5, 512, 1536, 1537, 8192])
def test_a_packed_weight_is_unpacked_before_it_is_multiplied(m: int) -> None:
    shape = (m, 28672, 8192)

    assert seconds(packed(*shape), H100).value == pytest.approx(unpacking(*shape))


def test_a_fused_kernel_may_be_faster_up_to_1536_rows() -> None:
    (low, before), (_, after) = (
        (found.low, found.value)
        for found in (seconds(packed(m, 8192, 8192), H100) for m in (1536, 1537))
    )
    unpack = (
        seconds(packed(1537, 8192, 8192), H100).low - seconds(matrix(1537, 8192, 8192), H100).low
    )

    assert low < seconds(matrix(1537, 8192, 8192), H100).low
    assert unpack > 8192 * 8192 * 2 / H100.bandwidth
    assert after == pytest.approx(before, rel=0.001)


def test_a_few_rows_read_4_bits_and_no_more() -> None:
    found, dense = (
        seconds(make(4, 28672, 8192), H100).value - KERNEL_SECONDS.value
        for make in (packed, matrix)
    )

    assert found / dense == pytest.approx((1 / 2 + 4 / 64) / 2, rel=0.01)


# With a calibration.


def calibration(**tables: object) -> Calibration:
    return Calibration.model_validate(
        {"device": H100.name, "kernel_seconds": 2e-6, "call_seconds": 5e-6, **tables}
    )


def measured(m: int, n: int, k: int, took: float) -> Product:
    return Product(m=m, n=n, k=k, format="bf16", layout="forward", seconds=took)


def test_a_measured_product_takes_what_it_took() -> None:
    known = calibration(products=(measured(4096, 8192, 8192, 9e-4),))
    found = cost(matrix(4096, 8192, 8192), H100, known)

    assert found.seconds.value == 9e-4
    assert found.seconds.high < 1.1 * found.seconds.low * 1.01
    assert found.bound == "compute"


def test_a_measured_rate_narrows_what_the_sheet_leaves_open() -> None:
    operations = (matrix(4096, 8192, 8192), cast(10**8), packed(4096, 8192, 8192))
    known = calibration(
        products=(measured(4096, 8192, 8192, 9e-4),),
        copies=(Sized(size=10**6, seconds=3e-6), Sized(size=10**9, seconds=4e-4)),
        dequantizations=(Sized(size=8192 * 8192, seconds=7e-5),),
    )
    for operation in operations:
        before, after = seconds(operation, H100), seconds(operation, H100, known)

        assert after.high / after.low < before.high / before.low


def test_a_packed_product_is_the_sum_of_what_was_measured() -> None:
    known = calibration(
        products=(measured(4096, 8192, 8192, 9e-4),),
        dequantizations=(Sized(size=8192 * 8192, seconds=7e-5),),
    )

    assert seconds(packed(4096, 8192, 8192), H100, known).value == pytest.approx(9.7e-4)


def test_no_table_makes_a_product_faster_than_its_traffic() -> None:
    known = calibration(products=(measured(8192, 8192, 8192, 1.6e-3),))
    narrow = matrix(8192, 16, 8192)

    assert seconds(narrow, H100, known).low == traffic(narrow) / H100.bandwidth


def test_a_small_copy_may_be_faster_than_memory() -> None:
    known = calibration(copies=(Sized(size=10**5, seconds=1e-8), Sized(size=10**7, seconds=1e-6)))

    assert seconds(cast(10**6), H100, known).value < 6e6 / H100.bandwidth


def test_what_was_not_measured_stays_with_the_sheet() -> None:
    known = calibration(products=(measured(64, 64, 64, 9e-6),))
    batches = Operation(
        "aten.bmm.default",
        (Spec((8, 64, 64), "bfloat16"),) * 2,
        (Spec((8, 64, 64), "bfloat16"),),
    )

    for operation in (cast(10**6), attend(512), matrix(64, 64, 64, "float32"), batches):
        assert cost(operation, H100, known) == cost(operation, H100)


def test_columns_of_outliers_are_multiplied_beside_the_8_bit_product() -> None:
    m, n, k = 1024, 8192, 8192

    def mixed(listed: int) -> float:
        inputs = (
            Spec((m, k), "bfloat16"),
            Spec((m, k), "int8"),
            Spec((n, k), "int8"),
            Spec((m,), "float32"),
            Spec((n,), "float32"),
            Spec((listed,), "int64"),
        )
        outputs = (Spec((m, n), "bfloat16"), Spec((m, listed), "bfloat16"))
        name = "bitsandbytes.int8_mixed_scaled_mm.default"
        alone, both = (
            cost(Operation(name, inputs, outputs[:count]), H100).seconds.value for count in (1, 2)
        )
        return both - alone

    assert mixed(0) == 0
    assert 0 < mixed(1) < mixed(k) / 4
    assert mixed(k) > cost(matrix(m, n, k), H100).seconds.value + n * k / GATHERED.value


def test_activations_with_outliers_take_the_columns_that_are_zeroed_as_well() -> None:
    rows, columns = 1024, 8192

    def quantized(listed: int) -> float:
        outputs = (
            Spec((rows, columns), "int8"),
            Spec((rows,), "float32"),
            Spec((listed,), "int64"),
        )
        name = "bitsandbytes.int8_vectorwise_quant.default"
        return cost(
            Operation(name, (Spec((rows, columns), "float16"),), outputs), H100
        ).seconds.value

    assert quantized(64) - quantized(0) == pytest.approx(
        rows * 64 / GATHERED.value + KERNEL_SECONDS.value
    )
