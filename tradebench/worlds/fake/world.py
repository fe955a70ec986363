"""What surrounds a program in the fake world.

A few places in libraries turn fake tensors away, or treat them otherwise than real ones. Each is
replaced while the world lasts by what the same code does with real tensors: those of a CPU or,
where the world stands for a GPU, those of CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any, Literal

# Imported before any tensor is fake: they make tables while they load.
import bitsandbytes.functional
import peft  # noqa: F401
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers.utils import import_utils

from tradebench.worlds.fake.cuda import CUDA
from tradebench.worlds.fake.host import OFFLOADING, Host
from tradebench.worlds.fake.outliers import OUTLIERS, Outliers
from tradebench.worlds.fake.sharding import SHARDING, fake_group
from tradebench.worlds.fake.values import NOTE, Values

_make_real = Tensor._make_subclass
_kinds: dict[type, type] = {}


@contextmanager
def fake_world(
    target: Literal["cpu", "cuda"] = "cpu", ranks: int = 1, outliers: Outliers = "none"
) -> Iterator[None]:
    """Make every tensor that is made inside a fake one, in the whole process.

    Tensors say that they lie on a CPU in any case. What libraries do with them is what they do on
    `target`; only there does what is offloaded to the host leave the device. The process is the
    first of so many `ranks`. LLM.int8() finds outliers in none or in all columns of its inputs.
    """
    places: tuple[tuple[Any, str, Any], ...] = (
        (import_utils, "is_fake_tensor", _looks_real),
        (Tensor, "_make_subclass", _make_subclass),
        (torch.utils, "swap_tensors", _take_data),
        (FakeTensor, "__deepcopy__", _deep_copy),
        # A table that bitsandbytes makes once per process: a fake one must not outlive the world.
        (bitsandbytes.functional, "name2qmap", {}),
        *OUTLIERS[outliers],
        *SHARDING,
        *((*CUDA, *OFFLOADING) if target == "cuda" else ()),
    )
    with ExitStack() as stack:
        for owner, name, instead in places:
            stack.enter_context(replaced(owner, name, instead))
        stack.enter_context(fake_group(ranks))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(Values())
        if target == "cuda":
            stack.enter_context(Host())
        yield


@contextmanager
def replaced(owner: Any, name: str, instead: Any) -> Iterator[None]:
    """Another value for an attribute; one that was inherited is inherited again afterwards."""
    own = vars(owner).get(name)
    setattr(owner, name, instead)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _looks_real(tensor: object) -> bool:
    """Let transformers look at positions to see whether sequences are packed.

    It takes those of a fake tensor for packed unseen, which costs a mask and the fast attention.
    Here positions have values.
    """
    return False


def _make_subclass(kind: type, data: Tensor, requires_grad: bool = False, **options: Any) -> Tensor:
    """A tensor of a library's own class, which is a fake tensor as well where its data is one.

    torch cannot make an object of one class from an object of another; an object can change its
    class, however, to one that is both.
    """
    if not isinstance(data, FakeTensor):
        return _make_real(kind, data, requires_grad, **options)
    if kind not in _kinds:
        both = (kind, FakeTensor)
        fake = issubclass(kind, FakeTensor)
        _kinds[kind] = kind if fake else type(kind.__name__, both, {"detach": _detach})
    made: Tensor = data.detach().requires_grad_(requires_grad)
    made.__class__ = _kinds[kind]
    return made


def _detach(tensor: Tensor) -> Tensor:
    """A detached tensor of the same class, as torch has it of a real one."""
    made = FakeTensor.detach(tensor)
    made.__class__ = tensor.__class__
    return made


def _take_data(old: Tensor, new: Tensor) -> None:
    """What a module that is converted does with its real parameters.

    It would swap fake ones, which fails wherever something refers to one weakly.
    """
    old.data = new.data


def _deep_copy(tensor: FakeTensor, memo: dict[int, Any]) -> Tensor:
    """Another tensor in the same world; torch's own copies the world as well."""
    made: Tensor = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    memo[id(tensor)] = made
    extra = {name: vars(tensor)[name] for name in vars(tensor).keys() - vars(made) - {NOTE}}
    vars(made).update(deepcopy(extra, memo))
    return made
