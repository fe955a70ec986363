"""AdamW, the program's default, said explicitly: which of torch's implementations, and where.

Two moments of a parameter's format for every parameter. The fused implementation is one kernel and
needs no room; `foreach` takes all parameters at once and holds several lists as large as all of
them; `for-loop` goes through them one by one and holds a few copies of the largest. Offloaded, the
moments and a copy of every parameter lie in the host's memory and the host takes the step: one
gradient at a time goes there and one parameter comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tradebench.techniques.protocol import ContradictionError
from tradebench.techniques.stepping import (
    BETAS,
    EPSILON,
    Replacing,
    Stepping,
    conflict_when_sharded,
    conflicts_in_backward,
    conflicts_with_fp16,
    read_note,
    state_counts,
    trainable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial

SWITCHES: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True, "fused": False},
    "for-loop": {"foreach": False, "fused": False},
}


class AdamW(Replacing):
    """Adam with decoupled weight decay, of which there is none here, in torch's own code."""

    cite = (
        "Loshchilov and Hutter 2017, arXiv:1711.05101; offload: Ren et al. 2021, arXiv:2101.06840"
    )

    method: Literal["adamw"] = "adamw"
    implementation: Literal["fused", "foreach", "for-loop"] = Field(
        "fused", description="torch's code: one kernel, lists of all parameters, or one by one"
    )
    offload: bool = Field(
        False, description="keep states and a copy of the parameters in the host's memory"
    )

    @property
    def label(self) -> str:
        """`adamw fused`, with `in backward` and `offload`."""
        words: list[str] = [self.method, self.implementation]
        words += ["in backward"] * self.in_backward + ["offload"] * self.offload
        return " ".join(words)

    def conflicts(self, trial: Trial) -> list[str]:
        """Nothing steps before gradients are whole, and the host is given whole parameters."""
        reasons = conflicts_in_backward(trial) if self.in_backward else []
        if self.in_backward or self.offload or self.implementation != "fused":
            reasons += conflicts_with_fp16(trial)
        if self.offload:
            reasons += conflict_when_sharded(
                trial, "shares are offloaded by the sharding itself; set sharding offload: true"
            )
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """A CPU has no other memory."""
        if not self.offload:
            return []
        return ["offloading moves optimizer states to the host: on a CPU it only adds copies"]

    def stepping(self, model: nn.Module) -> Stepping:
        """Torch's AdamW, on the device or on the host."""
        parameters = trainable(model)
        if self.offload:
            return Offloaded(parameters, self.implementation)
        return Stepping(_adamw(parameters, self.implementation))

    def effect(self, model: nn.Module) -> Effect:
        """Count the steps and the bytes of the states, a device's or the host's."""
        import torch

        # An offloaded gradient has gone to the host when the step is over.
        gone = self.in_backward or self.offload
        found = read_note(model, self.label, torch.optim.AdamW, in_backward=gone)
        if found.wrapper is not (Offloaded if self.offload else Stepping):
            raise ContradictionError(
                f"{self.label} was asked for, but the steps were taken by {found.wrapper.__name__}"
            )
        switches = SWITCHES[self.implementation]
        if any(found.settings[name] != value for name, value in switches.items()):
            raise ContradictionError(
                f"{self.label} was asked for, but torch was told "
                f"{', '.join(f'{name}={found.settings[name]}' for name in switches)}"
            )
        return state_counts(found)


class Offloaded(Stepping):
    """Steps on copies of the parameters in the host's memory."""

    def __init__(self, parameters: Sequence[nn.Parameter], implementation: str) -> None:
        from torch import nn

        self.copies = {part: nn.Parameter(to_host(part.detach())) for part in parameters}
        super().__init__(_adamw(list(self.copies.values()), implementation))

    def step(self) -> None:
        """Update parameter by parameter, so that the host holds one gradient at a time."""
        for parameter in self.copies:
            if parameter.grad is not None:
                self.take(parameter)
                parameter.grad = None

    def take(self, parameter: nn.Parameter) -> None:
        """Send this gradient to the host, step there, and bring the parameter back."""
        assert parameter.grad is not None, "its gradient has just been accumulated"
        copy = self.copies[parameter]
        copy.grad = to_host(parameter.grad)
        self.inner.step()
        copy.grad = None
        parameter.data.copy_(copy.data)

    def state_tensors(self) -> Iterator[Tensor]:
        """Both moments of every parameter, and its copy."""
        yield from super().state_tensors()
        yield from self.copies.values()


def to_host(tensor: Tensor) -> Tensor:
    """A copy in the host's memory, pinned where that is not the memory of the tensor."""
    import torch

    pinned = tensor.device.type != "cpu"
    copy = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
    return copy.copy_(tensor)


def _adamw(parameters: Sequence[nn.Parameter], implementation: str) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=0.0,
        **SWITCHES[implementation],
    )
