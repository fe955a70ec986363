"""Adapters by peft: what trains, where they start, and what merging changes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tradebench.predict.blend import blend
from tradebench.predict.record import Record
from tradebench.predict.structure import StructureError
from tradebench.program.loop import surrounding
from tradebench.program.perform import prepare
from tradebench.techniques import ContradictionError, catalogue
from tradebench.techniques.targets import decoder_linears
from tradebench.trial import Trial

Make = Callable[..., Trial]
Compress = Callable[[Trial], nn.Module]
Adapt = Callable[[Trial, nn.Module], nn.Module]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]
Recorded = Callable[[Trial], Record]
Differences = Callable[[Record, Record], list[str]]
Settings = dict[str, Any]

ADAPTERS: Mapping[str, Settings] = {
    "lora": {"rank": 4},
    "rslora": {"rank": 4},
    "dora": {"rank": 4},
    "pissa": {"rank": 4},
    "loftq": {"rank": 4},
    "oft": {"block": 16},
    "vera": {"rank": 32, "initial": 1.0},
}
every_adapter = pytest.mark.parametrize("method", ADAPTERS)

# (in, out) of the seven matrices of each of the tiny model's four layers.
SHAPES = [(128, 128), (128, 64), (128, 64), (128, 128), (128, 192), (128, 192), (192, 128)] * 4
TRAINABLE: Mapping[str, Callable[[int, int], int]] = {
    "lora": lambda width, height: 4 * (width + height),
    "rslora": lambda width, height: 4 * (width + height),
    "dora": lambda width, height: 4 * (width + height) + height,
    "pissa": lambda width, height: 4 * (width + height),
    "loftq": lambda width, height: 4 * (width + height),
    "oft": lambda width, height: width // 16 * (16 * 15 // 2),
    "vera": lambda width, height: height + 32,
}
TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


def settings_of(method: str, **more: Any) -> Settings:
    beside = {"quantization": {"method": "nf4"}} if method == "loftq" else {}
    return {**beside, "adapters": {"method": method, **ADAPTERS[method], **more}}


def logits(model: nn.Module, trial: Trial) -> torch.Tensor:
    with torch.no_grad(), surrounding(trial.techniques, "cpu"):
        found: torch.Tensor = model.eval()(TOKENS).logits
    return found.float()


def shaken(model: nn.Module) -> nn.Module:
    """The model with adapters that do something, as training would have left them."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter.data)
    return model


def test_every_adapter_of_the_catalogue_is_tested_here() -> None:
    assert catalogue()["adapters"].keys() == ADAPTERS.keys()


# What trains.


@every_adapter
def test_as_many_numbers_train_as_the_method_says(
    method: str, tiny_trial: Make, run_trial: Run
) -> None:
    model, _, effects = run_trial(tiny_trial(settings_of(method), steps=1))
    count = sum(TRAINABLE[method](*shape) for shape in SHAPES)

    counts = {"layers": len(SHAPES), "trainable_parameters": count}

    assert counts.items() <= effects["adapters"].items()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@every_adapter
def test_layers_that_are_wrapped_are_found_and_what_wraps_them_is_not(
    method: str, tiny_trial: Make, compressed: Compress, adapted: Adapt
) -> None:
    trial = tiny_trial(settings_of(method))
    model = compressed(trial)
    before = {id(linear) for _, linear in decoder_linears(model)}
    after = [id(linear) for _, linear in decoder_linears(adapted(trial, model))]

    assert len(after) == len(SHAPES)
    assert set(after) == before


@every_adapter
def test_an_adapter_that_was_never_trained_is_found_out(
    method: str, tiny_trial: Make, compressed: Compress, adapted: Adapt
) -> None:
    trial = tiny_trial(settings_of(method))
    model = adapted(trial, compressed(trial))

    with pytest.raises(ContradictionError, match=f"28 of 28 {method} adapters were not moved"):
        trial.techniques[-1].effect(model)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        *(("lora", "dora"), ("dora", "lora"), ("lora", "pissa"), ("pissa", "lora")),
        *(("loftq", "lora"), ("lora", "loftq")),
    ],
)
def test_another_method_is_found_out(
    given: str, asked: str, tiny_trial: Make, run_trial: Run
) -> None:
    model, _, _ = run_trial(tiny_trial(settings_of(given), steps=2))
    *_, wrong = tiny_trial(settings_of(asked)).techniques

    with pytest.raises(ContradictionError, match="are those of another method"):
        wrong.effect(model)


