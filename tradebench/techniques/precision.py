"""Parameter precision: every weight, gradient and optimizer state in one floating-point format.

Pure bf16 halves all of them against fp32 and trades 16 bits of mantissa for it: small updates to
large weights are rounded away.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import of_adapter
from tradebench.techniques.torchao_library import is_torchao

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import Effect


class Precision(Technique):
    """Stores parameters, and computes, in fp32 or in bf16."""

    slot, stage, axis = "precision", Stage.LOAD, "method"
    cite = "Kalamkar et al. 2019, arXiv:1905.12322"

    method: Literal["fp32", "bf16"]

    def load(self, request: LoadRequest) -> LoadRequest:
        """Ask for parameters in this format."""
        import torch

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.method]
        return replace(request, dtype=dtype, compute_dtype=dtype)

    def effect(self, model: nn.Module) -> Effect:
        """Count the parameters that were loaded, by format.

        Adapters keep a format of their own, and so do weights that are quantized.
        """
        expected = {"fp32": "float32", "bf16": "bfloat16"}[self.method]
        counts: dict[str, int] = {}
        for name, parameter in model.named_parameters():
            dense = parameter.is_floating_point() and not is_torchao(parameter)
            if not of_adapter(model, name) and dense:
                dtype = str(parameter.dtype).removeprefix("torch.")
                counts[dtype] = counts.get(dtype, 0) + parameter.numel()
        if set(counts) != {expected}:
            raise ContradictionError(
                f"precision {self.method} was asked for, but the model holds "
                f"{', '.join(sorted(counts))} parameters"
            )
        return {"parameters": counts}
