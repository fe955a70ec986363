"""Kernels that cannot keep pace with memory: what their own instructions take.

An elementwise kernel streams at the memory's speed where all its tensors lie alike and have one
format. torch compiles others for whatever comes: they work out where each element lies, or ask for
its format as they go, and instructions decide how long that takes, whatever the bytes. Reducing
short rows likewise costs per row. Which kernel an operation gets is read off its tensors, as in
torch's `CUDALoops.cuh`, `Loops.cuh` and `Reduce.cuh`.

Constants are in fp32 operations of the device's vector units, in whose time one element is done.
They were worked out from a profile of one training step each of six techniques on an H200 with
torch 2.11 (tests/gpu/profiles.py), of which one card is no proof for another: hence their spread.
"""

from __future__ import annotations

from itertools import zip_longest

from tradebench.devices import Device
from tradebench.interval import NOTHING, Interval
from tradebench.predict.flops import attention, packet, product
from tradebench.predict.operations import Operation, Spec
from tradebench.predict.traffic import FILLS, FREE, GATHERS

# How far one card's kernels, of one version of torch, may be from another's: an estimate. The
# figures that each constant is the middle of lie within a fifth of it.
SPREAD = 0.4
# Some tensor is broadcast or has gaps: 2.3 to 2.8 ps (products, sums, shifts, choices).
INDEXED = Interval.around(167, SPREAD)
# What is written lies apart: 4.2 ps (what a 2:4 weight unpacks to).
APART = Interval.around(281, SPREAD)
# Rows of one are columns of another: 6.0 to 7.4 ps (copies of transposed weights, sums with them).
TURNED = Interval.around(435, SPREAD)
# For each tensor of a kernel that casts: 1.3 to 1.5 ps (bf16 and uint8 to wider, sums of both).
CASTING = Interval.around(97, SPREAD)
# For each row that is reduced on its own, a warp's work: 320 ps (extremes of groups of 32).
ROW = Interval.around(21700, SPREAD)

# Formats that fp32 is narrowed to by kernels of their own, which stream.
NARROW = frozenset({"bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"})
COPIES = frozenset({"aten._to_copy", "aten.clone", "aten.contiguous", "aten.copy_"})
REDUCTIONS = frozenset(
    {
        "aten.all",
        "aten.amax",
        "aten.amin",
        "aten.any",
        "aten.aminmax",
        "aten.linalg_vector_norm",
        "aten.max",
        "aten.mean",
        "aten.min",
        "aten.norm",
        "aten.prod",
        "aten.std",
        "aten.sum",
        "aten.var",
    }
)
# They reduce a copy that lies in rows, where their input does not (`max_all` in ReduceAllOps.cpp).
EXTREMES = frozenset({"aten.max.default", "aten.min.default"})


def instructions(operation: Operation, device: Device) -> Interval:
    """Seconds that a kernel's own instructions take; none of one that streams."""
    return _operations(operation).times(1 / device.rates["fp32"])


def hidden_copy(operation: Operation) -> Operation | None:
    """The copy that an operation makes of its input before it starts; None if it makes none."""
    if operation.name not in EXTREMES or operation.inputs[0].layout == "rows":
        return None
    source = operation.inputs[0]
    return Operation("aten.clone.default", (source,), (source._replace(layout="rows"),))


def _operations(operation: Operation) -> Interval:
    """How many fp32 operations a device's vector units could do meanwhile."""
    name = packet(operation)
    if name in REDUCTIONS:
        return ROW.times(_rows(operation))
    if not name.startswith("aten.") or name in FREE | FILLS | GATHERS:
        return NOTHING
    if product(operation) is not None or attention(operation) is not None:
        return NOTHING
    written = _written(operation)
    if written is None or not written.shape:
        return NOTHING
    tensors = [written, *operation.inputs]
    if not operation.outputs:
        tensors = list(operation.inputs)
    # Numbers are passed on as they are.
    full = [each for each in tensors if each.elements == written.elements]
    return _per_element(name, written, tensors, full).times(written.elements)


def _per_element(name: str, written: Spec, tensors: list[Spec], full: list[Spec]) -> Interval:
    """By the kernel that torch picks."""
    layouts = {each.layout for each in full}
    found = NOTHING
    if len(full) < len(tensors) or layouts & {"gapped", "apart"} or len(layouts) > 1:
        found = INDEXED
    if written.layout == "apart":
        found = found.or_more(APART)
    if "turned" in layouts and len(layouts) > 1:
        found = found.or_more(TURNED)
    formats = {each.dtype for each in tensors if each.shape}
    # Comparisons and conditions are of a format that no kernel asks for.
    if len(formats - {"bool"}) > 1 and not _narrows(name, written, full):
        found = found.or_more(CASTING.times(len(full)))
    return found


def _narrows(name: str, written: Spec, full: list[Spec]) -> bool:
    """Whether fp32 is copied into fewer bits."""
    return name in COPIES and written.dtype in NARROW and full[-1].dtype == "float32"


def _written(operation: Operation) -> Spec | None:
    """What an elementwise operation writes; None where an operation is of another kind."""
    name = packet(operation)
    if "softmax" in name or "_foreach_" in name or "_fused_" in name:
        return None
    if len(operation.outputs) == 1:
        written = operation.outputs[0]
    elif operation.outputs or not operation.inputs:
        return None
    else:
        written = operation.inputs[-1 if operation.name.endswith("out") else 0]
    others = operation.inputs
    if not others or not all(_spreads(each.shape, written.shape) for each in others):
        return None
    return written


def _spreads(shape: tuple[int, ...], over: tuple[int, ...]) -> bool:
    """Whether a tensor of one shape is broadcast to another, or has it."""
    pairs = zip_longest(reversed(shape), reversed(over))
    return all(size in (None, 1, wide) for size, wide in pairs)


def _rows(operation: Operation) -> int:
    """How many rows are reduced to a number each; none where columns are, or everything."""
    if not operation.outputs or not operation.inputs:
        return 0
    source, made = operation.inputs[0].shape, operation.outputs[0].shape
    left = list(made)
    while left and left[-1] == 1:
        left.pop()
    inner = len(left) < len(source) and tuple(left) == source[: len(left)]
    return operation.outputs[0].elements if inner and left else 0
