"""Paged optimizer states by bitsandbytes: memory that CUDA moves between the device and the host.

States of 100,000 elements and more are managed memory. It lies on the host until a step touches it
and goes back when the device runs full, so a peak that states push over the edge becomes traffic.
What it takes is counted on the host, where all of it can be. bitsandbytes never gives it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tradebench.techniques.bitsandbytes_optimizer import (
    WHOLE,
    check_formats,
    narrow_states,
    quantized,
)
from tradebench.techniques.protocol import ContradictionError, Stage, Technique
from tradebench.techniques.stepping import (
    BETAS,
    EPSILON,
    Stepping,
    conflict_when_sharded,
    conflicts_with_fp16,
    note,
    read_note,
    state_counts,
    trainable,
    write_note,
)

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import Effect, Optimizer, OptimizerFactory
    from tradebench.trial import Trial

PAGED_FROM = 100_000  # elements, the library's own threshold


class PagedAdamW(Technique):
    """Keeps the moments of AdamW, in fp32 or in 8 bits, in memory that the device can evict."""

    slot, stage, axis = "optimizer", Stage.OPTIMIZER, "method"
    cite = "Dettmers et al. 2023, arXiv:2305.14314; bitsandbytes"
    cuda_only = (
        "paged optimizer states are managed memory of CUDA: "
        "on a CPU bitsandbytes silently keeps them like any others"
    )

    method: Literal["paged_adamw", "paged_adamw8bit"]

    def conflicts(self, trial: Trial) -> list[str]:
        """The library takes plain tensors only."""
        return conflicts_with_fp16(trial) + conflict_when_sharded(trial, WHOLE)

    def cautions(self, trial: Trial) -> list[str]:
        """Where paged states count, and what stays in fp32."""
        notes = ["paged states move between host and device: their bytes count on the host"]
        return notes + (narrow_states(trial) if self.method == "paged_adamw8bit" else [])

    def optimizer(self, factory: OptimizerFactory) -> OptimizerFactory:
        """Take this optimizer in the place of the default."""

        def make(model: nn.Module) -> Optimizer:
            inner = self._kind()(
                trainable(model), lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=0.0
            )
            optimizer = Stepping(inner)
            note(model, optimizer)
            return optimizer

        return make

    def stepped(self, model: nn.Module) -> None:
        """Note what the optimizer holds."""
        write_note(model)

    def effect(self, model: nn.Module) -> Effect:
        """Count the states that are paged; one that is large enough and is not is an error."""
        found = read_note(model, self.method, self._kind(), in_backward=False)
        if self.method == "paged_adamw8bit":
            check_formats(found, self.method)
        large = sum(size >= PAGED_FROM for sizes in found.elements.values() for size in sizes)
        if found.paged < max(large, 1):
            raise ContradictionError(
                f"{self.method} was asked for, but states are paged of {found.paged} parameters, "
                f"and {large} have the {PAGED_FROM} elements that it takes"
            )
        return state_counts(found, quantized=quantized(found), paged=found.paged)

    def _kind(self) -> Any:
        from bitsandbytes import optim

        return {"paged_adamw": optim.PagedAdamW, "paged_adamw8bit": optim.PagedAdamW8bit}[
            self.method
        ]
