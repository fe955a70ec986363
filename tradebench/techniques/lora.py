"""Low-rank adapters: freeze the model and train two thin matrices beside every linear layer.

Gradients and optimizer states shrink to those of the adapters; activations stay. rsLoRA scales by
the square root of the rank, DoRA trains direction and magnitude apart.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial


class Lora(Technique):
    """Trains rank-`rank` adapters on a frozen base, by peft."""

    slot, stage, axis = "adapters", Stage.ADAPT, "rank"
    cite = "Hu et al. 2021, arXiv:2106.09685; rsLoRA arXiv:2312.03732; DoRA arXiv:2402.09353; peft"

    affine = ("rank",)

    method: Literal["lora", "rslora", "dora"]
    rank: int = Field(16, ge=1, description="columns of each adapter matrix")
    alpha: float | None = Field(None, gt=0, description="scale of the update; twice the rank")
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear", description="names of the linear layers that get an adapter"
    )
    merge: bool = Field(False, description="merge into the base before the final evaluation")

    @property
    def label(self) -> str:
        """`lora r16`, with `merged` where the adapter ends in the base."""
        return f"{self.method} r{self.rank}" + (" merged" if self.merge else "")

    def conflicts(self, trial: Trial) -> list[str]:
        """Merging fills the zeros of a pruned base."""
        if self.merge and trial.method("pruning") is not None:
            return ["merging an adapter fills the zeros of a pruned base; set merge: false"]
        return []

    def cautions(self, trial: Trial) -> list[str]:
        """Merging into integers rounds."""
        method = trial.method("quantization")
        if self.merge and method is not None:
            return [f"merging rounds the adapter into {method} weights: scores may move"]
        return []

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Freeze the model and wrap the target layers; the update starts at zero."""
        from peft import LoraConfig, get_peft_model

        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha or 2 * self.rank,
            target_modules=targets,
            lora_dropout=0.0,
            use_rslora=self.method == "rslora",
            use_dora=self.method == "dora",
            task_type="CAUSAL_LM",
        )
        adapted: nn.Module = get_peft_model(model, config)
        return adapted

    def trained(self, model: nn.Module) -> nn.Module:
        """Fold the adapters into the base, where that was asked for."""
        if not self.merge:
            return model
        with warnings.catch_warnings():
            # That merging rounds is among the cautions, before the trial runs.
            warnings.filterwarnings("ignore", "Merge lora module to .*-bit linear")
            merged: nn.Module = model.merge_and_unload()  # type: ignore[operator]  # peft's method
        return merged

    def effect(self, model: nn.Module) -> Effect:
        """Count adapted layers and what trains; a frozen adapter or a training base is an error."""
        adapters = {
            name: parameter for name, parameter in model.named_parameters() if ".lora_" in name
        }
        frozen = [name for name, parameter in adapters.items() if not parameter.requires_grad]
        training = [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name not in adapters
        ]
        if not adapters or frozen or training:
            raise ContradictionError(
                f"{self.method} was asked for, but the model has {len(adapters)} adapter matrices, "
                f"{len(frozen)} of them frozen, and {len(training)} base parameters that train"
            )
        matrices = [parameter for name, parameter in adapters.items() if ".lora_A." in name]
        wrong = {matrix.shape[0] for matrix in matrices} - {self.rank}
        if wrong:
            raise ContradictionError(f"rank {self.rank} was asked for, but adapters have {wrong}")
        missed = (
            []
            if self.targets == "all-linear"
            else [
                target
                for target in self.targets
                if not any(f"{target}.lora_" in name for name in adapters)
            ]
        )
        if missed:
            raise ContradictionError(f"no layer named {', '.join(missed)} got an adapter")
        # They start at zero, so one that is zero still has never had a gradient.
        still = sum(
            bool(parameter.abs().sum() == 0)
            for name, parameter in adapters.items()
            if ".lora_B." in name
        )
        if still:
            raise ContradictionError(
                f"{still} of {len(matrices)} {self.method} adapters were not moved by training"
            )
        return {
            "layers": len(matrices),
            "trainable_parameters": sum(parameter.numel() for parameter in adapters.values()),
        }
