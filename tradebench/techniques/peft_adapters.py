"""What all adapters by peft have in common: a frozen base, chosen layers, merging, and proof.

A file for each family of methods names its settings and the configuration that peft makes of them.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import of_adapter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftConfig
    from torch import nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial

    Adapters = Mapping[str, nn.Parameter]


class PeftAdapter(Technique):
    """Trains a few parameters beside frozen linear layers, by peft.

    `still` names the parameter of each adapter that starts at zero, so that the model starts as its
    base and an adapter that never had a gradient is found out.
    """

    slot, stage = "adapters", Stage.ADAPT

    still: ClassVar[str]

    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear", description="names of the linear layers that get an adapter"
    )
    merge: bool = Field(False, description="merge into the base before the final evaluation")

    def conflicts(self, trial: Trial) -> list[str]:
        """The factors of a matrix do not go by its name."""
        reasons = []
        if self.targets != "all-linear" and trial.method("low_rank") is not None:
            reasons.append("a factored layer is two layers of other names; use the default targets")
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """Merging into integers rounds."""
        method = trial.method("quantization")
        if self.merge and method is not None:
            return [f"merging rounds the adapter into {method} weights: scores may move"]
        return []

    @abstractmethod
    def config(self) -> PeftConfig:
        """What peft makes the adapters from."""

    @property
    def target_modules(self) -> str | list[str]:
        """The targets as peft takes them."""
        return self.targets if isinstance(self.targets, str) else list(self.targets)

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Freeze the model and wrap the target layers."""
        from peft import get_peft_model

        adapted: nn.Module = get_peft_model(model, self.config())
        return adapted

    def trained(self, model: nn.Module) -> nn.Module:
        """Fold the adapters into the base, where that was asked for."""
        import torch

        if not self.merge:
            return model
        # With a graph, each weight that OFT rotates would hold on to its adapter for good.
        with torch.no_grad(), warnings.catch_warnings():
            # That merging rounds is among the cautions, before the trial runs.
            warnings.filterwarnings("ignore", "Merge .* module to .*-bit linear")
            merged: nn.Module = model.merge_and_unload()  # type: ignore[operator]  # peft's method
        return merged

    def effect(self, model: nn.Module) -> Effect:
        """Count adapted layers and what trains; a frozen adapter or a training base is an error."""
        adapters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if of_adapter(model, name)
        }
        self.check_training(model, adapters)
        self.check_targets(adapters)
        self.check_settings(model, adapters)
        layers = sum(f".{self.still}." in name for name in adapters)
        still = self.unmoved(model, adapters)
        if still:
            raise ContradictionError(
                f"{still} of {layers} {self.method} adapters were not moved by training"
            )
        return {
            "layers": layers,
            "trainable_parameters": sum(parameter.numel() for parameter in adapters.values()),
        }

    def check_training(self, model: nn.Module, adapters: Adapters) -> None:
        """Hold training to the adapters, all of them and of this method, and to nothing else.

        Raises:
            ContradictionError: there are none, some are frozen, or the base trains.
        """
        own = any(f".{self.still}." in name for name in adapters)
        frozen = [name for name, parameter in adapters.items() if not parameter.requires_grad]
        training = [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name not in adapters
        ]
        if not own or frozen or training:
            raise ContradictionError(
                f"{self.method} was asked for, but the model has {own * len(adapters)} adapter "
                f"matrices, {len(frozen)} of them frozen, and {len(training)} base parameters that "
                "train"
            )

    def check_targets(self, adapters: Adapters) -> None:
        """Hold every name among the targets to an adapter.

        Raises:
            ContradictionError: no layer of such a name got one.
        """
        missed = [
            target
            for target in (() if self.targets == "all-linear" else self.targets)
            if not any(f"{target}.{self.still}." in name for name in adapters)
        ]
        if missed:
            raise ContradictionError(f"no layer named {', '.join(missed)} got an adapter")

    def check_settings(self, model: nn.Module, adapters: Adapters) -> None:
        """Hold the adapters to the method's own settings.

        Raises:
            ContradictionError: they were not made as asked for.
        """

    def unmoved(self, model: nn.Module, adapters: Adapters) -> int:
        """How many adapters training did not move: what starts at zero and still is."""
        return sum(
            bool(parameter.abs().sum() == 0)
            for name, parameter in adapters.items()
            if f".{self.still}." in name
        )
