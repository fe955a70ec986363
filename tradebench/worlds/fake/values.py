"""The values that a program without weights still has: tokens, labels, masks, positions.

Programs look at them: they count answer tokens, compare positions, pick the rows that carry a
label. What they find decides shapes, so it must be what they would really find. Values follow
integers and booleans through every operation whose inputs are all known. All others, those that
weights would decide, are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from tradebench.worlds.fake.mode import Mode
from tradebench.worlds.memory import tensors_in

aten = torch.ops.aten

NOTE = "true_value"  # the attribute of a fake tensor that holds its value
LARGEST = 2**24  # elements; what follows from tokens is far smaller
UNINITIALISED = frozenset(
    {
        aten.empty,
        aten.empty_like,
        aten.empty_permuted,
        aten.empty_strided,
        aten.new_empty,
        aten.new_empty_strided,
    }
)


class Values(Mode):
    """Keeps the value of a fake tensor beside it; entered after FakeTensorMode.

    Where a program asks for a number that nobody knows, such as a loss, it gets one: finite, not
    zero, and False where it asks whether something is so.
    """

    def run(
        self, func: OpOverload[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run the operation and work out the value of its result where all inputs are known."""
        if func is aten._local_scalar_dense.default:
            return _number(args[0])
        inputs = tensors_in((*args, *kwargs.values()))
        known = all(value_of(tensor) is not None for tensor in inputs)
        if torch.Tag.dynamic_output_shape in func.tags:
            if known:
                return _shaped_by_value(func, args, kwargs)
            if func is aten.index.Tensor:
                args = (args[0], list(_counted(args[1])))
        result = func(*args, **kwargs)
        if known and _follows(func, result):
            _keep(result, _compute(func, args, kwargs))
        elif func._schema.is_mutable:
            _forget_written(func, args, kwargs)
        return result


def value_of(tensor: Tensor) -> Tensor | None:
    """The true value of a tensor, or None where it is not known."""
    if not isinstance(tensor, FakeTensor):  # data that is just entering the world
        return None if tensor.is_floating_point() else tensor
    value: Tensor | None = getattr(tensor, NOTE, None)
    if value is None or getattr(value.untyped_storage(), "overwritten", False):
        return None
    return value


def _number(tensor: Tensor) -> bool | int | float:
    value = value_of(tensor)
    if value is None:
        return {torch.bool: False}.get(tensor.dtype, 1.0 if tensor.is_floating_point() else 1)
    with _disable_current_modes():
        return value.item()


def _follows(func: OpOverload[..., Any], result: Any) -> bool:
    """Whether the result of an operation on known values is certain, and worth knowing."""
    tensors = list(tensors_in([result]))
    return (
        bool(tensors)
        and func.overloadpacket not in UNINITIALISED
        and torch.Tag.nondeterministic_seeded not in func.tags
        and all(not t.is_floating_point() and t.numel() <= LARGEST for t in tensors)
    )


def _compute(func: OpOverload[..., Any], args: Any, kwargs: Any) -> Any:
    with _disable_current_modes():
        return func(
            *tree_map_only(Tensor, value_of, args), **tree_map_only(Tensor, value_of, kwargs)
        )


def _shaped_by_value(func: OpOverload[..., Any], args: Any, kwargs: Any) -> Any:
    """The result of an operation whose shape depends on values, such as nonzero."""
    value = _compute(func, args, kwargs)
    result = tree_map_only(
        Tensor, lambda part: torch.empty_strided(part.shape, part.stride(), dtype=part.dtype), value
    )
    _keep(result, value)
    return result


def _counted(indices: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
    """Known masks as the integer indices that they stand for, so that their number is known."""
    for index in indices:
        value = None if index is None or index.dtype != torch.bool else value_of(index)
        if value is None:
            yield index
            continue
        with _disable_current_modes():
            count = int(value.sum())
        for _ in range(value.dim()):
            yield torch.empty(count, dtype=torch.long)


def _keep(result: Any, value: Any) -> None:
    for tensor, found in zip(tensors_in([result]), tensors_in([value]), strict=True):
        setattr(tensor, NOTE, found)


def _forget_written(
    func: OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """What an unknown value was written over, and every view of it, is not known any more."""
    arguments = func._schema.arguments
    names = (argument.name for argument in arguments)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    written = (
        given.get(argument.name)
        for argument in arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    for value in map(value_of, tensors_in(written)):
        if value is not None:
            value.untyped_storage().overwritten = True  # type: ignore[attr-defined]  # a note
