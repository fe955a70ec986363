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

from tradebench.techniques.stepping import (
    Replacing,
    Stepping,
    read_note,
    state_counts,
    trainable,
)

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import Effect

SETTINGS: dict[str, Any] = {"scale_parameter": False, "relative_step": False, "weight_decay": 0.0}


class Adafactor(Replacing):
    """Steps by the root of a factored second moment, without a first one."""

    cite = "Shazeer and Stern 2018, arXiv:1804.04235; transformers"
    whole = "adafactor takes the means of whole matrices and not of their shares; use adamw"

    method: Literal["adafactor"] = "adafactor"

    def stepping(self, model: nn.Module) -> Stepping:
        """Transformers' Adafactor."""
        from transformers.optimization import Adafactor as Inner

        return Stepping(Inner(trainable(model), lr=0.0, **SETTINGS))

    def effect(self, model: nn.Module) -> Effect:
        """Count the steps and the bytes of the states."""
        from transformers.optimization import Adafactor as Inner

        found = read_note(model, self.label, Inner, in_backward=self.in_backward)
        return state_counts(found)
