"""Sharding: every process keeps a share of each parameter, its gradient and its optimizer states.

A layer's weights are gathered just before they are used and dropped just after (ZeRO-3), or kept
from the forward pass to the backward pass (ZeRO-2). What that saves grows with the processes; what
it costs is communication, and room for about two gathered layers.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tradebench.techniques.protocol import (
    SHARE,
    ContradictionError,
    LoadRequest,
    Stage,
    Technique,
)
from tradebench.techniques.targets import decoder_layers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial


class FSDP2(Technique):
    """Shards the model over `degree` processes, by torch's `fully_shard`.

    The decoder layers, the embedding and the output head are gathered one at a time. Parameters
    keep their format while they travel; gradients are added up in fp32.
    """

    slot, stage, axis = "sharding", Stage.SHARD, "degree"
    cite = "Rajbhandari et al. 2019, arXiv:1910.02054 (ZeRO); Zhao et al. 2023, arXiv:2304.11277"

    method: Literal["fsdp2"] = "fsdp2"
    degree: int = Field(1, ge=1, le=1024, description="processes that the model is split over")
    reshard: bool = Field(
        True, description="drop gathered weights after the forward pass (ZeRO-3, else ZeRO-2)"
    )
    offload: bool = Field(
        False, description="keep weights, gradients and optimizer states in the host's memory"
    )

    @property
    def label(self) -> str:
        """`fsdp2 x8`, with `zero2` where gathered weights are kept, and with `offload`."""
        words = [f"{self.method} x{self.degree}"]
        words += ["zero2"] * (not self.reshard) + ["offload"] * self.offload
        return " ".join(words)

    @property
    def ranks(self) -> int:
        """A process for each share."""
        return self.degree

    def conflicts(self, trial: Trial) -> list[str]:
        """What bitsandbytes keeps beside its weights does not survive sharding."""
        reasons = []
        quantization = trial.method("quantization")
        if quantization == "int8":
            reasons.append(
                "int8 weights lose their scales when they are sharded; use nf4 or fp4 instead"
            )
        elif quantization in ("nf4", "fp4") and trial.settings.get("adapters", {}).get("merge"):
            reasons.append("an adapter cannot merge into sharded 4 bit weights; set merge: false")
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """What is not sharded, what a step sees, and that a CPU has no other memory."""
        notes = []
        if trial.method("quantization") in ("nf4", "fp4"):
            notes.append("scales of 4 bit weights are not sharded: every process holds all of them")
        if self.degree > 1 and not trial.in_shares:
            whole = [part.label for part in trial.techniques if not part.piecemeal]
            notes.append(
                f"{' and '.join(whole)} looks at whole weights: every process loads the whole "
                "model before it is sharded"
            )
        if self.degree > 1:
            notes.append(
                "every process trains on batches of its own: an optimizer step takes "
                f"{self.degree} times the sequences of one process"
            )
        if self.offload:
            notes.append("offloading moves shares to the host: on a CPU it saves nothing")
        return notes

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Put this process's share in the place of every parameter."""
        import torch
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            FSDPModule,
            MixedPrecisionPolicy,
            OffloadPolicy,
            fully_shard,
        )
        from transformers import PreTrainedModel

        settings: dict[str, Any] = {
            "mesh": _mesh(self.degree, request.device),
            "reshard_after_forward": self.reshard,
            "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
            "offload_policy": (
                CPUOffloadPolicy(pin_memory=request.device != "cpu")
                if self.offload
                else OffloadPolicy()
            ),
        }
        for unit in _units(model):
            shares = _taken_out(unit)
            fully_shard(unit, **settings)
            _put_in(unit, shares, self.offload)
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                # So that no rank ends a generation while another one still needs its layers.
                part._is_fsdp_managed_module = True
            if isinstance(part, FSDPModule) and self.degree > 1:
                # Each loss is divided by the tokens of all ranks already.
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        model.register_forward_hook(partial(_drop_gathered, self.reshard))
        return model

    def effect(self, model: nn.Module) -> Effect:
        """Count the bytes of all parameters and of this process's share, padding included."""
        from torch.distributed.fsdp import FSDPModule
        from torch.distributed.tensor import DTensor

        parameters = list(model.parameters())
        sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
        if not parameters or len(sharded) < len(parameters):
            raise ContradictionError(
                f"{self.label} was asked for, but {len(parameters) - len(sharded)} of "
                f"{len(parameters)} parameters are whole"
            )
        held = sum(part._local_tensor.untyped_storage().nbytes() for part in sharded)
        share = sum(
            math.ceil(part.shape[0] / self.degree) * (part.nbytes // part.shape[0])
            for part in sharded
        )
        if held != share:
            raise ContradictionError(
                f"{self.label} was asked for, which leaves shares of {share} bytes, but this "
                f"process holds {held}"
            )
        modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
        units = {id(module._get_fsdp_state()) for module in modules}  # tied ones share theirs
        return {
            "units": len(units),
            "parameter_bytes": sum(parameter.nbytes for parameter in sharded),
            "share_bytes": held,
        }


def _units(model: Any) -> list[nn.Module | list[nn.Module]]:
    """What is gathered together: inner modules first, as torch wants them.

    The decoder takes what is left, its last norm. The model itself is no unit, so that the decoder
    and the head can be called apart, as a chunked loss does. Tied weights are one unit.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends = [[embedding, head]] if embedding.weight is head.weight else [embedding, head]
    return [*decoder_layers(model), *ends, model.get_decoder()]


Shares = dict[tuple[int, str], "Tensor"]  # by module and the name of a parameter there


def _taken_out(unit: nn.Module | list[nn.Module]) -> Shares:
    """What a rank has loaded of a unit; parameters without values go to `meta` in the meantime."""
    import torch
    from torch import nn

    shares: Shares = {}
    empty: dict[nn.Parameter, nn.Parameter] = {}  # tied ones stay one
    for module in _modules(unit):
        for name, parameter in module._parameters.items():
            share = getattr(parameter, SHARE, None)
            if parameter is None or share is None:
                continue
            if parameter not in empty:
                shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                empty[parameter] = nn.Parameter(shape, requires_grad=parameter.requires_grad)
            module._parameters[name] = empty[parameter]
            shares[id(module), name] = share
    return shares


def _groups(state: Any) -> list[Any]:
    """The groups of parameters of a unit; torch 2.11 has one or none, later versions a list."""
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


def _put_in(unit: nn.Module | list[nn.Module], shares: Shares, offload: bool) -> None:
    """Let the sharded parameters of a unit have what the rank has loaded of them.

    torch would have them filled where they lie, by copies, and pad those copies once more.
    """
    from torch import nn
    from torch.distributed.fsdp import FSDPModule

    for module in _modules(unit):
        if not isinstance(module, FSDPModule):
            continue
        for group in _groups(module._get_fsdp_state()):
            for each in group.fsdp_params:
                place = each._module_info
                share = shares.pop((id(place.module), place.param_name), None)
                if share is None:
                    continue
                if offload:
                    share = to_host(share)
                local = share[: each.sharded_size[0]]
                each._sharded_param_data = share.view(-1)
                each.sharded_param = nn.Parameter(
                    each.to_sharded_dtensor(local), requires_grad=each.sharded_param.requires_grad
                )
                each._setattr_on_modules(each.sharded_param)


def to_host(share: Tensor) -> Tensor:
    """A copy in the host's memory; on a CPU the share itself, which lies there."""
    return share if share.device.type == "cpu" else share.cpu().pin_memory()


def _modules(unit: nn.Module | list[nn.Module]) -> Iterator[nn.Module]:
    for part in unit if isinstance(unit, list) else [unit]:
        yield from part.modules()


def _mesh(degree: int, device: str) -> DeviceMesh:
    """The processes that share a model: those that were launched together, or this one alone."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():
        backend = dist.get_default_backend_for_device(device)
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch does not say that it is there
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    if dist.get_world_size() != degree:
        raise ContradictionError(
            f"sharding over {degree} processes was asked for, but {dist.get_world_size()} "
            "are running"
        )
    return init_device_mesh(device, (degree,))


def _drop_gathered(reshard: bool, model: nn.Module, inputs: object, output: object) -> None:
    """Drop gathered weights for which no backward pass will come.

    torch keeps them where they are not dropped after every forward pass, and keeps tied ones, which
    it takes to be in use until both of their layers have run inside one module.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule

    if not torch.is_grad_enabled():
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.set_reshard_after_forward(True, recurse=False)
                part.reshard()
                part.set_reshard_after_forward(reshard, recurse=False)
