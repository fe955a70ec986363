"""Which layers the techniques act on: the linear layers of the decoder, never the output head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from tradebench.techniques.protocol import LoadRequest


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a transformers model, first to last, adapters or not."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]


def decoder_linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Name and module of every linear layer inside the decoder layers, quantized ones included.

    The matrices of adapters are not part of the model that was loaded and are left out. The output
    head and the embedding lie outside the decoder layers: every library here leaves them alone.
    """
    from torch import nn

    layers = set(decoder_layers(model))
    inside = [name for name, module in model.named_modules() if module in layers]
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Linear)
            and any(name.startswith(f"{layer}.") for layer in inside)
            and not of_adapter(model, name)
        ):
            yield name, module


def of_adapter(model: nn.Module, name: str) -> bool:
    """Whether a module or parameter of this name is no part of the model that was loaded.

    Every layer of peft, whatever its method, keeps the one that it wraps as `base_layer`; all else
    inside it is the adapter's.
    """
    module: nn.Module | None = model
    for part in name.split("."):
        if module is None:
            return False
        if "base_layer" in module._modules and part != "base_layer":
            return True
        module = module._modules.get(part)
    return False


def replace_linears(
    model: nn.Module, make: Callable[[nn.Linear], nn.Module], request: LoadRequest | None = None
) -> None:
    """Put `make(linear)` in the place of every decoder linear, one at a time.

    Each dense weight is released before the next one is converted, so the peak is the model plus
    one layer. `around` of a request to load goes between the two, and of what comes of a layer its
    `keep` is kept.
    """
    for name in [name for name, _ in decoder_linears(model)]:
        linear: nn.Linear = model.get_submodule(name)  # type: ignore[assignment]  # one of ours
        if request is None:
            replacement = make(linear)
        else:
            replacement = request.keep(request.around(name, linear, make))
        model.set_submodule(name, replacement)
        del linear
