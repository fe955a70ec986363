"""Low-rank adapters: freeze the model and train two thin matrices beside every linear layer.

Gradients and optimizer states shrink to those of the adapters; activations stay. rsLoRA scales by
the square root of the rank, DoRA trains direction and magnitude apart, PiSSA starts from the
largest singular values and leaves the rest to the base. Adapters are in fp32 unless asked
otherwise, and beside 16-bit weights every adapted layer then keeps an fp32 copy of its input.
Dropout keeps the dropped input of every adapted layer, and a mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tradebench.techniques.peft_adapters import PeftAdapter
from tradebench.techniques.protocol import ContradictionError, LoadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from peft import LoraConfig
    from torch import nn

    from tradebench.trial import Trial

UPDATE = ".lora_B."  # in the name of what starts at zero, or elsewhere
STARTS = "adapter_starts"  # the attribute of a model that holds where its adapters started


class Lora(PeftAdapter):
    """Trains rank-`rank` adapters on a frozen base, by peft."""

    axis = "rank"
    cite = (
        "Hu et al. 2021, arXiv:2106.09685; rsLoRA arXiv:2312.03732; DoRA arXiv:2402.09353; "
        "PiSSA arXiv:2404.02948; peft"
    )
    affine = ("rank",)
    still = "lora_B"

    method: Literal["lora", "rslora", "dora", "pissa"]
    rank: int = Field(16, ge=1, description="columns of each adapter matrix")
    alpha: float | None = Field(
        None, gt=0, description="scale of the update; twice the rank, for pissa the rank"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of an adapter's inputs dropped in training"
    )
    dtype: Literal["fp32", "model"] = Field(
        "fp32", description="format of the adapters: fp32, or that of the model's parameters"
    )

    @property
    def from_weights(self) -> bool:
        """Whether the adapters start from the base's weights, and not with an update of zero."""
        return self.method == "pissa"

    @property
    def label(self) -> str:
        """`lora r16`, with whatever of dropout, format and merging is not as usual."""
        words = [f"{self.method} r{self.rank}"]
        words += [f"dropout {self.dropout:g}"] if self.dropout else []
        words += [f"dtype {self.dtype}"] if self.dtype != "fp32" else []
        words += ["merged"] if self.merge else []
        return " ".join(words)

    @property
    def piecemeal(self) -> bool:
        """DoRA and PiSSA start from the weights."""
        return self.method in ("lora", "rslora")

    def settings(self) -> dict[str, Any]:
        """The fields as JSON; dropout and format only where not as usual, as in Results of old."""
        fields = super().settings()
        for name in ("dropout", "dtype"):
            if fields[name] == type(self).model_fields[name].default:
                del fields[name]
        return fields

    def conflicts(self, trial: Trial) -> list[str]:
        """PiSSA moves a part of the base's dense weights; DoRA divides by the norms of its rows."""
        reasons = super().conflicts(trial)
        quantized = trial.method("quantization") is not None
        if self.method == "dora" and quantized and trial.method("low_rank") is not None:
            # Seen on thin factors in NF4: the loss is NaN in the first step.
            reasons.append(
                "quantized factors may have rows of zeros by whose norm dora divides; "
                "use lora instead"
            )
        if self.method == "pissa":
            if trial.method("quantization") is not None:
                reasons.append(
                    "pissa takes its start out of dense weights and cannot read quantized ones; "
                    "use lora instead"
                )
            if trial.method("pruning") is not None:
                reasons.append(
                    "pissa takes its start out of the weights and undoes the zeros of a pruned "
                    "base; use lora instead"
                )
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """Steps in 16 bits round, too, and so does what PiSSA leaves of 16-bit weights."""
        found = super().cautions(trial)
        bf16 = trial.method("precision") == "bf16"
        if self.dtype == "model" and bf16:
            found.append(
                "adapters in bf16 round small steps away: they may learn less than in fp32"
            )
        if self.method == "pissa" and bf16:
            found.append(
                "pissa rounds what it leaves of the base to bf16: training starts near the base, "
                "and not at it"
            )
        return found

    def config(self) -> LoraConfig:
        """The adapters: an update that starts at zero, or out of the base's weights (PiSSA)."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha or (self.rank if self.from_weights else 2 * self.rank),
            target_modules=self.target_modules,
            lora_dropout=self.dropout,
            use_rslora=self.method == "rslora",
            use_dora=self.method == "dora",
            init_lora_weights="pissa" if self.method == "pissa" else True,
            task_type="CAUSAL_LM",
        )

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Freeze the model and wrap the target layers."""
        from peft import get_peft_model

        adapted: nn.Module = get_peft_model(
            model, self.config(), autocast_adapter_dtype=self.dtype == "fp32"
        )
        if self.dtype == "model":
            # peft leaves those of quantized layers in fp32, since integers are no format for them.
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(request.dtype)
        self.start(adapted)
        return adapted

    def start(self, model: nn.Module) -> None:
        """Note where adapters start that do not start at zero, or give them another start."""
        if self.from_weights:
            starts = {name: size(part) for name, part in model.named_parameters() if UPDATE in name}
            setattr(model, STARTS, starts)

    def check_settings(self, model: nn.Module, adapters: Mapping[str, nn.Parameter]) -> None:
        """Hold the adapters to their rank, method, format and dropout.

        Raises:
            ContradictionError: they were not made as asked for.
        """
        wrong = {part.shape[0] for name, part in adapters.items() if ".lora_A." in name}
        wrong -= {self.rank}
        if wrong:
            raise ContradictionError(f"rank {self.rank} was asked for, but adapters have {wrong}")
        magnitudes = any(".lora_magnitude_vector." in name for name in adapters)
        if magnitudes != (self.method == "dora") or hasattr(model, STARTS) != self.from_weights:
            raise ContradictionError(
                f"{self.method} was asked for, but the adapters are those of another method"
            )
        self._check_format(model, adapters)
        self._check_dropout(model)

    def unmoved(self, model: nn.Module, adapters: Mapping[str, nn.Parameter]) -> int:
        """How many adapters training did not move from zero, or from where they started."""
        if not self.from_weights:
            return super().unmoved(model, adapters)
        starts = getattr(model, STARTS)
        return sum(size(adapters[name]) == start for name, start in starts.items())

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


def size(parameter: nn.Parameter) -> float:
    """The sum of absolute values: equal again only where nothing moved it."""
    return float(parameter.detach().abs().sum())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
