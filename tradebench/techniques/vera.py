"""VeRA: all layers share one frozen random pair of thin matrices; each trains two vectors.

An update is diag(b) B diag(d) A, with A and B random, wide enough for the largest layer, and d and
b a vector per layer. Hardly anything trains, so gradients and optimizer states are next to nothing;
activations stay, and the shared pair is held in fp32 by every process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tradebench.techniques.peft_adapters import PeftAdapter
from tradebench.techniques.protocol import ContradictionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import VeraConfig
    from torch import nn

    from tradebench.trial import Trial

INITIAL = 0.1  # the paper's


class Vera(PeftAdapter):
    """Trains two vectors per layer around one shared random pair of rank `rank`, by peft."""

    axis = "rank"
    cite = "Kopiczko et al. 2023, arXiv:2310.11454; peft"
    affine = ("rank",)
    still = "vera_lambda_b"

    method: Literal["vera"] = "vera"
    rank: int = Field(256, ge=1, description="rows of the shared pair of random matrices")
    initial: float = Field(INITIAL, gt=0, description="what each layer's vector d starts from")

    @property
    def piecemeal(self) -> bool:
        """Vectors and the shared pair go by shapes alone."""
        return True

    @property
    def label(self) -> str:
        """`vera r256`, with another start where there is one, and whether it is merged."""
        words = [f"{self.method} r{self.rank}"]
        words += [f"initial {self.initial:g}"] if self.initial != INITIAL else []
        words += ["merged"] if self.merge else []
        return " ".join(words)

    def conflicts(self, trial: Trial) -> list[str]:
        """The shared pair is whole on every process, which a sharded vector does not meet."""
        reasons = super().conflicts(trial)
        if self.merge and trial.method("sharding") is not None:
            reasons.append("vera cannot merge into sharded weights; set merge: false")
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """What sharding leaves whole."""
        found = super().cautions(trial)
        if trial.method("sharding") is not None:
            found.append("the random pair of vera is not sharded: every process holds all of it")
        return found

    def config(self) -> VeraConfig:
        """The adapters: an update that starts at zero."""
        from peft import VeraConfig

        return VeraConfig(
            r=self.rank,
            d_initial=self.initial,
            target_modules=self.target_modules,
            task_type="CAUSAL_LM",
        )

    def check_settings(self, model: nn.Module, adapters: Mapping[str, nn.Parameter]) -> None:
        """Hold the vectors to the rank that was asked for.

        Raises:
            ContradictionError: they have another length.
        """
        wrong = {len(part) for name, part in adapters.items() if ".vera_lambda_d." in name}
        wrong -= {self.rank}
        if wrong:
            raise ContradictionError(f"rank {self.rank} was asked for, but adapters have {wrong}")
