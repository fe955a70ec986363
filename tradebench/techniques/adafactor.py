"""Adafactor: of a matrix's second moment, the mean of every row and of every column.

No first moment and no second one of full size, so that states all but vanish; norms and other
vectors keep their second moment whole. The step works on fp32 copies of one parameter at a time:
its gradient squared, its update, and in 16 bits the parameter and the gradient as well.

transformers' code rather than torch's: there the learning rate can be left as it is given. torch's
multiplies it by the size of the parameter, and would make the budget's one learning rate mean
another thing here than for every other optimizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tradebench.techniques.protocol import Stage, Technique
from tradebench.techniques.stepping import (
    Stepping,
    conflict_when_sharded,
    conflicts_in_backward,
    conflicts_with_fp16,
    note,
    read_note,
    step_in_backward,
    trainable,
    write_note,
)

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import Effect, Optimizer, OptimizerFactory
    from tradebench.trial import Trial

SETTINGS: dict[str, Any] = {"scale_parameter": False, "relative_step": False, "weight_decay": 0.0}


class Adafactor(Technique):
    """Steps by the root of a factored second moment, without a first one."""

    slot, stage, axis = "optimizer", Stage.OPTIMIZER, "method"
    cite = "Shazeer and Stern 2018, arXiv:1804.04235; transformers"

    method: Literal["adafactor"] = "adafactor"
    in_backward: bool = Field(
        False, description="step inside the backward pass, as soon as a gradient is whole"
    )

    @property
    def label(self) -> str:
        """`adafactor`, with `in backward`."""
        return f"{self.method} in backward" if self.in_backward else self.method

    def conflicts(self, trial: Trial) -> list[str]:
        """Means of rows and columns are those of whole matrices."""
        reasons = conflicts_with_fp16(trial)
        reasons += conflicts_in_backward(trial) if self.in_backward else []
        return reasons + conflict_when_sharded(
            trial, "adafactor takes the means of whole matrices and not of their shares; use adamw"
        )

    def optimizer(self, factory: OptimizerFactory) -> OptimizerFactory:
        """Take this optimizer in the place of the default."""

        def make(model: nn.Module) -> Optimizer:
            from transformers.optimization import Adafactor as Inner

            optimizer = Stepping(Inner(trainable(model), lr=0.0, **SETTINGS))
            if self.in_backward:
                step_in_backward(optimizer, model)
            note(model, optimizer)
            return optimizer

        return make

    def stepped(self, model: nn.Module) -> None:
        """Note what the optimizer holds."""
        write_note(model)

    def effect(self, model: nn.Module) -> Effect:
        """Count the steps and the bytes of the states."""
        from transformers.optimization import Adafactor as Inner

        found = read_note(model, self.label, Inner, in_backward=self.in_backward)
        return {
            "steps": found.steps,
            "parameters": found.parameters,
            "state_bytes": sum(found.bytes.values()),
        }
