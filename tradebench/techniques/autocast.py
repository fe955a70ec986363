"""Mixed precision: fp32 parameters, matrix products in bf16 or fp16 under torch.autocast.

Activations halve; weights, gradients and optimizer states stay in fp32. fp16 has five bits of
exponent only, so its gradients are scaled up before the backward pass and down again before the
step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tradebench.techniques.protocol import (
    ContradictionError,
    LoadRequest,
    Optimizer,
    Stage,
    Technique,
)
from tradebench.techniques.targets import decoder_layers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Effect, OptimizerFactory
    from tradebench.trial import Trial


class Autocast(Technique):
    """Computes in 16 bits on fp32 parameters; fp16 with a gradient scaler."""

    slot, stage, axis = "precision", Stage.LOAD, "method"
    cite = "Micikevicius et al. 2018, arXiv:1710.03740"

    method: Literal["bf16_autocast", "fp16"]

    def cautions(self, trial: Trial) -> list[str]:
        """On a CPU, fp16 products are emulated."""
        if self.method == "fp16":
            return ["fp16 is far slower than bf16 on a CPU: read its step time there as a bound"]
        return []

    def _dtype(self) -> torch.dtype:
        import torch

        return torch.float16 if self.method == "fp16" else torch.bfloat16

    def load(self, request: LoadRequest) -> LoadRequest:
        """Ask for fp32 parameters and 16-bit products."""
        import torch

        return replace(request, dtype=torch.float32, compute_dtype=self._dtype())

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Note what the output head and the first MLP answer in, as evidence for `effect`."""
        mlp = _first_mlp(model)
        head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]  # transformers'
        for name, module in (("compute", head), ("activations", mlp)):
            module.register_forward_hook(_Note(mlp, f"autocast_{name}"))
        return model

    def optimizer(self, factory: OptimizerFactory) -> OptimizerFactory:
        """Wrap the optimizer in a gradient scaler where the format needs one."""
        if self.method != "fp16":
            return factory

        def make(model: nn.Module) -> Optimizer:
            scaled = ScaledOptimizer(factory(model), next(model.parameters()).device.type)
            _first_mlp(model).autocast_steps = scaled.steps  # type: ignore[assignment]  # a note
            return scaled

        return make

    def forward(self, device: str) -> AbstractContextManager[object]:
        """Autocast around every forward pass."""
        import torch

        return torch.autocast(device, dtype=self._dtype())

    def effect(self, model: nn.Module) -> Effect:
        """What the output head computed in, and the format of what the first MLP passed on.

        4-bit layers pass on fp32 under autocast although they compute in 16 bits.
        """
        mlp = _first_mlp(model)
        found = {
            name: getattr(mlp, f"autocast_{name}", "nothing") for name in ("compute", "activations")
        }
        expected = str(self._dtype()).removeprefix("torch.")
        if found["compute"] != expected:
            raise ContradictionError(
                f"precision {self.method} was asked for, but the model computed in "
                f"{found['compute']}"
            )
        if self.method != "fp16":
            return found
        steps = getattr(mlp, "autocast_steps", Steps())
        if steps.asked == 0:
            raise ContradictionError("fp16 was asked for, but no step had scaled gradients")
        if int(steps.taken) == 0:
            raise ContradictionError("a gradient was infinite in every step, so none was taken")
        return {**found, "steps": steps.asked, "skipped": steps.asked - int(steps.taken)}


@dataclass
class Steps:
    """How many optimizer steps were asked for, and how many had finite gradients."""

    asked: int = 0
    taken: Tensor | int = 0


class ScaledOptimizer:
    """An optimizer whose losses are scaled so that fp16 gradients do not vanish."""

    def __init__(self, optimizer: Optimizer, device: str) -> None:
        import torch

        self.optimizer = optimizer
        self.inner = optimizer.inner
        self.scaler = torch.amp.GradScaler(device)
        self.steps = Steps()

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of the scaled loss."""
        self.optimizer.backward(self.scaler.scale(loss))

    def step(self) -> None:
        """Step on unscaled gradients; a step with an infinite gradient is left out."""
        self.scaler.step(self.inner)
        self.scaler.update()
        self.steps.asked += 1
        # The optimizer counts on the device; it is read once, when training is over.
        self.steps.taken = next((state["step"] for state in self.inner.state.values()), 0)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this learning rate from the next step on."""
        self.optimizer.set_learning_rate(learning_rate)

    def state_tensors(self) -> Iterator[Tensor]:
        """The states of the optimizer; the scaler's own two scalars are left out."""
        return self.optimizer.state_tensors()


class _Note:
    """A forward hook that writes the format of a module's output onto `place`."""

    def __init__(self, place: nn.Module, name: str) -> None:
        self.place = place
        self.name = name

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        setattr(self.place, self.name, str(output.dtype).removeprefix("torch."))


def _first_mlp(model: nn.Module) -> nn.Module:
    """The MLP of the first decoder layer: no adapter or quantizer replaces this module."""
    return decoder_layers(model)[0].get_submodule("mlp")
