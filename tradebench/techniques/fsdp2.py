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

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import decoder_layers

if TYPE_CHECKING:
    from torch import nn
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
            fully_shard(unit, **settings)
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
