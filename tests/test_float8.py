"""fp8 training: products of 8-bit floats, here and on GPUs, and what they do not save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.float8.float8_linear import Float8Linear

from tradebench import devices
from tradebench.plan import plan
from tradebench.predict.flops import arithmetic, packet
from tradebench.predict.memory import predict_memory
from tradebench.predict.operations import Operation
from tradebench.predict.record import Record
from tradebench.predict.recorder import CALL
from tradebench.techniques import ContradictionError
from tradebench.techniques.float8 import Float8
from tradebench.trial import Trial

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]
Compress = Callable[[Trial], nn.Module]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]
Recorded = Callable[[Trial], Record]

LORA = {"method": "lora", "rank": 4}
SMALL = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SCALINGS = ("tensorwise", "rowwise", "rowwise_with_gw_hp")

every_scaling = pytest.mark.parametrize("scaling", SCALINGS)


def eight_bits(scaling: str = "tensorwise") -> dict[str, Any]:
    return {"precision": {"method": "fp8", "scaling": scaling}}


def pass_through(layer: nn.Module, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer answers, and the gradients of its input and of its weight."""
    torch.manual_seed(0)
    values = torch.randn(1, tokens, 128, dtype=torch.bfloat16, requires_grad=True)
    answer = layer(values)
    answer.backward(torch.randn_like(answer))
    weight: Any = layer.weight
    found, weight.grad = weight.grad, None
    assert values.grad is not None
    return answer.detach(), values.grad, found