@pytest.mark.parametrize("method", ["oft", "vera"])
def test_another_size_is_found_out(method: str, tiny_trial: Make, run_trial: Run) -> None:
    model, _, _ = run_trial(tiny_trial(settings_of(method), steps=2))
    axis, *_ = ADAPTERS[method]
    (wrong,) = tiny_trial(settings_of(method, **{axis: 64})).techniques

    with pytest.raises(ContradictionError, match=r"64 .* but adapters have"):
        wrong.effect(model)


# Where they start.


def test_rslora_is_lora_scaled_by_the_root_of_the_rank(tiny_trial: Make, run_trial: Run) -> None:
    _, losses, _ = run_trial(tiny_trial(settings_of("lora", alpha=4.0)))
    _, of_root, _ = run_trial(tiny_trial(settings_of("rslora", alpha=2.0)))
    _, of_rank, _ = run_trial(tiny_trial(settings_of("rslora", alpha=4.0)))

    assert of_root == losses
    assert of_rank != losses


def test_pissa_starts_from_the_largest_singular_values_and_leaves_the_rest(
    tiny_trial: Make, compressed: Compress, adapted: Adapt
) -> None:
    trial = tiny_trial(settings_of("pissa"))
    model = compressed(trial)
    dense = [linear.weight.detach().double().numpy().copy() for _, linear in decoder_linears(model)]
    layers: list[Any] = [m for m in adapted(trial, model).modules() if hasattr(m, "lora_A")]

    assert len(layers) == len(dense)
    for layer, weight in zip(layers, dense, strict=True):
        left, values, right = np.linalg.svd(weight, full_matrices=False)
        largest = (left[:, :4] * values[:4]) @ right[:4]
        taken = layer.get_delta_weight("default").detach().numpy()
        rest = layer.base_layer.weight.detach().numpy()
        np.testing.assert_allclose(taken, largest, atol=1e-5)
        np.testing.assert_allclose(taken + rest, weight, atol=1e-6)


def test_oft_starts_without_a_rotation_and_keeps_one(
    tiny_trial: Make, compressed: Compress, adapted: Adapt
) -> None:
    trial = tiny_trial(settings_of("oft"))
    model = adapted(trial, compressed(trial))
    rotations: list[Any] = [m for m in model.modules() if type(m).__name__ == "OFTRotationModule"]
    started = [rotation.get_weight() for rotation in rotations]
    turned = [rotation.get_weight() for rotation in rotations if shaken(rotation)]

    for start, turn in zip(started, turned, strict=True):
        identity = torch.eye(len(start))
        assert torch.equal(start, identity)
        assert (turn - identity).norm() > 0.1
        assert (turn @ turn.T - identity).abs().max() < 1e-3


def test_a_block_that_does_not_divide_the_inputs_is_refused(tiny_trial: Make) -> None:
    def reasons(block: int, **more: Settings) -> tuple[str, ...]:
        return tiny_trial({**settings_of("oft", block=block), **more}).conflicts()

    assert reasons(64) == reasons(16, low_rank={"method": "svd", "rank": 32}) == ()
    for found in (reasons(24), reasons(16, low_rank={"method": "svd", "rank": 24})):
        assert [reason.split(" of ")[0] for reason in found] == ["blocks"]


@pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`")
def test_a_block_that_peft_changes_in_silence_is_found_out(
    tiny_trial: Make, run_trial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tradebench.techniques.oft.matrix_shapes", lambda model: frozenset())
    trial = tiny_trial(settings_of("oft", block=24), steps=1)

    assert trial.conflicts() == ()
    with pytest.raises(ContradictionError, match="blocks of 24 take 276 numbers each"):
        run_trial(trial)


# Merging.


@pytest.mark.parametrize("method", [method for method in ADAPTERS if method != "loftq"])
def test_merging_computes_the_same_and_leaves_everything_else(
    method: str, tiny_trial: Make, compressed: Compress, adapted: Adapt
) -> None:
    trial = tiny_trial(settings_of(method, merge=True, targets=("q_proj", "down_proj")))
    model = compressed(trial)
    untouched = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if "q_proj" not in name and "down_proj" not in name
    }
    base = logits(model, trial)
    model = shaken(adapted(trial, model))
    expected = logits(model, trial)
    merged = trial.techniques[-1].trained(model)
    found = logits(merged, trial)

    assert (expected - base).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(untouched) == 4 * 7 + 3
    for name, parameter in untouched.items():
        assert torch.equal(merged.get_parameter(name), parameter)
    assert len(list(merged.parameters())) == len(untouched) + 8


@pytest.mark.parametrize("quantization", [{"method": "nf4"}, {"method": "int8"}], ids=str)
@every_adapter
def test_merging_into_quantized_weights_rounds_and_says_so(
    method: str,
    quantization: Settings,
    tiny_trial: Make,
    compressed: Compress,
    adapted: Adapt,
) -> None:
    trial = tiny_trial({**settings_of(method, merge=True), "quantization": quantization})
    if trial.conflicts():
        assert (method, quantization["method"]) in (
            ("dora", "int8"),
            ("pissa", "int8"),
            ("pissa", "nf4"),
            ("loftq", "int8"),
        )
        return
    dense, model = compressed(tiny_trial({})), compressed(trial)
    once = (logits(model, trial) - logits(dense, trial)).norm()  # what quantizing has cost
    model = shaken(adapted(trial, model))
    expected = logits(model, trial)
    merged = trial.techniques[-1].trained(model)
    twice = (logits(merged, trial) - expected).norm()

    assert any(note.startswith("merging rounds") for note in trial.cautions())
    assert 0 < twice < 2 * once
    assert {type(linear).__module__.split(".")[0] for _, linear in decoder_linears(merged)} == {
        "bitsandbytes"
    }


# Predictions.


def shallow(trial: Trial) -> Trial:
    return trial.model_copy(update={"model": trial.model.model_copy(update={"layers": 2})})


def test_ranks_of_vera_are_blended(
    tiny_trial: Make, recorded: Recorded, differences: Differences
) -> None:
    low, high, between = (
        recorded(shallow(tiny_trial(settings_of("vera", rank=rank)))) for rank in (4, 64, 16)
    )

    assert differences(blend(low, high, Fraction(16 - 4, 64 - 4)), between) == []


@pytest.mark.slow
def test_ranks_of_pissa_are_recorded_themselves(tiny_trial: Make, recorded: Recorded) -> None:
    """It starts with a diagonal matrix of so many rows and columns, so blending is refused."""
    low, high = (recorded(shallow(tiny_trial(settings_of("pissa", rank=rank)))) for rank in (4, 64))

    with pytest.raises(StructureError, match="shows twice"):
        blend(low, high, Fraction(1, 5))


# The family against each other, on the reference model.

SEEDS = range(4)


@pytest.fixture(scope="module")
def learned(run_trial: Run) -> Callable[[str], list[tuple[float, float]]]:
    """By method: the last losses' mean and the accuracy over all tasks, for every seed."""
    kept: dict[str, list[tuple[float, float]]] = {}

    def learn(method: str) -> list[tuple[float, float]]:
        if method not in kept:
            kept[method] = [judged(method, seed, run_trial) for seed in SEEDS]
        return kept[method]

    return learn


def judged(method: str, seed: int, run: Run) -> tuple[float, float]:
    budget = {"steps": 40, "batch": 8, "sequence": 64, "learning_rate": 2e-3, "seed": seed}
    trial = Trial.from_payload(
        {
            "model": {"name": "reference"},
            "budget": budget,
            "evaluate": {"tasks": ["facts", "sort"], "limit": 64},
            "settings": {"adapters": {"method": method, "rank": 8}},
        }
    )
    model, losses, _ = run(trial)
    evaluator = prepare(trial).evaluator
    assert evaluator is not None
    found = evaluator.score(model, trial.techniques).measurements
    accuracies = [found[f"accuracy.{task}"].value for task in trial.evaluate.tasks]
    return statistics.fmean(losses[-10:]), statistics.fmean(accuracies)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rslora", "dora"])
def test_the_family_learns_as_lora_does_within_the_noise_of_seeds(
    method: str, learned: Callable[[str], list[tuple[float, float]]]
) -> None:
    for figure in (0, 1):
        ours, loras = ([seed[figure] for seed in learned(each)] for each in (method, "lora"))
        spread = max(statistics.stdev(loras), statistics.stdev(ours), 1 / 64)  # an item at least

        assert abs(statistics.fmean(ours) - statistics.fmean(loras)) <= 2 * spread
