"""Weights of 8 bits by torchao: what they are, what they take, and where they would go wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

from tradebench.errors import UserError
from tradebench.predict.memory import predict_memory
from tradebench.program.model import plan_loading
from tradebench.runner.refusal import refuse
from tradebench.techniques import ContradictionError, protocol
from tradebench.techniques.targets import decoder_linears
from tradebench.techniques.torchao_library import is_torchao
from tradebench.techniques.torchao_weight_only import TorchaoWeightOnly
from tradebench.trial import Trial

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]
Compress = Callable[[Trial], nn.Module]
Adapt = Callable[[Trial, nn.Module], nn.Module]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]

METHODS = ("torchao_int8", "torchao_fp8")
LORA = {"method": "lora", "rank": 4}
BF16 = {"precision": {"method": "bf16"}}
FULL = {"checkpointing": {"method": "full"}}
# Of the tiny model: outputs and inputs of its seven kinds of linear layers, in four layers.
SHAPES = [(128, 128), (64, 128), (64, 128), (128, 128), (192, 128), (192, 128), (128, 192)] * 4
WEIGHTS, ROWS = sum(rows * columns for rows, columns in SHAPES), sum(rows for rows, _ in SHAPES)
PARAMETERS = 558_208
# An fp32 scale for each row, and beside integers a zero point of one byte, which is always zero.
SCALES = {"torchao_int8": 5 * ROWS, "torchao_fp8": 4 * ROWS}

every_method = pytest.mark.parametrize("method", METHODS)
quantized_when = pytest.mark.parametrize("in_place", [False, True], ids=["loading", "in place"])


def quantized(method: str, **more: Any) -> dict[str, Any]:
    return {"quantization": {"method": method}, "adapters": LORA, **more}


def in_place_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave weights dense while loading, so that they are quantized one by one afterwards."""
    monkeypatch.setattr(TorchaoWeightOnly, "load", lambda self, request: request)


def tensors_of(weight: Any) -> dict[str, Tensor]:
    """The tensors that a quantized weight is made of."""
    names, _ = weight.__tensor_flatten__()
    return {name: getattr(weight, name) for name in names}


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(torch.tensor([[5, 6, 7, 8]])).logits
    return logits


# What the weights are.


