"""Calibrations: files that come back as they were, and tables that are read sensibly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.devices.calibration import (
    ALIKE,
    BETWEEN,
    BEYOND,
    MEASURED,
    Attention,
    Calibration,
    Product,
    Sized,
    load,
)
from tradebench.errors import UserError
from tradebench.interval import Interval
from tradebench.result import Environment

N, K = 1024, 512
TOKENS = (128, 512, 2048)
drawn = settings(derandomize=True, max_examples=60, deadline=None)


def took(m: int, n: int, k: int) -> float:
    """A device of 1 TFLOP/s that needs 10 µs to start."""
    return 1e-5 + 2 * m * n * k / 1e12


def made(**tables: object) -> Calibration:
    return Calibration.model_validate(
        {"device": "a device", "kernel_seconds": 2e-6, "call_seconds": 5e-6, **tables}
    )


def products(*shapes: tuple[int, int, int]) -> tuple[Product, ...]:
    return tuple(
        Product(m=m, n=n, k=k, format="bf16", layout="forward", seconds=took(m, n, k))
        for m, n, k in shapes
    )


def attention(sequence: int, width: int = 64, *, causal: bool = True) -> Attention:
    """Its forward runs at 100 GFLOP/s, its backward at 50."""
    flops = 4 * 2 * 8 * sequence**2 * width / (2 if causal else 1)
    return Attention(
        batch=2,
        heads=8,
        kv_heads=2,
        sequence=sequence,
        head_dim=width,
        format="bf16",
        causal=causal,
        forward=flops / 1e11,
        backward=2.5 * flops / 5e10,
    )


WEIGHT = made(products=products(*((m, N, K) for m in TOKENS)))


def seconds_of(calibration: Calibration, m: int, n: int, k: int) -> Interval:
    found = calibration.product_seconds("bf16", m, n, k)
    assert found is not None
    return found


def error(found: Interval) -> float:
    return found.high / found.value - 1


# Files.


def test_a_calibration_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    written = made(
        products=products((3, 5, 7)),
        attentions=(attention(100),),
        copies=(Sized(size=10, seconds=1 / 3),),
        dequantizations=(Sized(size=10, seconds=2 / 3),),
        sustained=0.9,
        left_out=("something",),
        environment=Environment(software={"torch": "2.13.0"}),
    )
    file = tmp_path / "device.json"
    file.write_text(written.to_json())

    assert load(file) == written
    assert json.loads(file.read_text())["schema"] == "tradebench.calibration/1"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "holds no calibration: the file: Invalid JSON"),
        ("{}", "holds no calibration: device: Field required"),
        ('{"device": "x", "kernel_seconds": 0, "call_seconds": 1}', "kernel_seconds: Input should"),
        (
            '{"schema": "other/1", "device": "x", "kernel_seconds": 1, "call_seconds": 1}',
            "is 'other/1', not 'tradebench.calibration/1'",
        ),
    ],
)
def test_another_file_is_refused_in_one_line(content: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        load(file)

    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load(tmp_path / "nothing.json")


# Products.


def test_a_measured_shape_takes_what_it_took() -> None:
    for m in TOKENS:
        found = seconds_of(WEIGHT, m, N, K)

        assert found.value == pytest.approx(took(m, N, K))
        assert error(found) == pytest.approx(MEASURED)


@drawn
@given(st.integers(128, 2048), st.integers(0, 2))
def test_between_two_measurements_time_lies_between_them_whatever_the_dimension(
    size: int, axis: int
) -> None:
    shapes = [_put((N, K), axis, tokens) for tokens in TOKENS]
    known = made(products=products(*shapes))
    m, n, k = _put((N, K), axis, size)
    found = seconds_of(known, m, n, k)
    below = max(tokens for tokens in TOKENS if tokens <= size)
    above = min(tokens for tokens in TOKENS if tokens >= size)

    assert took(below, N, K) <= found.value * (1 + 1e-9)
    assert found.value <= took(above, N, K) * (1 + 1e-9)
    # A straight line in logarithms is within a few percent of this device.
    assert found.value == pytest.approx(took(size, N, K), rel=0.1)
    assert error(found) == pytest.approx(MEASURED if size in TOKENS else BETWEEN)


def _put(others: tuple[int, int], axis: int, size: int) -> tuple[int, int, int]:
    one, other = others
    return ((size, one, other), (one, size, other), (one, other, size))[axis]


@drawn
@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_more_rows_never_take_less(one: int, other: int) -> None:
    fewer, more = sorted((one, other))

    assert seconds_of(WEIGHT, fewer, N, K).value <= seconds_of(WEIGHT, more, N, K).value * (
        1 + 1e-12
    )


def test_beyond_the_largest_time_grows_in_proportion_and_below_the_smallest_it_stays() -> None:
    large, small = seconds_of(WEIGHT, 20480, N, K), seconds_of(WEIGHT, 1, N, K)

    assert large.value == pytest.approx(10 * took(2048, N, K))
    assert small.value == pytest.approx(took(128, N, K))
    assert error(large) == error(small) == pytest.approx(BEYOND)


def test_an_unknown_weight_runs_at_the_rate_of_those_that_resemble_it() -> None:
    known = made(products=products(*((m, N, K) for m in TOKENS), *((m, 2 * N, K) for m in TOKENS)))
    found = seconds_of(known, 512, 1500, 600)

    assert found.value == pytest.approx(took(512, 1500, 600), rel=0.1)
    assert error(found) == pytest.approx(ALIKE)


def test_a_square_weight_has_two_layouts_and_their_mean_counts() -> None:
    twice = tuple(
        Product(m=8, n=64, k=64, format="bf16", layout=layout, seconds=seconds)
        for layout, seconds in (("forward", 1.0), ("inputs", 3.0))
    )

    assert seconds_of(made(products=twice), 8, 64, 64).value == 2.0


def test_another_format_was_not_measured() -> None:
    assert WEIGHT.product_seconds("fp32", 128, N, K) is None


def test_a_rate_that_sags_makes_all_but_the_low_end_slower() -> None:
    plain, tired = (
        seconds_of(made(products=products((64, N, K)), sustained=sustained), 64, N, K)
        for sustained in (1.0, 0.8)
    )

    assert tired == Interval(plain.low, plain.value / 0.8, plain.high / 0.8)


# Attention.


@pytest.mark.parametrize(("backward", "rate"), [(False, 1e11), (True, 5e10)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_takes_its_flops_at_the_measured_rate(
    backward: bool, rate: float, causal: bool
) -> None:
    known = made(attentions=tuple(attention(s, causal=causal) for s in (128, 1024)))
    for sequence in (1, 128, 300, 1024, 10**5):
        found = known.attention_seconds("bf16", 64, sequence, 10**9, backward=backward)

        assert found is not None
        assert found.value == pytest.approx(1e9 / rate)
        assert error(found) == pytest.approx(BETWEEN if 128 <= sequence <= 1024 else BEYOND)


def test_heads_of_another_width_are_known_less_well() -> None:
    known = made(attentions=(attention(128, 64), attention(128, 128)))
    alike = known.attention_seconds("bf16", 64, 128, 10**9, backward=False)
    other = known.attention_seconds("bf16", 72, 128, 10**9, backward=False)

    assert alike is not None
    assert other is not None
    assert other.value == pytest.approx(alike.value)
    assert error(alike) < error(other)
    assert known.attention_seconds("fp32", 64, 128, 10**9, backward=False) is None


# What has but a size.


def test_copies_have_a_floor_and_a_slope() -> None:
    known = made(
        copies=tuple(Sized(size=s, seconds=max(2e-6, s / 1e12)) for s in (10**4, 10**6, 10**9))
    )
    found = {size: known.copy_seconds(size) for size in (1, 10**4, 10**6, 10**10)}
    values = {size: each.value for size, each in found.items() if each is not None}

    assert values == pytest.approx({1: 2e-6, 10**4: 2e-6, 10**6: 2e-6, 10**10: 1e-2})


def test_a_launch_that_a_clock_counted_is_none_of_a_queued_kernels_time() -> None:
    known = made(
        kernel_seconds=2e-6,
        copies=tuple(Sized(size=s, seconds=1e-5 + s / 1e12) for s in (10**4, 10**6, 10**10)),
    )
    small, large = known.copy_seconds(10**6), known.copy_seconds(10**10)

    assert small is not None
    assert large is not None
    assert small.value == pytest.approx(2e-6 + 10**6 / 1e12, rel=0.01)
    assert large.value == pytest.approx(1e-5 + 10**10 / 1e12)


@drawn
@given(st.integers(1, 10**7))
def test_a_curve_that_is_a_power_is_read_exactly(size: int) -> None:
    known = made(dequantizations=tuple(Sized(size=s, seconds=s**0.7) for s in (1, 100, 10**7)))
    found = known.dequantize_seconds(size)

    assert found is not None
    assert math.isclose(found.value, size**0.7, rel_tol=1e-9)


def test_an_empty_table_says_nothing() -> None:
    assert made().copy_seconds(10) is None
    assert made().dequantize_seconds(10) is None
