"""Activation offload: what a decoder layer keeps for the backward pass waits in the host's memory.

It leaves the device as soon as it has been saved and comes back when its gradient is computed. That
costs two copies over the bus for every tensor, and no arithmetic. Beside checkpointing it is the
inputs of recomputed layers that leave, and nothing is left on the device that grows with the depth.
Where computing and copying overlap, the copies may cost little; here they do not.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import decoder_layers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, UntypedStorage, nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial


class ActivationOffload(Technique):
    """Keeps on the host what decoder layers save for the backward pass, weights left out.

    The embedding, the output head and the loss keep theirs: it is needed again at once.
    """

    slot, stage, axis = "offload", Stage.RECOMPUTE, "method"
    cite = "Rhu et al. 2016, arXiv:1602.08124 (vDNN)"
    exact = True

    method: Literal["activations"] = "activations"
    minimum: int = Field(1024, ge=1, description="bytes; smaller tensors stay on the device")

    @property
    def label(self) -> str:
        """`offload activations`, with the smallest size where it is not the default."""
        least = type(self).model_fields["minimum"].default
        words = f"{self.slot} {self.method}"
        return words if self.minimum == least else f"{words} from {self.minimum} B"

    def cautions(self, trial: Trial) -> list[str]:
        """What it is on a CPU, what is not foreseen, and what stays on the device."""
        notes = [
            "offloading moves activations to the host: on a CPU it saves nothing",
            "copies to the host wait for the device here: a predicted step leaves their time out",
        ]
        if trial.method("quantization") == "int8":
            notes.append(
                "int8 layers keep their inputs outside of autograd: a GPU does not offload them"
            )
        if trial.method("checkpointing") == "selective":
            notes.append(
                "results that selective checkpointing keeps lie outside of autograd: "
                "they are not offloaded"
            )
        return notes

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Surround every decoder layer with hooks on what autograd saves."""
        parked = _Stored.by_place()
        for layer in decoder_layers(model):
            offload = _Offload(self.minimum, parked)
            layer.offload = offload  # type: ignore[assignment]  # a note
            # Sharding gathers weights in a hook of its own, which it puts ahead of this one.
            layer.register_forward_pre_hook(offload.enter)
            layer.register_forward_hook(offload.leave, always_call=True)
        return model

    def effect(self, model: nn.Module) -> Effect:
        """How many tensors were put aside, and the bytes of those of one forward pass."""
        found = [getattr(layer, "offload", None) for layer in decoder_layers(model)]
        idle = [index for index, each in enumerate(found) if each is None or not each.tensors]
        if idle or not found:
            raise ContradictionError(
                f"{self.label} was asked for, but layers {idle} of {len(found)} put nothing aside"
            )
        return {
            "tensors": sum(each.tensors for each in found if each),
            "bytes": sum(each.most_bytes for each in found if each),
        }


@dataclass(frozen=True, eq=False)
class _Stored:
    """A whole storage, copied to the host, for as long as a view of it is needed.

    A storage that has been released may be followed by another at the same place, hence the weak
    reference to `origin`.
    """

    origin: weakref.ref[UntypedStorage]
    version: int
    host: Tensor

    @classmethod
    def by_place(cls) -> weakref.WeakValueDictionary[int, _Stored]:
        """Room for all of them, by where their origin lies."""
        return weakref.WeakValueDictionary()


@dataclass(frozen=True)
class _Parked:
    """A tensor as a view of a storage that is on the host."""

    stored: _Stored
    dtype: torch.dtype
    device: torch.device
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass
class _Offload:
    """Puts aside what one decoder layer saves while its forward pass runs.

    Whole storages move, each once: layers save many a tensor several times, or several views of
    it, or what all of them share. They come back with the strides that they had.
    """

    minimum: int
    parked: weakref.WeakValueDictionary[int, _Stored]
    tensors: int = 0
    most_bytes: int = 0  # of one forward pass
    _bytes: int = 0
    _weights: set[int] = field(default_factory=set)
    _context: AbstractContextManager[object] | None = None

    def enter(self, module: nn.Module, inputs: object) -> None:
        """The forward pass begins."""
        import torch
        from torch.autograd.graph import saved_tensors_hooks

        if torch.is_grad_enabled():
            # Weights stay: they are alive anyway. Gathered ones have other storages than shares.
            self._weights = {
                each.untyped_storage()._cdata for each in (*module.parameters(), *module.buffers())
            }
            self._context = saved_tensors_hooks(self._pack, _unpack)
            self._context.__enter__()

    def leave(self, module: nn.Module, inputs: object, output: object) -> None:
        """The forward pass is over, or failed."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None
            self.most_bytes = max(self.most_bytes, self._bytes)
            self._bytes = 0

    def _pack(self, tensor: Tensor) -> Tensor | _Parked:
        from torch.utils._python_dispatch import is_traceable_wrapper_subclass

        tensor = tensor.detach()  # an operation that saves its own result must not hold itself
        storage = tensor.untyped_storage()
        if (
            is_traceable_wrapper_subclass(tensor)
            or storage._cdata in self._weights
            or storage.nbytes() < self.minimum
        ):
            return tensor
        stored = self.parked.get(storage._cdata)
        if stored is None or stored.origin() is None or stored.version != tensor._version:
            count = storage.nbytes() // tensor.itemsize
            host = to_host(tensor.as_strided((count,), (1,), 0))
            stored = _Stored(weakref.ref(storage), tensor._version, host)
            self.parked[storage._cdata] = stored
            self.tensors += 1
            self._bytes += storage.nbytes()
        return _Parked(
            stored,
            tensor.dtype,
            tensor.device,
            tensor.size(),
            tensor.stride(),
            int(tensor.storage_offset()),
        )


def _unpack(saved: Tensor | _Parked) -> Tensor:
    if not isinstance(saved, _Parked):
        return saved
    whole = to_device(saved.stored.host, saved.device)
    return whole.view(saved.dtype).as_strided(saved.size, saved.stride, saved.offset)


def to_host(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, which the device fills in time; on a CPU the tensor itself."""
    import torch

    if tensor.device.type == "cpu":
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, in the order of its work; on a CPU the tensor itself."""
    return tensor.to(device, non_blocking=True)
