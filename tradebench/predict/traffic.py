"""Bytes that one call moves through a device's memory: what it reads and what it writes.

Every tensor is counted once, as if caches kept nothing between calls and everything within one.
Views are not recorded and so cost nothing; a broadcast factor is as small as it looks.
"""

from __future__ import annotations

from tradebench.predict.flops import packet
from tradebench.predict.operations import Operation

# They reserve memory, or look at it, and no kernel runs.
FREE = frozenset(
    {
        "aten.empty",
        "aten.empty_like",
        "aten.empty_strided",
        "aten.new_empty",
        "aten.new_empty_strided",
        "aten.lift_fresh",
        "aten.resize_",
        "aten.set_",
        "inductor.resize_storage_bytes_",
    }
)
# They take an input's shape, not its contents.
FILLS = frozenset(
    {
        "aten.full_like",
        "aten.new_full",
        "aten.new_ones",
        "aten.new_zeros",
        "aten.nll_loss_backward",
        "aten.ones_like",
        "aten.rand_like",
        "aten.randn_like",
        "aten.zeros_like",
    }
)
# They overwrite their first argument without a look at it.
OVERWRITES = frozenset({"aten.copy_", "aten.fill_", "aten.normal_", "aten.uniform_", "aten.zero_"})
# They write zeros everywhere, and then what they were given to its place.
PADS = frozenset({"aten.select_backward", "aten.slice_backward"})
# They read rows more than once, unless a row fits into what a block of threads shares; on an H200
# with torch 2.11, rows of 128,256 numbers took what these readings take (tests/gpu/profiles.py).
# Forward for the maximum, the sum and the result; backward the gradient for its sum and the result.
READINGS = {
    "aten._log_softmax": 3,
    "aten._softmax": 3,
    "aten._log_softmax_backward_data": 2,
    "aten._softmax_backward_data": 2,
}
SHARED_BYTES = 64 * 1024  # what every device of the catalogue has
# They read as much of their first argument as they put out.
GATHERS = frozenset({"aten.embedding", "aten.gather", "aten.index", "aten.index_select"})


def traffic(operation: Operation) -> int:
    """Bytes read and written by one call.

    An operation that writes into its arguments counts them twice, read and written; an optimizer's
    step reads parameters, gradients and both moments, and writes all of them but the gradients.
    """
    name, overload = packet(operation), operation.name.rpartition(".")[2]
    read = sum(each.bytes for each in operation.inputs)
    made = sum(each.bytes for each in operation.outputs)
    first = operation.inputs[0].bytes if operation.inputs else 0
    if name in FREE:
        return 0
    if name in FILLS:
        return made
    if name == "aten.nll_loss_forward":  # one score of each row
        return read - first + made
    if name in OVERWRITES:
        return read - first + made
    if name in PADS:
        return 2 * read + made
    if name in READINGS and operation.outputs[0].shape:
        row = operation.inputs[0]._replace(shape=operation.outputs[0].shape[-1:])
        again = 0 if row.bytes <= SHARED_BYTES else READINGS[name] - 1
        return read + again * first + made
    if name in GATHERS:
        return read - first + 2 * made
    if name == "aten._fused_adamw_":
        return read + _moments(operation)
    if name == "aten._foreach_copy_" or overload.endswith("out"):
        return read
    if name.startswith("aten._foreach_") and name.endswith("_"):
        # Two lists of equal length, of which the first is written; or one, with numbers.
        return read + (read // 2 if overload == "List" else read)
    return read + made


def _moments(operation: Operation) -> int:
    """What AdamW writes: of parameters, gradients and two moments, all but the gradients.

    Each comes as a list of its own, laid flat here, and after them the counters of steps.
    """
    tensors = [each.bytes for each in operation.inputs if each.shape]
    count = len(tensors) // 4
    return sum(tensors) - sum(tensors[count : 2 * count])
