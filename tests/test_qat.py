"""Training on rounded weights: what they are rounded to, and what is left in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.qat import FakeQuantizedLinear

from tradebench.errors import UserError
from tradebench.predict.memory import predict_memory
from tradebench.techniques import ContradictionError
from tradebench.techniques.qat import QAT
from tradebench.techniques.targets import decoder_linears
from tradebench.techniques.torchao_library import is_torchao
from tradebench.trial import Trial

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]
Compress = Callable[[Trial], nn.Module]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]

LORA = {"method": "lora", "rank": 4}
WEIGHTS = 491_520  # of the tiny model's decoder

every_width = pytest.mark.parametrize("bits", [4, 8])
every_setting = pytest.mark.parametrize(
    "fields",
    [{"bits": 4}, {"bits": 8}, {"bits": 4, "activations": True}, {"bits": 4, "group": 64}],
    ids=str,
)


def rounding(**fields: Any) -> dict[str, Any]:
    return {"quantization": {"method": "qat", **fields}}


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(torch.tensor([[5, 6, 7, 8]])).logits
    return logits


def finish(trial: Trial, model: nn.Module) -> nn.Module:
    for part in trial.techniques:
        model = part.trained(model)
    return model


def rounded_by_hand(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """A weight as it is rounded, group by group, and where it was not clipped."""
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) * 2 / (highest - lowest)
    steps = (groups * (1 / scale)).round()  # the largest lie on a tie, so this matters
    inside = (steps >= lowest) & (steps <= highest)
    rounded = steps.clamp(lowest, highest) * scale
    return rounded.reshape(weight.shape), inside.reshape(weight.shape)


@every_width
@pytest.mark.parametrize("group", [32, 64])
def test_products_and_gradients_are_those_of_the_rounded_weight(
    bits: int, group: int, tiny_trial: Make, compressed: Compress
) -> None:
    """Gradients pass the rounding as they are, and do not reach what was clipped."""
    model = compressed(tiny_trial(rounding(bits=bits, group=group)))
    linear: Any = model.get_submodule("model.layers.0.mlp.down_proj")
    values = torch.randn(5, 192)
    rounded, inside = rounded_by_hand(linear.weight.detach(), bits, group)
    slope = torch.randn(5, 128)
    result = linear(values)
    result.backward(slope)

    torch.testing.assert_close(result, values @ rounded.T)
    torch.testing.assert_close(linear.weight.grad, slope.T @ values * inside)


@every_setting
def test_what_is_evaluated_is_quantized_and_computes_what_was_trained(
    fields: dict[str, Any], tiny_trial: Make, run_trial: Run
) -> None:
    trial = tiny_trial(rounding(**fields))
    model, _, _ = run_trial(trial)
    expected = answer(model)
    quantized = finish(trial, model)
    weights: list[Any] = [linear.weight for _, linear in decoder_linears(quantized)]

    assert torch.equal(answer(quantized), expected)
    assert len(weights) == 28
    assert all(is_torchao(weight) and weight.qdata.dtype == torch.int8 for weight in weights)
    assert all(len(weight.qdata.unique()) <= 2 ** fields["bits"] for weight in weights)
    assert not is_torchao(quantized.get_output_embeddings().weight)  # type: ignore[operator]


# What does not go together with it, and really does not.


def test_an_adapter_learns_beside_rounded_weights(tiny_trial: Make, run_trial: Run) -> None:
    trial = tiny_trial({**rounding(), "adapters": LORA})
    model, _, effects = run_trial(trial)
    expected = answer(model)

    assert effects["quantization"]["layers"] == effects["adapters"]["layers"] == 28
    assert torch.equal(answer(finish(trial, model)), expected)


def test_dora_is_refused_because_another_model_would_be_evaluated(
    tiny_trial: Make, run_trial: Run
) -> None:
    trial = tiny_trial({**rounding(), "adapters": {**LORA, "method": "dora"}})
    (reason,) = trial.conflicts()
    model, _, _ = run_trial(trial)
    expected = answer(model)
    error = (answer(finish(trial, model)) - expected).norm() / expected.norm()

    assert reason.startswith("dora divides by the norm of the dense weight in training")
    assert error > 0.01


def test_merging_is_refused_and_does_fail(tiny_trial: Make, run_trial: Run) -> None:
    trial = tiny_trial({**rounding(), "adapters": {**LORA, "merge": True}})
    model, _, _ = run_trial(trial)

    assert trial.conflicts() == (
        "an adapter cannot merge into weights that qat rounds; set merge: false",
    )
    with pytest.raises(NotImplementedError, match="unimplemented operator"):
        finish(trial, model)


def test_splitting_is_refused_and_does_fail(tiny_trial: Make, run_trial: Run) -> None:
    trial = tiny_trial({**rounding(), "sharding": {"method": "fsdp2"}})
    model, _, _ = run_trial(trial)

    assert trial.conflicts() == (
        "qat cannot quantize weights that are split over processes; set sharding: off",
    )
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        answer(finish(trial, model))


def test_groups_that_do_not_divide_a_row_are_refused(
    tiny_trial: Make, compressed: Compress
) -> None:
    with pytest.raises(UserError, match="a group of 48 does not divide the 128 weights of a row"):
        compressed(tiny_trial(rounding(group=48)))


@pytest.mark.parametrize(
    ("factors", "legal"), [({"rank": 32}, True), ({"rank": 16}, False), ({"energy": 0.5}, False)]
)
def test_factored_layers_have_rows_that_groups_divide_or_are_refused(
    factors: dict[str, Any], legal: bool, tiny_trial: Make, run_trial: Run
) -> None:
    trial = tiny_trial({**rounding(), "low_rank": {"method": "svd", **factors}}, steps=1)

    assert (trial.conflicts() == ()) is legal
    if legal:
        assert run_trial(trial)[2]["quantization"]["layers"] == 2 * 28
    else:
        with pytest.raises(UserError, match="a group of 32 does not divide"):
            run_trial(trial)


# What it takes, and what gives it away.


@pytest.mark.slow
def test_rounding_takes_memory_and_saves_none(tiny_trial: Make) -> None:
    """A rounded copy of every weight waits for the way back, of frozen ones too."""

    def peak(settings: dict[str, Any]) -> float:
        trial = tiny_trial(settings, batch=1, sequence=4)
        return predict_memory(trial).measurements["peak_tensor_bytes"].value

    more = peak({**rounding(), "adapters": LORA}) - peak({"adapters": LORA})

    assert more > 4 * WEIGHTS


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"bits": 8}, {"bits": 4}),
        ({"group": 64}, {"group": 32}),
        ({}, {"activations": True}),
        ({"activations": True}, {}),
    ],
)
def test_another_rounding_is_found_out(
    given: dict[str, Any], asked: dict[str, Any], tiny_trial: Make, run_trial: Run
) -> None:
    model, _, _ = run_trial(tiny_trial(rounding(**given), steps=1))

    with pytest.raises(ContradictionError, match="28 of 28 linear layers have not rounded"):
        QAT(method="qat", **asked).effect(model)


def test_layers_that_never_ran_or_are_switched_off_are_found_out(
    tiny_trial: Make, compressed: Compress
) -> None:
    trial = tiny_trial(rounding())
    model = compressed(trial)
    (technique,) = trial.techniques
    with pytest.raises(ContradictionError, match="28 of 28 linear layers have not rounded"):
        technique.effect(model)
    answer(model)
    # A scale for every 32 weights.
    assert technique.effect(model) == {"layers": 28, "scales": WEIGHTS // 32}
    layers = [layer for layer in model.modules() if isinstance(layer, FakeQuantizedLinear)]
    layers[5].weight_fake_quantizer.enabled = False
    with pytest.raises(ContradictionError, match="1 of 28 linear layers have not rounded"):
        technique.effect(model)
