"""A calibration: what one device really did, as tables from which other shapes are interpolated.

Data sheets promise and kernels deliver; how much differs from shape to shape. A calibration is a
small JSON file per device, with the shapes of a known model at several numbers of tokens. Between
two measured sizes the logarithm of the time is interpolated in the logarithm of the size; beyond
the largest, time grows in proportion; below the smallest it stays, since a kernel has a floor.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from tradebench.devices import Format
from tradebench.devices.files import read
from tradebench.interval import Interval
from tradebench.result import Environment, Record

SCHEMA = "tradebench.calibration/1"

# How far a prediction may be off, by where it is from: a measured shape (kernels vary from run to
# run), a size between two measured ones, one beyond them, and a shape that only resembles others.
# Targets, as long as no prediction has been held against a second measurement.
MEASURED, BETWEEN, BEYOND, ALIKE = 0.05, 0.10, 0.25, 0.40

Layout = Literal["forward", "inputs", "weights"]
Curve = Sequence[tuple[float, float]]  # (size, seconds), by rising size


class Product(Record):
    """Seconds of one m x k by k x n product, in the layout in which training needs it.

    `forward` multiplies by a weight, `inputs` and `weights` are the two products of its backward.
    """

    m: int
    n: int
    k: int
    format: Format
    layout: Layout
    seconds: float = Field(gt=0)

    @property
    def flops(self) -> int:
        """A multiply-add counts as two."""
        return 2 * self.m * self.n * self.k


class Attention(Record):
    """Seconds of scaled dot-product attention, forward and backward."""

    batch: int
    heads: int
    kv_heads: int
    sequence: int
    head_dim: int
    format: Format
    causal: bool
    forward: float = Field(gt=0)
    backward: float = Field(gt=0)


class Sized(Record):
    """Seconds of something whose size alone matters."""

    size: int = Field(gt=0)
    seconds: float = Field(gt=0)


class Calibration(Record):
    """What one device did.

    Attributes:
        device: The name by which the driver calls it.
        products: Matrix products.
        attentions: Attention.
        copies: Elementwise kernels, by the bytes that they read and write.
        dequantizations: 4-bit weights made 16 bits wide, by their elements.
        kernel_seconds: From one kernel of no size to the next, on the device.
        call_seconds: What the host needs to ask for one.
        sustained: Rate of a product after it has run for long, as a share of its first second's:
            power and heat lower clocks.
        took: Seconds that measuring took.
        left_out: What there was no time for.
        environment: Versions and hardware.
    """

    schema_: str = Field(SCHEMA, alias="schema")
    device: str
    products: tuple[Product, ...] = ()
    attentions: tuple[Attention, ...] = ()
    copies: tuple[Sized, ...] = ()
    dequantizations: tuple[Sized, ...] = ()
    kernel_seconds: float = Field(gt=0)
    call_seconds: float = Field(gt=0)
    sustained: float = Field(1.0, gt=0, le=1)
    took: float = 0.0
    left_out: tuple[str, ...] = ()
    environment: Environment = Environment()

    def product_seconds(self, format: Format, m: int, n: int, k: int) -> Interval | None:
        """Seconds of a matrix product; None where no product of this format was measured."""
        known = self._products.get(format)
        if known is None:
            return None
        shape = (m, n, k)
        if shape in known:
            return self._slower(Interval.around(known[shape], MEASURED))
        # Shapes that differ in one size only: a known weight at another number of tokens.
        lines = [
            (
                shape[axis],
                _curve((each[axis], known[each]) for each in known if _on(each, shape, axis)),
            )
            for axis in range(3)
        ]
        size, line = max(lines, key=lambda found: len(found[1]))
        if len(line) > 1:
            inside = line[0][0] <= size <= line[-1][0]
            found = Interval.around(_read(line, size), BETWEEN if inside else BEYOND)
        else:
            found = Interval.around(_resembling(known, shape), ALIKE)
        return self._slower(found)

    def attention_seconds(
        self, format: Format, head_dim: int, sequence: int, flops: int, *, backward: bool
    ) -> Interval | None:
        """Seconds of attention with so many FLOPs; None where none of this format was measured.

        Its rate is that of the measured sequence lengths, with heads as wide if there are any.
        """
        known = [each for each in self.attentions if each.format == format]
        if not known:
            return None
        width = min((each.head_dim for each in known), key=lambda each: abs(each - head_dim))
        known = [each for each in known if each.head_dim == width]
        # Seconds that this many FLOPs would have taken at each length.
        line = _curve(
            (
                each.sequence,
                (each.backward if backward else each.forward)
                * flops
                / _attention_flops(each, backward),
            )
            for each in known
        )
        inside = line[0][0] <= sequence <= line[-1][0]
        nearest = min(max(sequence, line[0][0]), line[-1][0])
        error = BETWEEN if inside and width == head_dim else BEYOND
        return self._slower(Interval.around(_read(line, nearest), error))

    def copy_seconds(self, size: int) -> Interval | None:
        """Seconds of an elementwise kernel that moves so many bytes; None without a measurement.

        A clock around one kernel also counts how long the host takes to launch it. Nothing waits
        for that in a queue: there it takes a start and its bytes at the highest rate, if less.
        """
        found = _sized(self.copies, size)
        if found is None:
            return None
        rate = max(each.size / each.seconds for each in self.copies)
        return found.or_less(Interval.around(self.kernel_seconds + size / rate, BETWEEN))

    def dequantize_seconds(self, elements: int) -> Interval | None:
        """Seconds to unpack so many elements of 4 bits; None without a measurement."""
        return _sized(self.dequantizations, elements)

    def to_json(self) -> str:
        """The file's content; floats survive as they are."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"

    @cached_property
    def _products(self) -> dict[Format, dict[tuple[int, int, int], float]]:
        """By format and shape; a square weight has two layouts of one shape, their mean counts."""
        found: dict[Format, dict[tuple[int, int, int], list[float]]] = {}
        for each in self.products:
            shapes = found.setdefault(each.format, {})
            shapes.setdefault((each.m, each.n, each.k), []).append(each.seconds)
        return {
            format: {shape: sum(times) / len(times) for shape, times in shapes.items()}
            for format, shapes in found.items()
        }

    def _slower(self, found: Interval) -> Interval:
        """What was measured in a burst, in a step that goes on: slower but for the low end."""
        return Interval(found.low, found.value / self.sustained, found.high / self.sustained)


