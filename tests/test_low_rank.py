"""Factored matrices: the smallest error there is, no more numbers than before, and true bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tradebench.errors import UserError
from tradebench.predict.blend import blend
from tradebench.predict.depth import extend, shorten
from tradebench.predict.library import kinds_of, shallower
from tradebench.predict.memory import predict_memory
from tradebench.predict.record import Record
from tradebench.program.perform import prepare
from tradebench.techniques import ContradictionError, LoadRequest, catalogue
from tradebench.techniques.targets import decoder_linears
from tradebench.trial import Trial

Make = Callable[..., Trial]
Compress = Callable[[Trial], nn.Module]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]
Recorded = Callable[[Trial], Record]
Differences = Callable[[Record, Record], list[str]]
Array = np.ndarray[Any, Any]
Settings = Mapping[str, Any]

LORA = {"method": "lora", "rank": 4}
SVD = {"method": "svd", "rank": 8}
ACTIVATION = {"method": "svd_activation", "rank": 8, "calibration": 3}
MATRICES = 28
METHODS = pytest.mark.parametrize("low_rank", [SVD, ACTIVATION], ids=["svd", "svd_activation"])


def array(tensor: torch.Tensor) -> Array:
    found: Array = tensor.detach().double().numpy()
    return found


def matrices(model: nn.Module) -> dict[str, Array]:
    """Every decoder matrix, multiplied out where it is factored."""
    weights = {name: array(linear.weight) for name, linear in decoder_linears(model)}
    names = dict.fromkeys(re.sub(r"\.(up|down)$", "", name) for name in weights)
    return {
        name: weights[name] if name in weights else weights[f"{name}.up"] @ weights[f"{name}.down"]
        for name in names
    }


def inputs_of(model: nn.Module, trial: Trial, batches: int) -> dict[str, Array]:
    """What each decoder matrix is multiplied with for real tokens, one batch after the other."""
    found: dict[str, list[Array]] = {name: [] for name, _ in decoder_linears(model)}
    real: list[torch.Tensor] = []
    for name, linear in decoder_linears(model):
        linear.register_forward_pre_hook(
            lambda linear, given, name=name: found[name].append(array(given[0][real[-1]]))
        )
    for batch in islice(prepare(trial).request.calibration(), batches):
        real.append(batch["attention_mask"] != 0)
        with torch.no_grad():
            model(batch["input_ids"])
    return {name: np.concatenate(each) for name, each in found.items()}


def tail(matrix: Array, rank: int) -> float:
    """The Frobenius norm of what no matrix of this rank can say of another."""
    values: Array = np.linalg.svd(matrix, compute_uv=False)
    return float(np.sqrt((values[rank:] ** 2).sum()))


# The error.


def test_the_error_of_every_matrix_is_the_tail_of_its_singular_values(
    tiny_trial: Make, compressed: Compress
) -> None:
    dense = matrices(compressed(tiny_trial({})))
    factored = matrices(compressed(tiny_trial({"low_rank": SVD})))

    assert len(factored) == MATRICES
    for name, matrix in dense.items():
        error = np.linalg.norm(matrix - factored[name])
        assert error == pytest.approx(tail(matrix, 8), rel=1e-4)


def test_the_error_of_outputs_is_the_smallest_that_the_calibration_data_allow(
    tiny_trial: Make, tiny_data_path: str, compressed: Compress
) -> None:
    """Sentences are of different lengths: padding counts for nothing."""

    def trial(settings: Settings) -> Trial:
        return tiny_trial(settings, data={"file": tiny_data_path}, batch=4)

    model = compressed(trial({}))
    dense, inputs = matrices(model), inputs_of(model, trial({}), 3)
    plain = matrices(compressed(trial({"low_rank": SVD})))
    aware = matrices(compressed(trial({"low_rank": ACTIVATION})))

    for name, matrix in dense.items():
        wanted = inputs[name] @ matrix.T
        error, of_plain = (
            np.linalg.norm(wanted - inputs[name] @ found[name].T) for found in (aware, plain)
        )
        assert error == pytest.approx(tail(wanted, 8), rel=2e-3)
        assert error < of_plain


def test_more_batches_are_another_calibration(tiny_trial: Make, compressed: Compress) -> None:
    one, two = (
        matrices(compressed(tiny_trial({"low_rank": {**ACTIVATION, "calibration": batches}})))
        for batches in (1, 2)
    )

    assert all(not np.allclose(one[name], two[name]) for name in one)


def test_a_bias_goes_with_the_second_factor() -> None:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    config = LlamaConfig(**shape, vocab_size=32, num_hidden_layers=1, attention_bias=True)
    model = LlamaForCausalLM(config)
    given = torch.randn(3, 64)
    layer: Any = model.model.layers[0].self_attn
    nn.init.normal_(layer.q_proj.bias)
    bias, expected = layer.q_proj.bias, layer.q_proj(given)
    request = LoadRequest(device="cpu", dtype=torch.float32, compute_dtype=torch.float32)
    catalogue()["low_rank"]["svd"].model_validate({"method": "svd", "rank": 31}).model(
        model, request
    )

    assert layer.q_proj.up.bias is bias
    assert layer.q_proj.down.bias is None
    assert (layer.q_proj(given) - expected).norm() < 0.5 * (expected - bias).norm()


# Ranks.


def grows(rank: int, rows: int, columns: int) -> bool:
    return rank * (rows + columns) >= rows * columns


@pytest.mark.parametrize(
    ("model", "smallest"),
    [
        ({"name": "reference"}, (32, 128)),
        ({"name": "x/y", "config": "llama-3.3-70b", "weights": "random"}, (1024, 8192)),
    ],
)
@METHODS
def test_the_first_rank_that_makes_a_matrix_larger_is_refused_before_anything_is_loaded(
    model: dict[str, str], smallest: tuple[int, int], low_rank: Settings
) -> None:
    def reasons(rank: int) -> tuple[str, ...]:
        settings = {"low_rank": {**low_rank, "rank": rank}}
        payload = {"model": model, "budget": {}, "evaluate": {}, "settings": settings}
        return Trial.from_payload(payload).conflicts()

    first = next(rank for rank in range(1, 2000) if grows(rank, *smallest))

    assert reasons(first - 1) == ()
    assert reasons(first) == (
        f"rank {first} gives some matrix more numbers than it has; set rank to {first - 1} or less",
    )


@METHODS
def test_a_rank_that_makes_a_matrix_of_an_unknown_model_larger_is_refused_in_one_line(
    low_rank: Settings, tiny_trial: Make, compressed: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tradebench.techniques.svd.matrix_shapes", lambda model: frozenset())
    trial = tiny_trial({"low_rank": {**low_rank, "rank": 43}})

    assert trial.conflicts() == ()
    with pytest.raises(UserError, match=r"^rank 43 gives some matrix more .* to 42 or less$"):
        compressed(trial)


def test_energy_takes_the_fewest_singular_values_that_hold_it(
    tiny_trial: Make, compressed: Compress
) -> None:
    dense = matrices(compressed(tiny_trial({})))
    model = compressed(tiny_trial({"low_rank": {"method": "svd", "energy": 0.6}}))
    found = {
        name.removesuffix(".down"): linear.out_features
        for name, linear in decoder_linears(model)
        if name.endswith(".down")
    }

    def expected(matrix: Array) -> int:
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        return next(
            rank for rank in range(len(squares)) if squares[:rank].sum() >= 0.6 * squares.sum()
        )

    ranks = {name: expected(matrix) for name, matrix in dense.items()}
    smaller = {name: r for name, r in ranks.items() if not grows(r, *dense[name].shape)}

    assert found == smaller
    assert len(set(found.values())) > 3


def test_a_matrix_that_would_not_get_smaller_stays_dense(
    tiny_trial: Make, compressed: Compress
) -> None:
    trial = tiny_trial({"low_rank": {"method": "svd", "energy": 0.891}})
    model = compressed(trial)
    effect = trial.techniques[0].effect(model)

    assert effect["matrices"] + effect["dense_matrices"] == MATRICES
    assert effect["matrices"] > 0 < effect["dense_matrices"]
    assert effect["parameters"] < effect["parameters_before"]


@pytest.mark.parametrize("method", ["svd", "svd_activation"])
def test_energy_that_leaves_everything_dense_is_found_out(
    method: str, tiny_trial: Make, compressed: Compress
) -> None:
    trial = tiny_trial({"low_rank": {"method": method, "energy": 0.9999}})
    model = compressed(trial)

    assert all(not linear._forward_hooks for _, linear in decoder_linears(model))
    with pytest.raises(ContradictionError, match="0 matrices are factored, of rank none, and 28"):
        trial.techniques[0].effect(model)


@pytest.mark.parametrize("method", ["svd", "svd_activation"])
def test_memory_by_energy_is_not_predicted(method: str, tiny_trial: Make) -> None:
    """Ranks follow from weights, and a prediction has none."""
    trial = tiny_trial({"low_rank": {"method": method, "energy": 0.5}})

    assert any("cannot be predicted" in caution for caution in trial.cautions())
    with pytest.raises(UserError, match="which a prediction does not read; set rank instead"):
        predict_memory(trial)


def test_another_rank_is_found_out(tiny_trial: Make, compressed: Compress) -> None:
    model = compressed(tiny_trial({"low_rank": SVD}))
    (wider,) = tiny_trial({"low_rank": {**SVD, "rank": 9}}).techniques

    with pytest.raises(ContradictionError, match="28 matrices are factored, of rank 8, and 0"):
        wider.effect(model)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "svd", "rank": 8, "energy": 0.5}, "give one of them"),
        ({"method": "svd", "calibration": 2}, "svd looks at no data"),
        ({"method": "svd", "energy": 1.0}, "less than 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: Settings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        catalogue()["low_rank"]["svd"].model_validate(settings)


def test_settings_hold_one_measure_and_calibration_where_there_is_some() -> None:
    kind: Any = catalogue()["low_rank"]["svd"]

    assert kind(method="svd").settings() == {"method": "svd", "rank": 16}
    assert kind(method="svd", energy=0.9).settings() == {"method": "svd", "energy": 0.9}
    assert kind(method="svd_activation").settings().keys() == {"method", "rank", "calibration"}
    assert kind(method="svd", energy=0.9).label == "svd energy 0.9"


# Training, and what comes after.


@METHODS
def test_all_factors_train(low_rank: Settings, tiny_trial: Make, run_trial: Run) -> None:
    trial = tiny_trial({"low_rank": low_rank}, steps=1)
    model, _, effects = run_trial(trial)
    whole = sum(linear.weight.numel() for _, linear in decoder_linears(model))
    shapes = [(128, 128), (64, 128), (64, 128), (128, 128), *[(192, 128)] * 2, (128, 192)]

    assert all(linear.weight.requires_grad for _, linear in decoder_linears(model))
    assert whole == 4 * sum(8 * (rows + columns) for rows, columns in shapes)
    assert effects["low_rank"] == {
        "matrices": MATRICES,
        "dense_matrices": 0,
        "ranks": [8, 8],
        "parameters": whole,
        "parameters_before": 4 * sum(rows * columns for rows, columns in shapes),
    }


@pytest.mark.parametrize("quantization", [{}, {"quantization": {"method": "nf4"}}])
def test_both_factors_are_quantized_and_take_adapters(
    quantization: dict[str, Any], tiny_trial: Make, run_trial: Run
) -> None:
    model, _, effects = run_trial(
        tiny_trial({"low_rank": SVD, **quantization, "adapters": LORA}, steps=1)
    )
    packed = [isinstance(linear, Linear4bit) for _, linear in decoder_linears(model)]

    assert effects["adapters"]["layers"] == len(packed) == 2 * MATRICES
    assert effects["low_rank"]["matrices"] == MATRICES
    assert all(packed) == any(packed) == bool(quantization)


def test_adapters_that_go_by_name_are_refused_on_factors(tiny_trial: Make) -> None:
    named = {**LORA, "targets": ("q_proj",)}

    assert tiny_trial({"low_rank": SVD, "adapters": LORA}).conflicts() == ()
    assert tiny_trial({"low_rank": SVD, "adapters": named}).conflicts() == (
        "a factored layer is two layers of other names; use the default targets",
    )


# Predictions.


def at(layers: int, trial: Trial) -> Trial:
    return trial.model_copy(update={"model": trial.model.model_copy(update={"layers": layers})})


@METHODS
def test_few_layers_are_continued_to_many(
    low_rank: Settings, tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    """So each dense matrix is released before the next layer's turn comes."""
    deep = at(6, tiny_trial({"low_rank": low_rank}))
    kinds = kinds_of(deep, 6)
    short = shorten(kinds)
    composed = extend(recorded(shallower(deep, short)), short, kinds)

    assert len(short) == 4
    assert differences(composed, recorded(deep)) == []


@pytest.mark.parametrize("low_rank", [pytest.param(SVD, marks=pytest.mark.slow), ACTIVATION])
def test_ranks_are_blended(
    low_rank: Settings, tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    low, high, between = (
        recorded(at(2, tiny_trial({"low_rank": {**low_rank, "rank": rank}})))
        for rank in (4, 40, 16)
    )

    assert differences(blend(low, high, Fraction(16 - 4, 40 - 4)), between) == []
