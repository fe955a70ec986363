"""Blending: a record between two others that differ in one number, such as an adapter's rank.

Where that number is one dimension of some tensors, sizes are affine in it: two records give all
between them and beyond, to the byte. Nothing is fitted: both records must do the same operations in
the same order, and a tensor in which the number shows twice is refused.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from tradebench.predict.operations import Operation, Spec
from tradebench.predict.record import Record
from tradebench.predict.recorder import CALL, HostPeak
from tradebench.predict.structure import StructureError


def blend(low: Record, high: Record, weight: Fraction) -> Record:
    """The record at `weight` of the way from `low` (0) to `high` (1).

    Raises:
        StructureError: the two do not do the same, or something is not affine.
    """
    same = (
        np.array_equal(np.minimum(low.events, CALL), np.minimum(high.events, CALL))
        and np.array_equal(low.layers, high.layers)
        and np.array_equal(low.categories, high.categories)
        and _paths(low) == _paths(high)
        and low.marks == high.marks
    )
    if not same:
        raise StructureError("the two records do not do the same")
    grown = (high.sizes - low.sizes) * weight.numerator
    if (grown % weight.denominator).any():
        raise StructureError("a size between the two is no whole number")
    events, operations = _operations(low, high, weight)
    return replace(
        low,
        events=events,
        sizes=low.sizes + grown // weight.denominator,
        operations=operations,
        host=_host(low.host, high.host, weight),
    )


def _host(low: HostPeak, high: HostPeak, weight: Fraction) -> HostPeak:
    """What lies on the host: where it is most at the same moment at both ends, so it is between."""
    if low.position != high.position or low.layers.keys() != high.layers.keys():
        raise StructureError("the most is on the host at another moment")
    layers = {
        layer: size + (high.layers[layer] - size) * weight for layer, size in low.layers.items()
    }
    if any(size.denominator != 1 for size in layers.values()):
        raise StructureError("a size between the two is no whole number")
    return HostPeak(low.position, {layer: int(size) for layer, size in layers.items()})


def _paths(record: Record) -> list[str]:
    return [record.modules[index] for index in record.paths]


def _operations(
    low: Record, high: Record, weight: Fraction
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], tuple[Operation, ...]]:
    """Events that name blended operations, and those operations."""
    calls = low.events >= CALL
    pairs = np.stack([low.events[calls], high.events[calls]]) - CALL
    kinds, numbers = np.unique(pairs, axis=1, return_inverse=True)
    made = [
        _operation(low.operations[one], high.operations[other], weight) for one, other in kinds.T
    ]
    # Two that differ at one end alone, as by how a single row lies, may be one in between.
    places: dict[Operation, int] = {}
    own = np.array([places.setdefault(each, len(places)) for each in made], dtype=np.int64)
    events = low.events.copy()
    events[calls] = CALL + own[numbers.ravel()]
    return events, tuple(places)


def _operation(low: Operation, high: Operation, weight: Fraction) -> Operation:
    if low == high:
        return low
    if (low.name, len(low.inputs), len(low.outputs)) != (
        high.name,
        len(high.inputs),
        len(high.outputs),
    ):
        raise StructureError(f"{low.name} in one record is {high.name} in the other")
    inputs, outputs = (
        tuple(_spec(one, other, weight) for one, other in zip(ours, theirs, strict=True))
        for ours, theirs in ((low.inputs, high.inputs), (low.outputs, high.outputs))
    )
    return Operation(low.name, inputs, outputs)


def _spec(low: Spec, high: Spec, weight: Fraction) -> Spec:
    if low == high:
        return low
    if low.dtype != high.dtype or len(low.shape) != len(high.shape):
        raise StructureError("a tensor has another format or number of dimensions")
    shape = tuple(
        one + (other - one) * weight for one, other in zip(low.shape, high.shape, strict=True)
    )
    if sum(one != other for one, other in zip(low.shape, high.shape, strict=True)) > 1:
        raise StructureError("the number shows twice in the shape of a tensor")
    if any(Fraction(size).denominator != 1 for size in shape):
        raise StructureError("a dimension between the two is no whole number")
    # A dimension of one element has no order: the larger tensor tells.
    return Spec(tuple(int(size) for size in shape), low.dtype, high.layout)
