"""Mixed precision: fp32 parameters, matrix products in bf16 or fp16 under torch.autocast.

Activations halve; weights, gradients and optimizer states stay in fp32. fp16 has five bits of
exponent only, so its gradients are scaled up before the backward pass and down again before the
step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
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
        """Note in what format the first decoder layer's MLP answers, as evidence for `effect`."""

        def note(module: nn.Module, inputs: object, output: Tensor) -> None:
            dtype = str(output.dtype).removeprefix("torch.")
            module.autocast_output = dtype  # type: ignore[assignment]  # a note

        _first_mlp(model).register_forward_hook(note)
        return model

    def optimizer(self, factory: OptimizerFactory) -> OptimizerFactory:
        """Wrap the optimizer in a gradient scaler where the format needs one."""
        if self.method != "fp16":
            return factory
        return lambda model: ScaledOptimizer(factory(model), next(model.parameters()).device.type)

    def forward(self, device: str) -> AbstractContextManager[object]:
        """Autocast around every forward pass."""
        import torch

        return torch.autocast(device, dtype=self._dtype())

    def effect(self, model: nn.Module) -> Effect:
        """The format that the first MLP really answered in."""
        output = getattr(_first_mlp(model), "autocast_output", None)
        expected = str(self._dtype()).removeprefix("torch.")
        if output != expected:
            raise ContradictionError(
                f"precision {self.method} was asked for, but the decoder computed in {output}"
            )
        return {"compute": output}


class ScaledOptimizer:
    """An optimizer whose losses are scaled so that fp16 gradients do not vanish."""

    def __init__(self, optimizer: Optimizer, device: str) -> None:
        import torch

        self.optimizer = optimizer
        self.inner = optimizer.inner
        self.scaler = torch.amp.GradScaler(device)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of the scaled loss."""
        self.optimizer.backward(self.scaler.scale(loss))

    def step(self) -> None:
        """Step on unscaled gradients; a step with an infinite gradient is left out."""
        self.scaler.step(self.inner)
        self.scaler.update()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this learning rate from the next step on."""
        self.optimizer.set_learning_rate(learning_rate)

    def state_tensors(self) -> Iterator[Tensor]:
        """The states of the optimizer; the scaler's own two scalars are left out."""
        return self.optimizer.state_tensors()


def _first_mlp(model: nn.Module) -> nn.Module:
    """The MLP of the first decoder layer: no adapter or quantizer replaces this module."""
    return decoder_layers(model)[0].get_submodule("mlp")