def load(path: str | Path) -> Calibration:
    """Read a calibration.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    return read(path, Calibration, SCHEMA)


def _on(measured: tuple[int, ...], shape: tuple[int, ...], axis: int) -> bool:
    """Whether two shapes agree in all sizes but one."""
    return all(measured[each] == shape[each] for each in range(3) if each != axis)


def _curve(points: Iterable[tuple[float, float]]) -> Curve:
    """Points by rising size; where sizes repeat, their mean."""
    found: dict[float, list[float]] = {}
    for size, seconds in points:
        found.setdefault(size, []).append(seconds)
    return [(size, sum(times) / len(times)) for size, times in sorted(found.items())]


def _read(curve: Curve, size: float) -> float:
    """Seconds at a size, between the measured ones as both run in logarithms."""
    sizes = [point[0] for point in curve]
    place = bisect_left(sizes, size)
    if place == len(curve):
        return curve[-1][1] * size / sizes[-1]
    if place == 0:
        return curve[0][1]
    (left, before), (right, after) = curve[place - 1 : place + 1]
    share = math.log(size / left) / math.log(right / left)
    return math.exp((1 - share) * math.log(before) + share * math.log(after))


def _resembling(known: dict[tuple[int, int, int], float], shape: tuple[int, int, int]) -> float:
    """Seconds at the rate of the four nearest shapes, the nearer the heavier."""
    near = sorted(
        (
            math.dist([math.log(each) for each in other], [math.log(each) for each in shape]),
            math.log(math.prod(other) / seconds),
        )
        for other, seconds in known.items()
    )[:4]
    weights = [1 / distance**2 for distance, _ in near]
    rate = sum(weight * log for weight, (_, log) in zip(weights, near, strict=True)) / sum(weights)
    return math.prod(shape) / math.exp(rate)


def _attention_flops(measured: Attention, backward: bool) -> float:
    """Two products of sequence x sequence x head_dim forward, five backward; half if causal."""
    squares = measured.batch * measured.heads * measured.sequence**2
    whole = 2 * squares * measured.head_dim * (5 if backward else 2)
    return whole / 2 if measured.causal else whole


def _sized(measured: Sequence[Sized], size: int) -> Interval | None:
    line = _curve((each.size, each.seconds) for each in measured)
    if not line:
        return None
    inside = line[0][0] <= size <= line[-1][0]
    return Interval.around(_read(line, size), BETWEEN if inside else BEYOND)
