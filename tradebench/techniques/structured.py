"""Structured pruning: take whole channels and heads out, so that smaller matrices are left.

What is zeroed one by one saves no byte; what goes as a row of one matrix and a column of the next
does, in weights, gradients, optimizer states and activations. Every layer loses the same number, so
that the model is an ordinary one of a smaller shape, which its config says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from tradebench.errors import UserError
from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.targets import decoder_layers, decoder_linears

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial

MULTIPLE = 64  # of channels that are kept: what kernels and blocks of quantizers divide by
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
NOTE = "pruned_from"  # the entry of the config that holds the shape before


class Cut(NamedTuple):
    """Of how many to keep how many."""

    before: int
    kept: int


class Structured(Technique):
    """Removes MLP channels and groups of attention heads that weigh least.

    A channel is a row of gate and up and a column of down; a group is a key-value head with the
    query heads that share it, rows of q, k and v and columns of o. Each weighs the sum of its
    squared weights. Channels are kept in multiples of 64.
    """

    slot, stage, axis = "pruning", Stage.PRUNE, "channels"
    cite = "Ma et al. 2023, arXiv:2305.11627 (LLM-Pruner)"

    # Without a default: a suite that names no method of this slot means the plain one.
    method: Literal["structured"]
    channels: float = Field(0.25, ge=0, lt=1, description="share of MLP channels removed")
    heads: float = Field(0.0, ge=0, lt=1, description="share of groups of heads removed")

    @property
    def label(self) -> str:
        """`structured channels 25%`, with heads where some are removed."""
        words = [f"{self.method} channels {self.channels:.0%}"]
        words += [f"heads {self.heads:.0%}"] if self.heads else []
        return " ".join(words)

    def conflicts(self, trial: Trial) -> list[str]:
        """Something has to go."""
        if self.channels or self.heads:
            return []
        return ["structured pruning of nothing leaves the model as it is; set channels or heads"]

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Put smaller matrices in the place of each layer's, and write the new shape down."""
        config: Any = model.config
        channels = self.channels_of(config.intermediate_size)
        groups = self.groups_of(config.num_key_value_heads)
        if channels.kept == channels.before and groups.kept == groups.before:
            raise UserError(
                f"{self.label} removes nothing of {channels.before} channels, which are kept in "
                f"multiples of {MULTIPLE}, and {groups.before} groups of heads"
            )
        for layer in decoder_layers(model):
            parts = _linears(layer)
            if channels.kept < channels.before:
                _cut([parts[name] for name in MLP[:2]], [parts["down_proj"]], channels)
            if groups.kept < groups.before:
                _cut([parts[name] for name in ATTENTION[:3]], [parts["o_proj"]], groups)
        head_dim = getattr(config, "head_dim", None)
        # transformers takes it from the width where it is not written, and heads are fewer now.
        config.head_dim = head_dim or config.hidden_size // config.num_attention_heads
        queries = config.num_attention_heads // groups.before
        setattr(config, NOTE, {"channels": channels.before, "groups": groups.before})
        config.intermediate_size = channels.kept
        config.num_key_value_heads = groups.kept
        config.num_attention_heads = groups.kept * queries
        return model

    def channels_of(self, before: int) -> Cut:
        """Of so many channels, the multiple of 64 that is nearest to what was asked for."""
        kept = max(1, round(before * (1 - self.channels) / MULTIPLE)) * MULTIPLE
        return Cut(before, min(before, kept) if self.channels else before)

    def groups_of(self, before: int) -> Cut:
        """Of so many groups of heads, those that stay: one at least."""
        return Cut(before, max(1, before - round(before * self.heads)))

    def effect(self, model: nn.Module) -> Effect:
        """Hold the matrices of every layer to the smaller shape, and count what went."""
        config: Any = model.config
        before = getattr(config, NOTE, None)
        if before is None:
            raise ContradictionError(
                f"{self.label} was asked for, but the model has its shape of old"
            )
        channels, groups = self.channels_of(before["channels"]), self.groups_of(before["groups"])
        inputs: list[int] = []
        outputs: list[int] = []
        for name, linear in decoder_linears(model):
            if ".down_proj" in name:
                inputs.append(linear.in_features)
            if ".k_proj" in name:
                outputs.append(linear.out_features)
        found = set(zip(inputs, outputs, strict=True))
        expected = (channels.kept, groups.kept * config.head_dim)
        if found != {expected}:
            raise ContradictionError(
                f"{self.label} leaves {expected[0]} channels and {expected[1]} rows of keys, but "
                f"layers have {sorted(found)}"
            )
        return {
            "channels_removed": channels.before - channels.kept,
            "groups_removed": groups.before - groups.kept,
            "layers": len(decoder_layers(model)),
        }


def _linears(layer: nn.Module) -> dict[str, nn.Linear]:
    """The matrices of a layer by their names.

    Raises:
        UserError: the layer is built in another way.
    """
    from torch import nn

    modules = {path.split(".")[-1]: module for path, module in layer.named_modules()}
    found = {name: part for name, part in modules.items() if isinstance(part, nn.Linear)}
    missing = [name for name in (*ATTENTION, *MLP) if name not in found]
    if missing:
        raise UserError(f"structured pruning knows no layers without {', '.join(missing)}")
    return found


def _cut(makers: list[nn.Linear], takers: list[nn.Linear], cut: Cut) -> None:
    """Keep the heaviest units: rows of those that make them, columns of those that take them."""
    import torch

    parts = [_squares(linear, 0, cut.before) for linear in makers]
    parts += [_squares(linear, 1, cut.before) for linear in takers]
    scores = torch.stack(parts).sum(0)
    units = scores.topk(cut.kept).indices.sort().values
    for dim, linears in ((0, makers), (1, takers)):
        for linear in linears:
            size = linear.weight.shape[dim] // cut.before
            places = (units[:, None] * size + torch.arange(size, device=units.device)).flatten()
            _keep(linear, dim, places)


def _squares(linear: nn.Linear, dim: int, units: int) -> Tensor:
    """The sum of squared weights of each unit, which is as many neighbouring rows or columns."""
    squares = linear.weight.data.float().square().sum(1 - dim)
    return squares.view(units, -1).sum(1)


def _keep(linear: nn.Linear, dim: int, places: Tensor) -> None:
    """Leave only these rows (`dim` 0) or columns."""
    from torch import nn

    linear.weight = nn.Parameter(linear.weight.data.index_select(dim, places))
    if dim:
        linear.in_features = len(places)
        return
    linear.out_features = len(places)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.data.index_select(0, places))
