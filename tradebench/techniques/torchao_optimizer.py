"""Optimizer states in 8 or 4 bits by torchao: tensors of its own that also shard.

Each moment takes a byte, or half of one, beside a scale per 256 or 128 values and a table of levels
that every parameter has for itself. Parameters of fewer than 4,096 elements, or of no multiple of a
block, keep theirs in their own format.

torchao compiles its step, once for every shape, which takes minutes on a CPU and cannot be done
without tensors. Here it runs as it is written: the figures are those of the uncompiled step, which
holds half a dozen fp32 copies of one parameter, and are upper bounds of both time and memory.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from tradebench.techniques.protocol import ContradictionError, LoadRequest
from tradebench.techniques.stepping import (
    BETAS,
    EPSILON,
    Replacing,
    Stepping,
    conflict_when_sharded,
    read_note,
    state_counts,
    trainable,
)

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial

QUANTIZED_FROM = 4096  # elements, the library's own threshold
BLOCKS = {"torchao_adamw8bit": 256, "torchao_adamw4bit": 128}  # values that share a scale


class TorchaoAdamW(Replacing):
    """Keeps the moments of AdamW in 8 or 4 bits."""

    cite = "Dettmers et al. 2021, arXiv:2110.02861; Li et al. 2023, arXiv:2309.01507; torchao"
    extra = "torchao"
    packages = ("torchao",)

    method: Literal["torchao_adamw8bit", "torchao_adamw4bit"]

    def conflicts(self, trial: Trial) -> list[str]:
        """A sharded state is given fp32 for its format whatever the parameter has."""
        reasons = super().conflicts(trial)
        halves = trial.method("precision") in ("bf16", "fp8")
        if halves and _trains_in_model_format(trial):
            reasons += conflict_when_sharded(
                trial, "torchao loses the format of bf16 states that are sharded; use bf16_autocast"
            )
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """What is measured is not the compiled step."""
        return ["the step of torchao runs uncompiled: read its time and its memory as bounds"]

    def load(self, request: LoadRequest) -> LoadRequest:
        """Have the library make its tables of levels, which it keeps for good.

        It makes them where it is first asked: in a fake world they would hold no levels.
        """
        self.need_packages()
        from torchao.optim import subclass_4bit, subclass_8bit

        for module in (subclass_4bit, subclass_8bit):
            module.get_qmap_signed()
            module.get_qmap_unsigned()
        return request

    def stepping(self, model: nn.Module) -> Stepping:
        """The library's optimizer, uncompiled."""
        inner = uncompiled(self.method)(
            trainable(model),
            lr=0.0,
            betas=BETAS,
            eps=EPSILON,
            weight_decay=0.0,
            block_size=BLOCKS[self.method],
        )
        return TensorRate(inner)

    def effect(self, model: nn.Module) -> Effect:
        """Count the states in few bits; one that could be and is not is an error."""
        found = read_note(model, self.label, uncompiled(self.method), in_backward=self.in_backward)
        block = BLOCKS[self.method]
        wide = [size for name, sizes in found.elements.items() if name != "uint8" for size in sizes]
        wrong = sum(size >= QUANTIZED_FROM and size % block == 0 for size in wide)
        if wrong:
            raise ContradictionError(
                f"{self.label} was asked for, but the states of {wrong} parameters are whole that "
                f"have {QUANTIZED_FROM} elements and a multiple of {block}"
            )
        return state_counts(found, quantized=len(found.elements.get("uint8", ())))


def _trains_in_model_format(trial: Trial) -> bool:
    adapters = next((part for part in trial.techniques if part.slot == "adapters"), None)
    # peft makes adapters that cannot be told otherwise in fp32.
    return adapters is None or getattr(adapters, "dtype", "fp32") == "model"


class TensorRate(Stepping):
    """An optimizer whose learning rate is a tensor: a number in its place is an error.

    One that is made anew belongs to the step, while the first belongs to nothing in particular.
    """

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this learning rate from the next step on."""
        import torch

        for group in self.inner.param_groups:
            group["lr"] = torch.tensor(learning_rate, dtype=torch.float32)


@cache
def uncompiled(method: str) -> Any:
    """The library's class, with a step that runs as it is written."""
    import torch
    from torchao import optim

    kind: Any = {"torchao_adamw8bit": optim.AdamW8bit, "torchao_adamw4bit": optim.AdamW4bit}[method]

    class Uncompiled(kind):  # type: ignore[misc]  # torchao is untyped
        """AdamW of torchao, uncompiled."""

        def step(self, closure: None = None) -> None:
            """Update every parameter that has a gradient."""
            with torch.compiler.set_stance("force_eager"):
                super().step(closure)

    return Uncompiled