def by_hand(method: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight quantized by row, and its scales, as the formats define it."""
    largest = weight.float().abs().amax(1, keepdim=True)
    if method == "torchao_fp8":
        scale = largest / 448  # the largest number of e4m3
        return (weight.float() / scale).to(torch.float8_e4m3fn), scale
    scale = largest / 127.5  # half of the 255 steps from -128 to 127
    return (weight.float() / scale).round().clamp(-128, 127).to(torch.int8), scale


@every_method
@quantized_when
def test_weights_are_what_the_format_says(
    method: str,
    in_place: bool,
    tiny_trial: Make,
    compressed: Compress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense = compressed(tiny_trial({}))
    trial = tiny_trial(quantized(method))
    if in_place:
        in_place_only(monkeypatch)
    assert (plan_loading(trial, "cpu").quantization is None) is in_place
    model = compressed(trial)
    pairs = list(zip(decoder_linears(dense), decoder_linears(model), strict=True))

    assert len(pairs) == 28
    for (name, linear), (same, packed) in pairs:
        weight: Any = packed.weight
        values, scale = by_hand(method, linear.weight.detach())
        assert (same, weight.shape, weight.requires_grad) == (name, linear.weight.shape, False)
        torch.testing.assert_close(weight.scale, scale)
        # Beside the middle between two neighbours, rounding differs where scales do by a bit.
        assert (weight.qdata.float() != values.float()).float().mean() < 0.001


@every_method
def test_both_ways_of_quantizing_give_the_same(
    method: str, tiny_trial: Make, run_trial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny_trial(quantized(method, **BF16))
    loaded, losses, effects = run_trial(trial)
    in_place_only(monkeypatch)
    placed, same_losses, same_effects = run_trial(trial)

    assert (losses, effects) == (same_losses, same_effects)
    for (_, one), (_, other) in zip(decoder_linears(loaded), decoder_linears(placed), strict=True):
        found, expected = tensors_of(one.weight), tensors_of(other.weight)
        assert found.keys() == expected.keys()
        assert all(map(torch.equal, found.values(), expected.values()))


@every_method
def test_layers_multiply_with_the_dequantized_weight(
    method: str, tiny_trial: Make, compressed: Compress
) -> None:
    model = compressed(tiny_trial(quantized(method)))
    linear: Any = model.get_submodule("model.layers.0.mlp.up_proj")
    values = torch.randn(3, 128)
    dense = linear.weight.qdata.float() * linear.weight.scale

    torch.testing.assert_close(linear(values), values @ dense.T, rtol=1e-5, atol=1e-5)


@every_method
def test_embedding_and_head_are_left_alone(
    method: str, tiny_trial: Make, compressed: Compress
) -> None:
    model = compressed(tiny_trial(quantized(method)))
    packed = [name for name, weight in model.named_parameters() if is_torchao(weight)]

    assert len(packed) == 28
    assert all(".layers." in name for name in packed)


@every_method
def test_zeros_of_a_pruned_weight_stay_zero(method: str, tiny_trial: Make, run_trial: Run) -> None:
    _, _, effects = run_trial(tiny_trial(quantized(method, pruning={"method": "magnitude"})))

    assert effects["pruning"]["zero_share"] >= 0.5
    assert effects["quantization"]["layers"] == 28


# What they take.


@every_method
def test_bytes_are_those_of_the_tensors_inside(
    method: str, tiny_trial: Make, run_trial: Run
) -> None:
    _, _, effects = run_trial(tiny_trial(quantized(method, **BF16)))

    assert effects["quantization"] == {
        "layers": 28,
        "weight_bytes": WEIGHTS,
        "scale_bytes": SCALES[method],
    }
    assert effects["precision"] == {"parameters": {"bfloat16": PARAMETERS - WEIGHTS}}


@every_method
def test_transformers_counts_quantized_weights_as_if_they_were_dense(
    method: str, tiny_trial: Make, compressed: Compress
) -> None:
    model: Any = compressed(tiny_trial(quantized(method, **BF16)))

    assert model.get_memory_footprint() > 2 * PARAMETERS


@every_method
def test_a_quantized_model_takes_the_bytes_of_its_tensors_and_no_more(
    method: str, tiny_trial: Make
) -> None:
    found = predict_memory(tiny_trial(quantized(method, **BF16))).measurements
    rotary = 2 * 4 * 16  # frequencies, twice, for half a head

    assert found["peak_tensor_bytes.compress"].value == (
        WEIGHTS + SCALES[method] + 2 * (PARAMETERS - WEIGHTS) + rotary
    )


@pytest.fixture(scope="module")
def peak(tiny_trial: Make, quick_collections: None) -> Callable[[dict[str, Any]], float]:
    """The training peak of a few tokens in bf16, foreseen once for the same settings."""
    found: dict[str, float] = {}

    def foresee(settings: dict[str, Any]) -> float:
        trial = tiny_trial({**BF16, **settings}, batch=1, sequence=4)
        if trial.id not in found:
            found[trial.id] = predict_memory(trial).measurements["peak_tensor_bytes"].value
        return found[trial.id]

    return foresee


@pytest.mark.slow
@every_method
def test_dequantized_weights_are_kept_until_the_way_back_unless_layers_are_recomputed(
    method: str, tiny_trial: Make, peak: Callable[[dict[str, Any]], float]
) -> None:
    kept = peak(quantized(method)) - peak({"adapters": LORA})
    recomputed = peak(quantized(method, **FULL)) - peak({"adapters": LORA, **FULL})

    assert kept > 0.8 * WEIGHTS  # the copies are as large as what they replace
    assert recomputed < 0
    assert [
        any("keep their dequantized" in note for note in tiny_trial(settings).cautions())
        for settings in (
            quantized(method),
            quantized(method, **FULL),
            quantized(method, offload={"method": "activations"}),
            {"adapters": LORA},
        )
    ] == [True, False, False, False]


# What would go wrong.


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig, Float8WeightOnlyConfig])
def test_quantizing_leaves_the_compiler_of_the_process_alone(
    config: Any, tiny_trial: Make, compressed: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself torchao makes it search for faster kernels, whoever compiles anything later."""
    trial = tiny_trial(quantized(METHODS[config is Float8WeightOnlyConfig]))
    compiler = torch._inductor.config
    switches = ("coordinate_descent_tuning", "coordinate_descent_check_all_directions")
    with compiler.patch(dict.fromkeys((*switches, "force_fuse_int_mm_with_mul"), False)):
        compressed(trial)
        assert not compiler.coordinate_descent_tuning
        monkeypatch.setattr(TorchaoWeightOnly, "_config", lambda self: config())
        compressed(trial)
        assert compiler.coordinate_descent_tuning


@every_method
@quantized_when
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_a_merged_adapter_leaves_quantized_weights_that_compute_the_same(
    method: str,
    in_place: bool,
    adapter: str,
    tiny_trial: Make,
    run_trial: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if in_place:
        in_place_only(monkeypatch)
    adapters = {"method": adapter, "rank": 4, "merge": True}
    trial = tiny_trial({**quantized(method), "adapters": adapters})
    model, _, _ = run_trial(trial)
    expected = answer(model)
    merged = trial.techniques[-1].trained(model)
    error = (answer(merged) - expected).norm() / expected.norm()

    assert sum(map(is_torchao, merged.parameters())) == 28
    assert 0 < float(error) < 0.05  # it is rounded into the weights


@every_method
def test_weights_in_another_format_are_found_out(
    method: str, tiny_trial: Make, compressed: Compress
) -> None:
    other = next(each for each in METHODS if each != method)
    model = compressed(tiny_trial(quantized(other)))

    with pytest.raises(ContradictionError, match="28 of 28 linear layers are not in"):
        tiny_trial(quantized(method)).techniques[0].effect(model)


@every_method
def test_one_dense_layer_is_found_out(method: str, tiny_trial: Make, compressed: Compress) -> None:
    trial = tiny_trial(quantized(method))
    model = compressed(trial)
    model.set_submodule("model.layers.1.mlp.up_proj", nn.Linear(128, 192))

    with pytest.raises(ContradictionError, match="1 of 28 linear layers are not in"):
        trial.techniques[0].effect(model)


@every_method
def test_splitting_quantized_weights_is_refused_and_does_fail(
    method: str, tiny_trial: Make, run_trial: Run
) -> None:
    trial = tiny_trial(quantized(method, sharding={"method": "fsdp2"}))

    assert trial.conflicts() == (
        f"torchao cannot split {method} weights into shares; use nf4 or fp4 instead",
    )
    with pytest.raises(NotImplementedError, match="unimplemented operator"):
        run_trial(trial)


@every_method
def test_training_quantized_weights_themselves_is_refused(method: str, tiny_trial: Make) -> None:
    assert tiny_trial({"quantization": {"method": method}}).conflicts() == (
        f"{method} weights are quantized and take no gradient; add an adapter such as lora",
    )


@pytest.mark.parametrize(
    ("method", "format"), [("torchao_int8", "float32"), ("torchao_fp8", "bfloat16")]
)
def test_under_autocast_only_int8_layers_answer_in_the_format_of_their_input(
    method: str, format: str, tiny_trial: Make, run_trial: Run
) -> None:
    trial = tiny_trial(quantized(method, precision={"method": "bf16_autocast"}))
    _, _, effects = run_trial(trial)
    told = any("activations stay in fp32" in note for note in trial.cautions())

    assert effects["precision"] == {"compute": "bfloat16", "activations": format}
    assert told is (format == "float32")


def test_a_machine_without_torchao_is_told_what_to_install(
    tiny_trial: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "find_spec", lambda name: None)
    trial = tiny_trial(quantized("torchao_int8"))
    reason = (
        "torchao_int8 needs torchao, which is not installed; use pip install 'tradebench[torchao]'"
    )

    assert reason in refuse(trial)
    with pytest.raises(UserError, match=re.escape(reason)):
        plan_loading(trial, "cpu")


@pytest.mark.slow
def test_what_torchao_says_of_its_kernels_stays_out_of_results(
    tiny_model_path: str, tmp_path: Path
) -> None:
    suite = tmp_path / "eight_bits.yaml"
    suite.write_text(
        f"# Do they run?\nmodel: {{name: tiny, config: {tiny_model_path}, weights: random}}\n"
        "budget: {steps: 3, warmup: 1, batch: 2, sequence: 32, data: random}\n"
        "grid:\n  quantization: [torchao_int8, torchao_fp8]\n"
        "  adapters: {method: lora, rank: 4}\n"
    )
    for command in ("plan", "run"):
        done = subprocess.run(
            [sys.executable, "-m", "tradebench", command, str(suite), "--format", "json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout)
        assert "torchao/" not in done.stderr
