"""Gradient checkpointing: drop activations on the way forward, recompute them on the way back.

A recomputed layer keeps its input only and pays one more forward pass of itself, about a third of
the step when all layers do. Selective checkpointing keeps the results of its most expensive
operations beside the input, so that the cheap ones are all that is computed twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import decoder_layers

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.checkpoint import CheckpointPolicy

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial


class Checkpointing(Technique):
    """Recomputes a fraction of the decoder layers, spread evenly over the depth, or named ones."""

    slot, stage, axis = "checkpointing", Stage.RECOMPUTE, "ratio"
    cite = "Chen et al. 2016, arXiv:1604.06174"
    exact = True

    method: Literal["full"] = "full"
    ratio: float = Field(1.0, gt=0, le=1, description="share of decoder layers recomputed")
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="which decoder layers are recomputed, counted from 0, instead of a ratio"
    )

    @property
    def label(self) -> str:
        """`checkpointing 0.5`, or `checkpointing layers 0, 2`."""
        if self.layers is None:
            return f"checkpointing {self.ratio:g}"
        return f"checkpointing layers {', '.join(map(str, self.layers))}"

    def settings(self) -> dict[str, Any]:
        """The fields as JSON; `layers` only where they are named, as in Results of old."""
        fields = super().settings()
        if self.layers is None:
            del fields["layers"]
        return fields

    def recomputed(self, layers: int) -> set[int]:
        """Which of so many layers are recomputed: at least one, spread evenly, unless named."""
        if self.layers is not None:
            return set(self.layers)
        count = max(1, round(self.ratio * layers))
        return {index * layers // count for index in range(count)}

    def kinds(self, layers: int) -> tuple[Hashable, ...]:
        """Whether each layer is recomputed."""
        chosen = self.recomputed(layers)
        return tuple(index in chosen for index in range(layers))

    def arranged(self, kinds: Sequence[Hashable]) -> Self:
        """The same, with these layers recomputed."""
        chosen = tuple(index for index, kind in enumerate(kinds) if kind)
        return self.model_copy(update={"layers": chosen})

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Switch recomputation on for the chosen layers and count the recomputations."""
        # transformers 5.17 knows it by its old name only, of which later versions warn.
        any_version: Any = model
        enable = getattr(model, "activation_checkpointing_enable", None)
        enable = enable or any_version.gradient_checkpointing_enable
        # Installs the checkpoint function on every layer; which of them use it is set below.
        enable({"use_reentrant": False, **self._recomputing(model)})
        layers = decoder_layers(model)
        chosen = self.recomputed(len(layers))
        for index, layer in enumerate(layers):
            layer.gradient_checkpointing = index in chosen  # type: ignore[assignment]  # a flag
            part = _first_part(layer)
            part.recomputations = 0  # type: ignore[assignment]  # a counter
            part.register_forward_pre_hook(_count_recomputation)
        return model

    def _recomputing(self, model: nn.Module) -> dict[str, Any]:
        """What torch's checkpoint function is told beyond which form of it to use."""
        return {}

    def effect(self, model: nn.Module) -> Effect:
        """Count the layers that really ran forward again inside a backward pass."""
        layers = decoder_layers(model)
        counts = [int(getattr(_first_part(layer), "recomputations", 0)) for layer in layers]
        found = {index for index, count in enumerate(counts) if count}
        if found != self.recomputed(len(layers)):
            raise ContradictionError(
                f"{self.label} was asked for, but layers {sorted(found)} of {len(layers)} were "
                "recomputed"
            )
        return {"layers": len(found), "recomputations": sum(counts)}


class SelectiveCheckpointing(Checkpointing):
    """Recomputes a fraction of the decoder layers but for their matrix products or attention.

    What is kept is not only what the backward pass would have kept: torch holds the result of every
    operation that it is told to save.
    """

    cite = "Korthikanti et al. 2022, arXiv:2205.05198"

    # Without a default: a suite that names no method of this slot means the plain one.
    method: Literal["selective"]  # type: ignore[assignment]  # narrower than the base's
    save: Literal["both", "matmuls", "attention"] = Field(
        "both", description="operations whose results are kept instead of computed again"
    )

    @property
    def label(self) -> str:
        """`selective 0.5 saving matmuls`, without the last words where both are saved."""
        words = super().label.replace("checkpointing", self.method)
        return words if self.save == "both" else f"{words} saving {self.save}"

    def cautions(self, trial: Trial) -> list[str]:
        """Products of frozen layers are kept although no gradient needs them."""
        if self.save == "attention" or trial.method("adapters") is None:
            return []
        return [
            "selective checkpointing keeps products of frozen layers that no gradient needs: "
            "beside adapters it can take more memory than no checkpointing at all"
        ]

    def _recomputing(self, model: nn.Module) -> dict[str, Any]:
        """Contexts that keep the results of chosen operations, and count them."""
        from torch.utils.checkpoint import create_selective_checkpoint_contexts

        kept: Counter[str] = Counter()
        _first_part(decoder_layers(model)[0]).kept_results = kept  # type: ignore[assignment]  # a note
        policy = partial(_policy, frozenset(_operations(self.save)), kept)
        return {"context_fn": partial(create_selective_checkpoint_contexts, policy)}

    def effect(self, model: nn.Module) -> Effect:
        """Count the recomputed layers and, by operation, the results that were kept in them."""
        found = super().effect(model)
        kept = getattr(_first_part(decoder_layers(model)[0]), "kept_results", Counter())
        if not kept:
            raise ContradictionError(
                f"{self.label} was asked for, but no result of an operation was kept"
            )
        return {**found, "kept": dict(sorted(kept.items()))}


# By name, since not every build of torch has them all. Quantized layers multiply by operations of
# their own, which count as products too. Attention that is written out, where no fused kernel takes
# it, consists of batched products, which nothing else in a decoder layer needs.
OPERATIONS = {
    "matmuls": (
        "mm",
        "addmm",
        "_int_mm",
        "_scaled_mm",
        "gemm_4bit",
        "int8_scaled_mm",
        "int8_mixed_scaled_mm",
    ),
    "attention": (
        "bmm",
        "baddbmm",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    ),
}


def _operations(save: str) -> tuple[str, ...]:
    """Names of the operations whose results are kept."""
    return OPERATIONS.get(save) or (*OPERATIONS["matmuls"], *OPERATIONS["attention"])


def _policy(
    saved: frozenset[str],
    kept: Counter[str],
    context: object,
    operation: Callable[..., object],
    *args: object,
    **kwargs: object,
) -> CheckpointPolicy:
    """Whether the result of an operation is kept; only forward passes ask."""
    from torch.utils.checkpoint import CheckpointPolicy

    name = operation._opname  # type: ignore[attr-defined]  # it is torch's, and has a name
    if name not in saved:
        return CheckpointPolicy.PREFER_RECOMPUTE
    kept[name] += 1
    return CheckpointPolicy.MUST_SAVE


def _first_part(layer: nn.Module) -> nn.Module:
    """Where recomputations of a layer are counted: its attention, or what else comes first.

    transformers checkpoints a layer's forward and leaves the layer's own hooks outside.
    """
    return next(layer.children())


def _count_recomputation(module: nn.Module, inputs: object) -> None:
    """Count a forward pass that happens while a backward pass is running."""
    import torch

    if torch._C._current_graph_task_id() != -1:  # the test that torch.utils.checkpoint uses
        module.recomputations += 1  # type: ignore[operator, assignment]  # a counter
