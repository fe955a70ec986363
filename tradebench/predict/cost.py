"""Seconds of one operation on a device: a roofline from its data sheet, or what was measured.

A kernel takes as long as its arithmetic, its memory traffic or its own instructions, whichever is
longest, and a moment to start. Without a calibration the shares of the data sheet's rates that
kernels reach are the constants below, wide enough for any device of the catalogue: such a
prediction ranks techniques rather than times them. They belong to eager kernels, one per operation;
a compiler that fuses them spares traffic that is counted here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from tradebench.devices import Device
from tradebench.devices.calibration import Calibration
from tradebench.interval import NOTHING, Interval, exactly
from tradebench.predict.flops import SPARSE, arithmetic, attention, flops, packet, product
from tradebench.predict.hidden import OUTLIERS_APART
from tradebench.predict.kernels import hidden_copy, instructions
from tradebench.predict.operations import Operation, Spec
from tradebench.predict.traffic import FREE, traffic

Bound = Literal["compute", "bandwidth", "launch"]

# Share of the dense rate that the best of many products of 16 bits reached, by architecture: A100
# SXM, H100 SXM and H200, B200, MI300X ("Maximum Achievable Matmul FLOPS", Bekman, Machine Learning
# Engineering Open Book). Where nothing was published, the middle of these stands in.
BEST_PRODUCT = {"sm_80": 0.86, "sm_90": 0.80, "sm_100": 0.78, "gfx942": 0.60}
BEST_ELSEWHERE = 0.80
# How a model's own large shapes compare with the best: an estimate.
PRODUCT_SHARE = Interval(0.55, 0.85, 1.0)
# Share of the dense rate in flash attention, forward and backward: up to 73 % and 63 % on an A100
# (Dao 2023, arXiv:2307.08691), 35 % of an H100 by the same kernels and up to 75 % by later ones
# (Shah et al. 2024, arXiv:2407.08608); short sequences stay below.
ATTENTION_SHARE = Interval(0.20, 0.42, 0.75)
# Share of the memory bandwidth that streaming kernels reach: an estimate. Reductions, casts and
# short tensors stay below a plain copy.
BANDWIDTH_SHARE = Interval(0.55, 0.80, 0.93)
# From the end of one queued kernel to full speed of the next: an estimate.
KERNEL_SECONDS = Interval(1e-6, 2.5e-6, 5e-6)
# What the host's time for a call in a loop becomes in a program, where views, autograd, modules and
# Python come on top. By the host of an H200 (torch 2.11, 7.3 us for a call in a loop) steps of
# torchao's optimizers, which nothing but the host decides, took 2.9 to 4.1 times as long for each
# recorded operation, and narrow models, which run through many modules for few operations, about 6.
CALL_FACTOR = Interval(2.0, 3.5, 6.0)
# The same in seconds, for a host that nobody measured: an estimate from that one.
CALL_SECONDS = Interval(8e-6, 20e-6, 45e-6)

# bitsandbytes 0.50.2, backends/cuda/ops.py: products of 4-bit weights run in one fused kernel for
# up to 4 rows of activations, unpack the weight first for more than 1536, and are decided by tables
# of architectures and shapes between, in favour of what was measured to be faster.
FUSED_ROWS, UNPACKED_ROWS = 4, 1536

# How much faster a product with a 2:4 weight is than the dense one: tensor cores skip half of the
# work at best. On an H200 with torch 2.11 and 2048 tokens by the weights of Llama-3.3-70B they took
# longer: 0.77 (tests/gpu/profiles.py).
SPARSE_SPEEDUP = Interval(0.6, 0.77, 2.0)


# Elements a second of columns that torch picks out of a matrix, or fills, by a list of them; its
# kernel is bound by arithmetic on addresses, not by traffic. An estimate: what LLM.int8() lost on
# an H200 to the columns of outliers is explained by 27 to 35 thousand million.
GATHERED = Interval(20e9, 30e9, 100e9)


class Cost(NamedTuple):
    """What one call takes, and what decides it."""

    seconds: Interval
    bound: Bound


def cost(operation: Operation, device: Device, calibration: Calibration | None = None) -> Cost:
    """Seconds of one call on the device alone, and what bounds it.

    Collectives are no work of one device: see `collectives`.
    """
    name = packet(operation)
    if name in FREE or not (operation.inputs or operation.outputs):
        return Cost(NOTHING, "launch")
    if name == "bitsandbytes.gemm_4bit":
        return _packed_product(operation, device, calibration)
    if name == SPARSE:
        return _sparse_product(operation, device, calibration)
    copied = hidden_copy(operation)
    if copied is not None:
        rows = operation._replace(inputs=copied.outputs)
        before, then = (cost(each, device, calibration) for each in (copied, rows))
        return Cost(before.seconds + then.seconds, before.bound)
    if name == "bitsandbytes.int8_vectorwise_quant" and len(operation.outputs) > 2:
        return _outliers_listed(operation, device, calibration)
    if operation.name == OUTLIERS_APART and len(operation.outputs) > 1:
        return _mixed_product(operation, device, calibration)
    promised = _promised(operation, device)
    measured = None if calibration is None else _measured(operation, calibration)
    if calibration is None or measured is None:
        return promised
    found = measured
    if product(operation) is not None:
        # A shape that only resembles a measured one may have more traffic for its arithmetic.
        # Small copies are left alone: they find their data in a cache, in a model as when measured.
        found = measured.or_more(exactly(traffic(operation) / device.bandwidth))
    found = found.or_more(instructions(operation, device))
    small = found.value < 2 * calibration.kernel_seconds
    return Cost(found, "launch" if small else promised.bound)


def seconds(
    operation: Operation, device: Device, calibration: Calibration | None = None
) -> Interval:
    """Seconds of one call on the device alone."""
    return cost(operation, device, calibration).seconds


def _promised(operation: Operation, device: Device) -> Cost:
    """By the data sheet: the longest of arithmetic, traffic and instructions, and a start."""
    # A format without units of its own is widened to 16 bits on the way in.
    rate = device.rates.get(arithmetic(operation), device.rates["bf16"])
    best = BEST_PRODUCT.get(device.architecture, BEST_ELSEWHERE)
    share = PRODUCT_SHARE.times(best) if attention(operation) is None else ATTENTION_SHARE
    compute = exactly(flops(operation)).per(share.times(rate))
    compute = compute.or_more(instructions(operation, device))
    memory = exactly(traffic(operation)).per(BANDWIDTH_SHARE.times(device.bandwidth))
    work = compute.or_more(memory)
    bound: Bound = "compute" if compute.value > memory.value else "bandwidth"
    if KERNEL_SECONDS.value > work.value:
        bound = "launch"
    return Cost(work + KERNEL_SECONDS, bound)


def _measured(operation: Operation, calibration: Calibration) -> Interval | None:
    """By the tables of a calibration, where they have anything alike."""
    shape, attended = product(operation), attention(operation)
    if shape is not None:
        batch, m, n, k = shape
        # Batches of small products are nothing like one product.
        return calibration.product_seconds(arithmetic(operation), m, n, k) if batch == 1 else None
    if attended is not None:
        return calibration.attention_seconds(
            arithmetic(operation),
            attended.query.shape[-1],
            attended.query.shape[-2],
            flops(operation),
            backward=attended.backward,
        )
    if packet(operation) == "bitsandbytes.dequantize_4bit":
        # An `.out` overload returns nothing; what it writes is its last argument.
        unpacked = (operation.outputs or operation.inputs[-1:])[0]
        return calibration.dequantize_seconds(unpacked.elements)
    return calibration.copy_seconds(max(1, traffic(operation)))


def _packed_product(operation: Operation, device: Device, calibration: Calibration | None) -> Cost:
    """A product with a 4-bit weight: fused, or unpacked first and multiplied then."""
    shape = product(operation)
    assert shape is not None, operation.name
    _, m, n, k = shape
    fused = _promised(operation, device)
    if m <= FUSED_ROWS:
        return fused
    format = operation.inputs[0].dtype
    weight, output = Spec((n, k), format), Spec((m, n), format)
    unpack = Operation("bitsandbytes.dequantize_4bit.default", operation.inputs[1:], (weight,))
    multiply = Operation("aten.mm.default", (Spec((m, k), format), Spec((k, n), format)), (output,))
    unpacked, multiplied = (cost(each, device, calibration) for each in (unpack, multiply))
    both = unpacked.seconds + multiplied.seconds
    if m <= UNPACKED_ROWS:
        # Only where it is faster does the library fuse.
        both = Interval(min(fused.seconds.low, both.low), both.value, both.high)
    longer = max(unpacked, multiplied, key=lambda each: each.seconds.value)
    return Cost(both, longer.bound)


def _sparse_product(operation: Operation, device: Device, calibration: Calibration | None) -> Cost:
    """A product with a 2:4 weight, by what the dense one takes."""
    _, inputs = operation.inputs[:2]
    (output,) = operation.outputs
    columns, tokens = inputs.shape
    states = Spec((tokens, columns), inputs.dtype)
    weight = Spec((columns, output.shape[1]), inputs.dtype)
    multiply = Operation("aten.mm.default", (states, weight), (output,))
    dense = cost(multiply, device, calibration)
    return Cost(dense.seconds.per(SPARSE_SPEEDUP), dense.bound)


def _mixed_product(operation: Operation, device: Device, calibration: Calibration | None) -> Cost:
    """A product of 8 bits, and one of 16 bits for the columns of activations that hold outliers.

    Those of the weight that meet them are dequantized in four kernels (bitsandbytes 0.50.2,
    backends/default/ops.py).
    """
    weight, _, scales = operation.inputs[2:5]
    output, kept = operation.outputs
    integers = operation._replace(outputs=(output,))
    if not kept.elements:
        return cost(integers, device, calibration)
    narrow = Spec((weight.shape[0], kept.shape[-1]), weight.dtype)
    wide, cast = narrow._replace(dtype=scales.dtype), narrow._replace(dtype=kept.dtype)
    transposed = cast._replace(shape=cast.shape[::-1])
    each = [
        cost(made, device, calibration)
        for made in (
            integers,
            Operation("aten.mul.Tensor", (narrow, scales), (wide,)),
            Operation("aten.mul.Tensor", (wide,), (wide,)),
            Operation("aten._to_copy.default", (wide,), (cast,)),
            Operation("aten.addmm.default", (output, kept, transposed), (output,)),
        )
    ]
    each += [Cost(_gathered(columns), "bandwidth") for columns in (kept, narrow)]
    taken = sum((found.seconds for found in each), NOTHING)
    return Cost(taken, max(each, key=lambda found: found.seconds.value).bound)


def _outliers_listed(operation: Operation, device: Device, calibration: Calibration | None) -> Cost:
    """Activations made 8 bits wide, and zero in the columns that hold outliers."""
    rows, _, listed = operation.outputs
    found = cost(operation._replace(outputs=operation.outputs[:2]), device, calibration)
    if not listed.elements:
        return found
    columns = rows._replace(shape=(rows.elements // rows.shape[-1], listed.elements))
    return Cost(found.seconds + _gathered(columns), found.bound)


def _gathered(columns: Spec) -> Interval:
    """Seconds of picking these columns out of a matrix, or of filling them."""
    return exactly(columns.elements).per(GATHERED) + KERNEL_SECONDS
