"""Orthogonal fine-tuning: rotate the inputs of every frozen linear layer, in small blocks.

A block of the rotation is made at every forward pass from a skew-symmetric matrix, of which the
upper triangle trains; angles between neurons, and so what the base knows, are kept. The rotation is
the Cayley transform's Neumann series of five terms, which is orthogonal up to its remainder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tradebench.techniques.peft_adapters import PeftAdapter
from tradebench.techniques.protocol import ContradictionError
from tradebench.techniques.shapes import matrix_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import OFTConfig
    from torch import nn

    from tradebench.trial import Trial


class Oft(PeftAdapter):
    """Trains rotations of blocks of `block` inputs on a frozen base, by peft."""

    axis = "block"
    cite = "Qiu et al. 2023, arXiv:2306.07280; Qiu et al. 2025, arXiv:2506.19847 (OFTv2); peft"
    still = "oft_R"

    method: Literal["oft"] = "oft"
    block: int = Field(
        16, ge=2, description="inputs that are rotated together; it divides every layer's width"
    )

    @property
    def piecemeal(self) -> bool:
        """Rotations start as none, whatever the weights are."""
        return True

    @property
    def label(self) -> str:
        """`oft b16`, and whether it is merged."""
        return f"{self.method} b{self.block}" + " merged" * self.merge

    def conflicts(self, trial: Trial) -> list[str]:
        """A layer's inputs are cut into whole blocks: peft would take another size in silence."""
        reasons = super().conflicts(trial)
        factors = trial.settings.get("low_rank", {})
        widths = {width for _, width in matrix_shapes(trial.model)}
        widths |= {factors.get("rank", self.block)}
        if factors.get("energy") is not None:
            reasons.append("ranks by energy are not cut into whole blocks; set rank instead")
        if any(width % self.block for width in widths):
            reasons.append(
                f"blocks of {self.block} do not divide the inputs of every layer; "
                "choose another block"
            )
        if self.merge and trial.method("sharding") is not None:
            reasons.append("oft cannot merge into sharded weights; set merge: false")
        return reasons

    def config(self) -> OFTConfig:
        """The adapters: rotations that start as none."""
        from peft import OFTConfig

        return OFTConfig(
            oft_block_size=self.block,
            target_modules=self.target_modules,
            use_cayley_neumann=True,
            task_type="CAUSAL_LM",
        )

    def check_settings(self, model: nn.Module, adapters: Mapping[str, nn.Parameter]) -> None:
        """Hold the rotations to the size of block that was asked for.

        Raises:
            ContradictionError: peft has taken another.
        """
        expected = self.block * (self.block - 1) // 2
        wrong = {part.shape[1] for part in adapters.values()} - {expected}
        if wrong:
            raise ContradictionError(
                f"blocks of {self.block} take {expected} numbers each, but adapters have "
                f"{', '.join(map(str, sorted(wrong)))}"
            )
