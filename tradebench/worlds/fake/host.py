"""Offloading in the fake world, for a device whose memory is not the host's.

On a CPU a share that is offloaded stays where it is. Here it moves: sharded parameters to the host
when they are made, copies of them to the device to be gathered, gradients to the host once they are
added up. An optimizer that is offloaded copies parameters and gradients there, and what is paged is
made there. Activations that are offloaded move to the host and come back as copies. Whatever is
computed on the host alone, such as optimizer states, stays there; and torch's own Adam counts steps
there unless it is fused, a number for every parameter, to spare launches on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from torch.distributed.tensor import DTensor
from torch.optim import adam
from torch.utils._python_dispatch import _disable_current_modes

from tradebench.techniques import activation_offload, adamw, fsdp2
from tradebench.techniques.bitsandbytes_paged import PAGED_FROM
from tradebench.worlds.fake.mode import Mode
from tradebench.worlds.host import on_host, put_on_host
from tradebench.worlds.memory import tensors_in

_init_share = FSDPParam._init_sharded_param
_to_sharded = FSDPParam.to_sharded_dtensor
_gathered_from = FSDPParam.all_gather_inputs


class Host(Mode):
    """Keeps on the host what is computed from tensors on the host and nothing else."""

    def run(
        self, func: OpOverload[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run the operation and say where its result lies."""
        result = func(*args, **kwargs)
        given = list(tensors_in((*args, *kwargs.values())))
        if given and all(map(on_host, given)):
            for tensor in tensors_in((result,)):
                put_on_host(tensor)
        return result


def _make_share(parameter: FSDPParam, *args: Any, **kwargs: Any) -> None:
    """Make a sharded parameter; one that is offloaded moves to the host."""
    _init_share(parameter, *args, **kwargs)
    if parameter.offload_to_cpu and parameter._sharded_param_data.device.type != "meta":
        data = _copy_to_host(parameter._sharded_param_data)
        local = parameter._sharded_local_tensor
        parameter._sharded_param_data = data
        sharded: Any = parameter.sharded_param
        sharded._local_tensor = data.view(parameter.padded_sharded_param_size)[: len(local)]


def _shard_gradient(parameter: FSDPParam, tensor: Tensor) -> DTensor:
    """A share as a sharded tensor; what is offloaded and not yet on the host moves there."""
    made = hasattr(parameter, "sharded_param")  # so it is a gradient
    if parameter.offload_to_cpu and made and not on_host(tensor):
        tensor = _copy_to_host(tensor)
    return _to_sharded(parameter, tensor)


def _copied_to_device(parameter: FSDPParam) -> list[Tensor]:
    """What is gathered of a parameter: copies on the device, where its share lies on the host."""
    inputs = _gathered_from.__get__(parameter)
    return [_copy_to_device(tensor) if on_host(tensor) else tensor for tensor in inputs]


def _copy_to_host(tensor: Tensor) -> Tensor:
    return _make_on_host(tensor, tensor.dtype)


def _make_on_host(
    like: Tensor, dtype: torch.dtype | None, shape: torch.Size | None = None
) -> Tensor:
    assert isinstance(like, FakeTensor), "the host is apart in the fake world only"
    with _disable_current_modes(), like.fake_mode:  # unseen until it has its note
        made = torch.empty(like.shape if shape is None else shape, dtype=dtype)
    put_on_host(made)
    return made


def _make_state(
    optimizer: Optimizer8bit, parameter: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A state of a bitsandbytes optimizer, which it would not page on a CPU."""
    if optimizer.is_paged and parameter.numel() >= PAGED_FROM:
        return _make_on_host(parameter, dtype)
    return torch.zeros_like(parameter, dtype=dtype)


class _TorchOfAdam:
    """torch, whose numbers lie on the host where torch.optim.adam asks for a CPU by name."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def tensor(self, value: float, *, device: Any = None, **options: Any) -> Tensor:
        """One number; what it is does not matter here."""
        if device != "cpu":
            return torch.tensor(value, device=device, **options)
        nothing = torch.empty(0)  # which is there to know the world by
        return _make_on_host(nothing, options.get("dtype"), torch.Size())


def _copy_to_device(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def _park(tensor: Tensor) -> Tensor:
    """An activation on the host, which is seen there from now on."""
    return _copy_to_host(tensor).detach()


def _fetch(tensor: Tensor, device: torch.device) -> Tensor:
    return _copy_to_device(tensor)


OFFLOADING: tuple[tuple[Any, str, Any], ...] = (
    (FSDPParam, "_init_sharded_param", _make_share),
    (FSDPParam, "to_sharded_dtensor", _shard_gradient),
    (FSDPParam, "all_gather_inputs", property(_copied_to_device)),
    (activation_offload, "to_host", _park),
    (activation_offload, "to_device", _fetch),
    (adamw, "to_host", _copy_to_host),
    (fsdp2, "to_host", _copy_to_host),
    (Optimizer8bit, "get_state_buffer", _make_state),
    (adam, "torch", _TorchOfAdam()),
)