@every_scaling
@pytest.mark.parametrize("tokens", [32, 33, 1])
def test_products_are_those_of_torchao_without_kernels(
    scaling: str, tokens: int, tiny_trial: Make, compressed: Compress
) -> None:
    """It emulates them: numbers are rounded to 8 bits and multiplied in fp32."""
    model = compressed(tiny_trial(eight_bits(scaling)))
    layer: Any = model.get_submodule("model.layers.0.mlp.up_proj")
    emulated = Float8Linear.from_float(layer, replace(layer.config, emulate=True))
    wide = nn.Linear(128, 192, bias=False, device="meta")
    wide.weight = layer.weight
    found, expected, rounded = (pass_through(each, tokens) for each in (layer, emulated, wide))

    for ours, theirs, exact in zip(found, expected, rounded, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
        error = (ours - exact).norm() / exact.norm()
        assert error < 0.1
    assert (found[0] - rounded[0]).norm() > 0.01 * rounded[0].norm()


@every_scaling
def test_layers_multiply_eight_bits_and_everything_is_stored_in_bf16(
    scaling: str, tiny_trial: Make, run_trial: Run
) -> None:
    model, _, effects = run_trial(tiny_trial(eight_bits(scaling)))

    assert effects["precision"] == {"layers": 28, "scaling": scaling}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert type(model.get_output_embeddings()) is nn.Linear  # type: ignore[operator]


# What a GPU would do: its operations, found without one.


def products(record: Record) -> list[Operation]:
    run = [record.operations[event - CALL] for event in record.events if event >= CALL]
    return [operation for operation in run if packet(operation) == "aten._scaled_mm"]


@pytest.mark.parametrize(
    ("scaling", "each"),
    [
        ("tensorwise", 3),
        pytest.param("rowwise", 3, marks=pytest.mark.slow),
        ("rowwise_with_gw_hp", 2),
    ],
)
def test_a_prediction_takes_products_at_the_rate_of_8_bits(
    scaling: str, each: int, tiny_trial: Make, recorded: Recorded
) -> None:
    """One forward and two backward for each layer, in two steps; in gw_hp the third is of bf16.

    Kernels want rows and columns of the right factor in multiples of 16, however many the tokens.
    """
    trial = tiny_trial(eight_bits(scaling), batch=1, sequence=33)
    found = products(recorded(trial))
    formats = {factor.dtype for product in found for factor in product.inputs[:2]}
    sizes = [size for operation in found for size in operation.inputs[1].shape]

    assert len(found) == 2 * 28 * each
    assert [size for size in sizes if size % 16] == []
    assert {arithmetic(product) for product in found} == {"fp8"}
    assert formats == {
        "float8_e4m3fn",
        *(["float8_e5m2"] if scaling == "tensorwise" else []),  # of gradients
    }


def test_gradients_of_frozen_weights_are_computed_beside_an_adapter(
    tiny_trial: Make, recorded: Recorded
) -> None:
    trial = tiny_trial({**eight_bits(), "adapters": LORA})
    found = products(recorded(trial))

    # Nothing learns before the first three layers, so no gradient passes them.
    assert len(found) == 2 * (28 * 3 - 3 * 2)
    assert any("a third of their products is wasted" in note for note in trial.cautions())


@pytest.mark.slow
def test_it_saves_no_memory(tiny_trial: Make) -> None:
    def peaks(settings: dict[str, Any]) -> list[float]:
        found = predict_memory(tiny_trial(settings)).measurements
        return [found[name].value for name in ("peak_tensor_bytes", "peak_weights_bytes")]

    fp8, bf16 = peaks(eight_bits()), peaks({"precision": {"method": "bf16"}})

    assert fp8[0] > bf16[0]
    assert fp8[1] == bf16[1]


# What it goes together with.


def test_it_takes_layers_as_pruning_leaves_them(tiny_trial: Make, run_trial: Run) -> None:
    trial = tiny_trial({**eight_bits(), "pruning": {"method": "magnitude"}, "adapters": LORA})
    _, _, effects = run_trial(trial)

    assert [part.slot for part in trial.techniques] == ["pruning", "precision", "adapters"]
    assert effects["pruning"]["zero_share"] >= 0.5
    assert effects["precision"]["layers"] == 28


@pytest.mark.parametrize("method", ["int8", "nf4", "torchao_int8", "torchao_fp8", "qat"])
def test_a_quantized_base_is_refused(method: str, tiny_trial: Make) -> None:
    settings = {**eight_bits(), "quantization": {"method": method}, "adapters": LORA}

    assert tiny_trial(settings).conflicts() == (
        "fp8 multiplies in dense layers and a quantized base has none; use bf16 instead",
    )


@pytest.mark.parametrize(
    ("device", "other"),
    [("a100-40gb", "l40s-48gb"), ("a100-80gb", "h100-80gb"), ("a10g-24gb", "l4-24gb")],
)
def test_a_gpu_without_units_for_8_bits_is_refused_in_a_sentence(
    device: str, other: str, tiny_trial: Make
) -> None:
    gpu = devices.find(device)
    has = {(8, 0): "8.0", (8, 6): "8.6"}[gpu.capability or (0, 0)]

    assert plan.refuse(tiny_trial(eight_bits()), gpu, None) == (
        f"fp8 needs a GPU of compute capability 8.9 or later and {gpu.name} has {has}; "
        f"use {other} or another precision",
    )


@pytest.mark.parametrize("device", ["l4-24gb", "h100-80gb", "rtx-5090-32gb", "mi300x-192gb"])
def test_a_gpu_with_them_is_not(device: str, tiny_trial: Make) -> None:
    assert plan.refuse(tiny_trial(eight_bits()), devices.find(device), None) == ()


# What gives it away.


def test_another_scaling_or_layer_or_format_is_found_out(
    tiny_trial: Make, compressed: Compress
) -> None:
    model = compressed(tiny_trial(eight_bits()))
    with pytest.raises(ContradictionError, match="28 of 28 linear layers multiply otherwise"):
        Float8(method="fp8", scaling="rowwise").effect(model)
    technique = Float8(method="fp8")
    linear: Any = model.get_submodule("model.layers.1.mlp.up_proj")
    linear.weight.data = linear.weight.data.float()
    with pytest.raises(ContradictionError, match="1 weights are not stored in bf16"):
        technique.effect(model)
    model.set_submodule("model.layers.1.mlp.up_proj", nn.Linear(128, 192))
    with pytest.raises(ContradictionError, match="1 of 28 linear layers multiply otherwise"):
        technique.effect(model)
