"""GaLore: AdamW on gradients that are projected to a low rank.

Every `update_gap` steps the leading singular vectors of a matrix's gradient become its projector:
those of the shorter side, so that moments have `rank` rows instead of hundreds or thousands. An
update is projected back and scaled. All of the matrix trains, unlike with adapters. What is not a
matrix of the decoder, or has no side longer than the rank, is stepped by AdamW as ever.

The decomposition works in fp32 on one whole gradient and returns as much again and more; in a model
of 70B it is the largest thing beside the weights, for a moment.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tradebench.techniques.protocol import ContradictionError
from tradebench.techniques.stepping import (
    BETAS,
    EPSILON,
    Replacing,
    Stepping,
    read_note,
    state_counts,
    trainable,
)
from tradebench.techniques.targets import decoder_linears

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial


class GaLore(Replacing):
    """Projects the gradients of the decoder's matrices to `rank` and keeps moments of that size."""

    axis = "rank"
    cite = "Zhao et al. 2024, arXiv:2403.03507"
    whole = "galore decomposes whole gradients and not their shares; use adamw"
    affine = ("rank",)

    method: Literal["galore"] = "galore"
    rank: int = Field(128, ge=1, description="rows of the projected gradients")
    update_gap: int = Field(200, ge=1, description="steps between two projectors")
    scale: float = Field(0.25, gt=0, description="factor of an update that is projected back")

    @property
    def label(self) -> str:
        """`galore r128`, with whatever is not as usual."""
        words = [f"{self.method} r{self.rank}"]
        words += [f"gap {self.update_gap}"] if self.update_gap != 200 else []
        words += [f"scale {self.scale:g}"] if self.scale != 0.25 else []
        words += ["in backward"] * self.in_backward
        return " ".join(words)

    def conflicts(self, trial: Trial) -> list[str]:
        """Only the gradients of whole, dense matrices can be projected."""
        reasons = super().conflicts(trial)
        if trial.method("adapters") is not None:
            reasons.append(
                "galore projects the gradients of whole matrices and adapters freeze these; "
                "use another optimizer"
            )
        elif trial.method("quantization") is not None:
            reasons.append(
                "galore projects gradients that quantized weights do not have; "
                "use another optimizer"
            )
        return reasons

    def stepping(self, model: nn.Module) -> Stepping:
        """AdamW, on projected gradients where there is a projection to make."""
        matrices = self._projected(model)
        chosen = set(matrices)
        others = [part for part in trainable(model) if part not in chosen]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "rank": self.rank},
            {"params": others, "rank": None},
        ]
        defaults = {"lr": 0.0, "update_gap": self.update_gap, "scale": self.scale}
        return Stepping(projected_adamw()(groups, defaults))

    def effect(self, model: nn.Module) -> Effect:
        """Count the matrices whose gradients were projected, and the bytes of all states."""
        found = read_note(model, self.label, projected_adamw(), in_backward=self.in_backward)
        projected, expected = found.kept.get("projector", 0), len(self._projected(model))
        asked = {"rank": self.rank, "update_gap": self.update_gap, "scale": self.scale}
        if projected < max(expected, 1) or any(
            found.settings[name] != value for name, value in asked.items()
        ):
            raise ContradictionError(
                f"{self.label} was asked for, but {projected} gradients were projected of "
                f"{expected} that have no side as short as the rank"
            )
        return state_counts(found, projected=projected)

    def _projected(self, model: nn.Module) -> list[nn.Parameter]:
        """The matrices whose gradients a projection makes smaller."""
        weights: list[Any] = [linear.weight for _, linear in decoder_linears(model)]
        return [weight for weight in weights if min(weight.shape) > self.rank]


@cache
def projected_adamw() -> type[torch.optim.Optimizer]:
    """The optimizer's class, made where torch is there to make it of.

    A group without a rank is stepped by AdamW.
    """
    import torch

    class ProjectedAdamW(torch.optim.Optimizer):
        """AdamW on projected gradients."""

        @torch.no_grad()
        def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure here
            """Update every parameter that has a gradient."""
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        _update(parameter, self.state[parameter], group)

    return ProjectedAdamW


def _update(parameter: nn.Parameter, state: dict[str, Any], group: Mapping[str, Any]) -> None:
    """One step of one parameter, in place."""
    import torch

    gradient = parameter.grad
    assert gradient is not None, "only parameters with a gradient are stepped"
    rank, taken = group["rank"], state.get("taken", 0)
    if rank is None:
        _adamw(parameter, gradient, state, group["lr"])
        return
    if taken % group["update_gap"] == 0:
        state["projector"] = leading_vectors(gradient, rank)
    state["taken"] = taken + 1
    projector = state["projector"]
    short_first = gradient.shape[0] <= gradient.shape[1]
    small = projector.T @ gradient if short_first else gradient @ projector
    change = torch.zeros_like(small)
    _adamw(change, small, state, group["lr"])
    if short_first:
        parameter.addmm_(projector, change, alpha=group["scale"])
    else:
        parameter.addmm_(change, projector.T, alpha=group["scale"])


def leading_vectors(gradient: Tensor, rank: int) -> Tensor:
    """The leading singular vectors of the shorter side, shape (side, rank), in orthogonal columns.

    They are copied: a view of them would keep all of the decomposition alive.
    """
    import torch

    left: Tensor
    right: Tensor
    left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    vectors = left if gradient.shape[0] <= gradient.shape[1] else right.T
    return vectors[:, :rank].to(gradient.dtype).clone(memory_format=torch.contiguous_format)


def _adamw(parameter: Tensor, gradient: Tensor, state: dict[str, Any], rate: float) -> None:
    """One fused step of AdamW, as the program's default takes it."""
    import torch
    from torch.optim.adamw import adamw

    if "step" not in state:
        state["step"] = torch.zeros((), device=gradient.device)
        state["exp_avg"] = torch.zeros_like(gradient)
        state["exp_avg_sq"] = torch.zeros_like(gradient)
    adamw(
        [parameter],
        [gradient],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        [],
        [state["step"]],
        fused=True,
        amsgrad=False,
        beta1=BETAS[0],
        beta2=BETAS[1],
        lr=rate,
        weight_decay=0.0,
        eps=EPSILON,
        maximize=False,
    )
