"""Low-rank adapters: freeze the model and train two thin matrices beside every linear layer.

Gradients and optimizer states shrink to those of the adapters; activations stay. rsLoRA scales by
the square root of the rank, DoRA trains direction and magnitude apart. Adapters are in fp32 unless
asked otherwise, and beside 16-bit weights every adapted layer then keeps an fp32 copy of its input.
Dropout keeps the dropped input of every adapted layer, and a mask.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
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
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of an adapter's inputs dropped in training"
    )
    dtype: Literal["fp32", "model"] = Field(
        "fp32", description="format of the adapters: fp32, or that of the model's parameters"
    )

    @property
    def label(self) -> str:
        """`lora r16`, with whatever of dropout, format and merging is not as usual."""
        words = [f"{self.method} r{self.rank}"]
        words += [f"dropout {self.dropout:g}"] if self.dropout else []
        words += [f"dtype {self.dtype}"] if self.dtype != "fp32" else []
        words += ["merged"] if self.merge else []
        return " ".join(words)

    def settings(self) -> dict[str, Any]:
        """The fields as JSON; dropout and format only where not as usual, as in Results of old."""
        fields = super().settings()
        for name in ("dropout", "dtype"):
            if fields[name] == type(self).model_fields[name].default:
                del fields[name]
        return fields

    def conflicts(self, trial: Trial) -> list[str]:
        """Merging fills the zeros of a pruned base."""
        if self.merge and trial.method("pruning") is not None:
            return ["merging an adapter fills the zeros of a pruned base; set merge: false"]
        return []

    def cautions(self, trial: Trial) -> list[str]:
        """Merging into integers rounds, and so do steps in 16 bits."""
        method = trial.method("quantization")
        found = []
        if self.merge and method is not None:
            found.append(f"merging rounds the adapter into {method} weights: scores may move")
        if self.dtype == "model" and trial.method("precision") == "bf16":
            found.append(
                "adapters in bf16 round small steps away: they may learn less than in fp32"
            )
        return found

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Freeze the model and wrap the target layers; the update starts at zero."""
        from peft import LoraConfig, get_peft_model

        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha or 2 * self.rank,
            target_modules=targets,
            lora_dropout=self.dropout,
            use_rslora=self.method == "rslora",
            use_dora=self.method == "dora",
            task_type="CAUSAL_LM",
        )
        adapted: nn.Module = get_peft_model(
            model, config, autocast_adapter_dtype=self.dtype == "fp32"
        )
        if self.dtype == "model":
            # peft leaves those of quantized layers in fp32, since integers are no format for them.
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(request.dtype)
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
        self._check_format(model, adapters)
        self._check_dropout(model)
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

    def _check_format(self, model: nn.Module, adapters: Mapping[str, nn.Parameter]) -> None:
        """Hold the adapters to fp32, or to the format of the embeddings, which nothing quantizes.

        Raises:
            ContradictionError: some are in another format.
        """
        import torch

        embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]  # a method
        expected = torch.float32 if self.dtype == "fp32" else next(embeddings.parameters()).dtype
        wrong = {parameter.dtype for parameter in adapters.values()} - {expected}
        if wrong:
            raise ContradictionError(
                f"adapters in {_name(expected)} were asked for, but some are in "
                f"{', '.join(sorted(map(_name, wrong)))}"
            )

    def _check_dropout(self, model: nn.Module) -> None:
        """Hold what lies before the adapters to the dropout that was asked for.

        Raises:
            ContradictionError: an adapter drops another share of its inputs.
        """
        shares = {
            float(getattr(module, "p", 0.0))  # the identity stands for no dropout
            for name, module in model.named_modules()
            if name.split(".")[-2:-1] == ["lora_dropout"]
        }
        if shares != {self.dropout}:
            raise ContradictionError(
                f"a dropout of {self.dropout:g} was asked for, but adapters drop {sorted(shares)}"
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
