"""Low-rank factorisation: put two thin matrices in the place of every decoder matrix.

W of shape (out, in) becomes up · down, of rank r, by the singular value decomposition: r (out + in)
numbers instead of out · in. The plain one keeps the weights' error smallest, the activation-aware
one that of the outputs, for the inputs of a few training batches. The factors are ordinary linear
layers: they train, they take adapters, and they can be quantized.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from tradebench.errors import UserError
from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.shapes import matrix_shapes
from tradebench.techniques.targets import decoder_linears

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial

DOWN, UP = "down", "up"
FLOOR = 1e-6  # of the largest variance of the inputs; below it lies what fp32 cannot tell from zero


class Svd(Technique):
    """Factors every decoder matrix, by rank or by the share of its squared singular values.

    By `energy` each matrix gets a rank of its own, and one that would not get smaller stays dense.
    """

    slot, stage, axis = "low_rank", Stage.FACTOR, "rank"
    cite = "Eckart & Young 1936, https://doi.org/10.1007/BF02288367; SVD-LLM arXiv:2403.07378"
    affine = ("rank",)

    method: Literal["svd", "svd_activation"]
    rank: int = Field(16, ge=1, description="columns of the factors of every matrix")
    energy: float | None = Field(
        None, gt=0, lt=1, description="share of squared singular values kept, instead of a rank"
    )
    calibration: int = Field(
        8, ge=1, description="training batches that svd_activation looks at; svd looks at none"
    )

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if self.energy is not None and "rank" in self.model_fields_set:
            raise ValueError("rank and energy are two measures of one thing: give one of them")
        if self.method == "svd" and "calibration" in self.model_fields_set:
            raise ValueError("svd looks at no data: use svd_activation, or leave calibration out")
        return self

    @property
    def label(self) -> str:
        """`svd r16`, or `svd energy 0.9`."""
        if self.energy is None:
            return f"{self.method} r{self.rank}"
        return f"{self.method} energy {self.energy:g}"

    def settings(self) -> dict[str, Any]:
        """The fields as JSON, without those that this method or measure leaves unused."""
        fields = super().settings()
        del fields["energy" if self.energy is None else "rank"]
        if self.method == "svd":
            del fields["calibration"]
        return fields

    def conflicts(self, trial: Trial) -> list[str]:
        """A rank must make every matrix smaller; factors of a sparse matrix are not sparse."""
        reasons = []
        limit = min((_limit(*shape) for shape in matrix_shapes(trial.model)), default=self.rank)
        if self.energy is None and self.rank > limit:
            reasons.append(_too_wide(self.rank, limit))
        if trial.method("pruning") is not None:
            reasons.append("the factors of a pruned matrix have no zeros; use only one of the two")
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """By energy, nobody knows the ranks before the weights are read."""
        if self.energy is not None:
            return ["ranks by energy follow from the weights: memory cannot be predicted"]
        return []

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Factor each decoder matrix; nothing of the dense one is left."""
        names = [name for name, _ in decoder_linears(model)]  # no layer is held on to
        if self.method == "svd_activation":
            self._replace_while_called(model, names, request)
        else:
            for name in names:
                self._replace(model, name)
        return model

    def _replace_while_called(
        self, model: nn.Module, names: Sequence[str], request: LoadRequest
    ) -> None:
        """Show the decoder all calibration batches at once; factor each matrix after its product.

        Everything sees what the dense model computes. One matrix's second moment is held at a time;
        those that get the same inputs, such as queries, keys and values, share it.
        """
        import torch

        tokens, real = _calibration(request, self.calibration)
        roots = _Roots(real)
        handles = [
            model.get_submodule(name).register_forward_hook(
                lambda linear, inputs, output, name=name: self._replace(
                    model, name, roots.of(inputs[0])
                )
            )
            for name in names
        ]
        decoder: nn.Module = model.get_decoder()  # type: ignore[operator]  # a method
        with torch.no_grad():
            decoder(input_ids=tokens, use_cache=False)
        for handle in handles:
            handle.remove()

    def _replace(
        self, model: nn.Module, name: str, roots: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Put the factors of a layer in its place, under the same name.

        Raises:
            UserError: the rank would make it larger, or is not known.
        """
        import torch

        linear: nn.Linear = model.get_submodule(name)  # type: ignore[assignment]  # one of ours
        dense = linear.weight.data.float()
        limit = _limit(*dense.shape)
        if self.energy is None and self.rank > limit:
            raise UserError(_too_wide(self.rank, limit))
        left, values, right = torch.linalg.svd(
            dense if roots is None else dense @ roots[0], full_matrices=False
        )
        rank = self.rank if self.energy is None else _rank_of(values, self.energy)
        if rank > limit:  # by energy: it stays dense
            return
        scale = values[:rank].sqrt()
        up, down = left[:, :rank] * scale, scale[:, None] * right[:rank]
        if roots is not None:
            down = down @ roots[1]
        model.set_submodule(name, _factors(linear, up, down))

    def effect(self, model: nn.Module) -> Effect:
        """Count factored matrices, their numbers, and those of the matrices that they stand for."""
        linears = {
            name.removesuffix(".base_layer"): linear for name, linear in decoder_linears(model)
        }
        pairs = [
            (linears[f"{name}.{DOWN}"], linears[f"{name}.{UP}"])
            for name in (key.removesuffix(f".{DOWN}") for key in linears if key.endswith(DOWN))
            if f"{name}.{UP}" in linears
        ]
        dense = len(linears) - 2 * len(pairs)
        ranks = {down.out_features for down, _ in pairs} | {up.in_features for _, up in pairs}
        if not pairs or (self.energy is None and (dense or ranks != {self.rank})):
            raise ContradictionError(
                f"{self.label} was asked for, but {len(pairs)} matrices are factored, of rank "
                f"{', '.join(map(str, sorted(ranks))) or 'none'}, and {dense} are dense"
            )
        kept = sum(part.in_features * part.out_features for pair in pairs for part in pair)
        whole = sum(down.in_features * up.out_features for down, up in pairs)
        return {
            "matrices": len(pairs),
            "dense_matrices": dense,
            "ranks": [min(ranks), max(ranks)],
            "parameters": kept,
            "parameters_before": whole,
        }


class _Roots:
    """The root of the second moment of inputs, and its inverse; the last ones are kept.

    Any root R with R Rᵀ = XᵀX will do: |(W - V) R| is the error of the outputs. The symmetric one
    needs no decision by values. Directions in which there are no inputs get a little variance, so
    that it can be inverted.
    """

    def __init__(self, real: Tensor) -> None:
        self._real = real
        self._inputs: Tensor | None = None
        self._roots: tuple[Tensor, Tensor] | None = None

    def of(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Root and inverse root for the inputs of one layer, padding left out."""
        import torch

        if self._roots is None or self._inputs is not inputs:
            self._inputs, self._roots = inputs, None  # released before the next are made
            rows = inputs[self._real].float()
            variances, directions = torch.linalg.eigh(rows.T @ rows)
            scales = variances.clamp(min=FLOOR * variances[-1]).sqrt()
            self._roots = (
                (directions * scales) @ directions.T,
                (directions / scales) @ directions.T,
            )
        return self._roots


def _calibration(request: LoadRequest, batches: int) -> tuple[Tensor, Tensor]:
    """Tokens of so many training batches together, and which of them are no padding."""
    import torch
    from torch.nn.functional import pad

    chosen = list(islice(request.calibration(), batches))
    length = max(batch["input_ids"].shape[1] for batch in chosen)
    tokens, mask = (
        torch.cat([pad(batch[key], (0, length - batch[key].shape[1])) for batch in chosen])
        for key in ("input_ids", "attention_mask")
    )
    return tokens, mask.bool()


def _factors(linear: nn.Linear, up: Tensor, down: Tensor) -> nn.Module:
    """Two linear layers that do, one after the other, what one did; the bias goes with the last."""
    from collections import OrderedDict

    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict(
        (name, nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta"))
        for name, weight in ((DOWN, down), (UP, up))
    )
    for name, weight in ((DOWN, down), (UP, up)):
        layers[name].weight = nn.Parameter(
            weight.to(linear.weight.dtype).contiguous(), requires_grad=linear.weight.requires_grad
        )
    layers[UP].bias = linear.bias
    return nn.Sequential(layers)


def _rank_of(values: Tensor, energy: float) -> int:
    """The fewest singular values that hold so large a share of the sum of their squares.

    Raises:
        UserError: the values are not known, as in a prediction.
    """
    from torch._subclasses.fake_tensor import FakeTensor

    if isinstance(values, FakeTensor):
        raise UserError(
            "low_rank by energy takes its ranks from the weights, which a prediction does not "
            "read; set rank instead, or run the point to measure it"
        )
    shares = values.double().square().cumsum(0)
    return int((shares < energy * shares[-1]).sum()) + 1


def _limit(rows: int, columns: int) -> int:
    """The largest rank whose factors hold fewer numbers than the matrix."""
    return (rows * columns - 1) // (rows + columns)


def _too_wide(rank: int, limit: int) -> str:
    return f"rank {rank} gives some matrix more numbers than it has; set rank to {limit} or less"
