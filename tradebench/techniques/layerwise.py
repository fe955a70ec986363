"""One decoder layer after the other, each on what the layers before it really put out.

Methods that look at activations change a layer and only then compute what the next one is fed, so
that it can make up for what the ones before it have lost. Of all activations, those between two
layers are kept, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tradebench.techniques.protocol import model_inputs
from tradebench.techniques.targets import decoder_layers, decoder_linears

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Batch

    See = Callable[[nn.Linear, Tensor], None]


@dataclass
class Call:
    """What the decoder layers are called with for one batch.

    `states` is the input of the layer at hand, of shape (sequences, tokens, width), `settings` what
    each layer is given beside it, and `real` is True at tokens that are no padding.
    """

    states: Tensor
    settings: list[Mapping[str, Any]]
    real: Tensor


@dataclass(frozen=True)
class Layer:
    """A decoder layer with the inputs that it gets from the layers before it."""

    index: int
    module: nn.Module
    linears: tuple[nn.Linear, ...]
    calls: list[Call]

    def watch(self, see: See) -> None:
        """Run the layer on every batch and show each linear layer's inputs, as (tokens, features).

        Padding is left out: its activations say nothing about any text.
        """
        for call in self.calls:
            hooks = [
                linear.register_forward_pre_hook(_showing(see, call.real))
                for linear in self.linears
            ]
            _run(self, call)
            for hook in hooks:
                hook.remove()

    def proceed(self) -> None:
        """Put the layer's outputs in the place of its inputs."""
        for call in self.calls:
            call.states = _run(self, call)


def layers_in_turn(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Layer]:
    """Every decoder layer, first to last; the one before it proceeds as it is when it is left."""
    was_training = model.training
    model.eval()
    calls = [_enter(model, batch) for batch in batches]
    modules = decoder_layers(model)
    linears = [linear for _, linear in decoder_linears(model)]
    for index, module in enumerate(modules):
        inside = set(module.modules())
        own = tuple(linear for linear in linears if linear in inside)
        layer = Layer(index, module, own, calls)
        yield layer
        if index < len(modules) - 1:
            layer.proceed()
    model.train(was_training)


def _showing(see: See, real: Tensor) -> Callable[[nn.Linear, tuple[Tensor, ...]], None]:
    def show(linear: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        see(linear, inputs[0][real])

    return show


def _run(layer: Layer, call: Call) -> Tensor:
    import torch

    with torch.no_grad():
        states: Tensor = layer.module(call.states, **call.settings[layer.index])
    return states


def _enter(model: nn.Module, batch: Batch) -> Call:
    """Walk a batch through the decoder with every layer passing on what it is given."""
    import torch

    entered: list[Tensor] = []
    settings: list[Mapping[str, Any]] = []

    def pass_on(states: Tensor, **given: Any) -> Tensor:
        entered.append(states)
        settings.append(given)
        return states

    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]  # transformers' accessor
    with torch.no_grad(), _in_place_of_layers(model, pass_on):
        decoder(**model_inputs(batch), use_cache=False)
    return Call(entered[0], settings, batch["attention_mask"].bool())


@contextmanager
def _in_place_of_layers(model: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    layers = decoder_layers(model)
    for layer in layers:
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]
