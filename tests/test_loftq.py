"""LoftQ: where adapters start, said again in numpy; what it costs to load; and what it is good for.

What holds for every adapter is in test_adapters.py.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from tradebench.layers.packed import PackedLinear
from tradebench.predict.blend import blend
from tradebench.predict.memory import predict_memory
from tradebench.predict.record import Record
from tradebench.program.measure import rehearse
from tradebench.program.model import load_model
from tradebench.program.perform import prepare
from tradebench.result import Outcome
from tradebench.techniques import ContradictionError
from tradebench.techniques.loftq import ERRORS
from tradebench.techniques.targets import decoder_linears
from tradebench.trial import Trial
from tradebench.worlds.meters import MemoryMeter

Make = Callable[..., Trial]
Compress = Callable[[Trial], nn.Module]
Adapt = Callable[[Trial, nn.Module], nn.Module]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]
Recorded = Callable[[Trial], Record]
Differences = Callable[[Record, Record], list[str]]
Settings = dict[str, dict[str, Any]]
Matrix = NDArray[np.float64]

NF4 = {"method": "nf4"}
RTN3 = {"method": "rtn", "bits": 3, "group": 64}
LOFTQ: dict[str, Any] = {"method": "loftq", "rank": 4}


def loftq(base: dict[str, Any], *, around: Settings | None = None, **more: Any) -> Settings:
    return {"quantization": base, "adapters": LOFTQ | more, **(around or {})}


def numbers(tensor: Tensor) -> Matrix:
    return tensor.detach().double().numpy()


def dense_weights(trial: Trial, compressed: Compress) -> list[Matrix]:
    """What the decoder's matrices are before they are quantized."""
    before = tuple(
        part for part in trial.techniques if part.slot not in ("quantization", "adapters")
    )
    model = compressed(trial.model_copy(update={"techniques": before}))
    return [numbers(linear.weight) for _, linear in decoder_linears(model)]


def adapters_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def started(layer: Any) -> tuple[Matrix, Matrix]:
    """The base of an adapter, and its update of it."""
    base = numbers(dequantize_module_weight(layer.base_layer))
    return base, numbers(layer.get_delta_weight("default"))


def truncated(matrix: Matrix, rank: int) -> Matrix:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    found: Matrix = (left[:, :rank] * values[:rank]) @ right[:rank]
    return found


# Where they start.


@pytest.mark.parametrize("base", [NF4, {"method": "fp4"}, RTN3], ids=["nf4", "fp4", "rtn"])
@pytest.mark.parametrize("alpha", [None, 16.0])
def test_adapters_start_as_the_best_of_their_rank_that_makes_up_for_rounding(
    base: dict[str, Any],
    alpha: float | None,
    tiny_trial: Make,
    compressed: Compress,
    adapted: Adapt,
) -> None:
    """On the very base that LoRA has, whatever the update is scaled by."""
    trial = tiny_trial(loftq(base, alpha=alpha))
    plain = tiny_trial({"quantization": base, "adapters": {"method": "lora"}})
    rounded = [dequantize_module_weight(x) for _, x in decoder_linears(compressed(plain))]
    layers = adapters_of(adapted(trial, compressed(trial)))
    weights = dense_weights(trial, compressed)

    assert len(layers) == len(weights) == len(rounded)
    for layer, weight, given in zip(layers, weights, rounded, strict=True):
        left, update = started(layer)
        np.testing.assert_array_equal(left, numbers(given))
        np.testing.assert_allclose(update, truncated(weight - left, 4), atol=1e-5)


def test_more_rounds_quantize_what_the_adapters_leave(
    tiny_trial: Make, compressed: Compress, adapted: Adapt
) -> None:
    trial = tiny_trial(loftq(RTN3, iterations=3))
    layers = adapters_of(adapted(trial, compressed(trial)))

    for layer, weight in zip(layers, dense_weights(trial, compressed), strict=True):
        update = np.zeros_like(weight)
        for _ in range(3):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data = torch.from_numpy(weight - update).float()
            base = numbers(PackedLinear(linear, 3, 64).weight)
            update = truncated(weight - base, 4)
        found, start = started(layer)
        # A weight between two levels may fall to either side.
        assert (np.abs(found - base) > 1e-6).mean() < 0.01
        assert np.linalg.norm(weight - found - start) == pytest.approx(
            np.linalg.norm(weight - base - update), rel=0.01
        )


def test_targets_alone_get_a_start(tiny_trial: Make, run_trial: Run) -> None:
    _, _, effects = run_trial(tiny_trial(loftq(NF4, targets=["q_proj", "down_proj"])))

    assert effects["adapters"]["layers"] == 8


@pytest.mark.parametrize("slot", ["pruning", "low_rank"])
def test_what_is_compressed_first_is_what_it_starts_near(
    slot: str, tiny_trial: Make, compressed: Compress, adapted: Adapt
) -> None:
    """Factors of rank two leave half of the adapters' rank at zero."""
    around = {
        "pruning": {"method": "magnitude", "sparsity": 0.5},
        "low_rank": {"method": "svd", "rank": 2},
    }
    trial = tiny_trial(loftq(NF4, around={slot: around[slot]}))
    layers = adapters_of(adapted(trial, compressed(trial)))

    for layer, weight in zip(layers, dense_weights(trial, compressed), strict=True):
        base, update = started(layer)
        np.testing.assert_allclose(update, truncated(weight - base, 4), atol=1e-5)
        assert (base[weight == 0] == 0).all()


# The proof of it.


def test_the_effect_is_the_error_of_the_weights_with_and_without_adapters(
    tiny_trial: Make, compressed: Compress, adapted: Adapt, run_trial: Run
) -> None:
    trial = tiny_trial(loftq(NF4))
    layers = adapters_of(adapted(trial, compressed(trial)))
    weights = dense_weights(trial, compressed)
    parts = [(weight, *started(layer)) for layer, weight in zip(layers, weights, strict=True)]
    whole, lost, left = (
        np.sqrt(sum((matrix**2).sum() for matrix in matrices))
        for matrices in (
            weights,
            [weight - base for weight, base, _ in parts],
            [weight - base - update for weight, base, update in parts],
        )
    )
    _, _, effects = run_trial(trial)

    assert effects["adapters"]["relative_error"] == pytest.approx(left / whole, rel=1e-4)
    assert effects["adapters"]["relative_error_without"] == pytest.approx(lost / whole, rel=1e-4)
    assert left < 0.95 * lost


def test_adapters_that_bring_nothing_nearer_are_found_out(tiny_trial: Make, run_trial: Run) -> None:
    trial = tiny_trial(loftq(NF4))
    model, _, _ = run_trial(trial)
    setattr(model, ERRORS, [1.0, 1.0, 2.0])

    with pytest.raises(ContradictionError, match="do not bring the weights nearer"):
        trial.techniques[-1].effect(model)


# What it asks of others.


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"adapters": LOFTQ}, "add nf4, fp4 or rtn, or use lora"),
        (loftq({"method": "int8"}), "int8 gives loftq no dense weights beside"),
        (
            loftq(NF4, iterations=2, around={"pruning": {"method": "magnitude"}}),
            "set iterations: 1",
        ),
    ],
)
def test_what_it_cannot_start_from_is_refused(
    settings: Settings, reason: str, tiny_trial: Make
) -> None:
    (found,) = tiny_trial(settings).conflicts()

    assert reason in found


@pytest.mark.slow
def test_dense_weights_are_loaded_first_and_random_ones_drawn_one_by_one(
    tiny_trial: Make,
) -> None:
    """The peak of loading says so, as does a sentence."""
    trials = [tiny_trial(loftq(NF4)), tiny_trial({**loftq(NF4), "adapters": {"method": "lora"}})]
    ours, loras = (predict_memory(trial).measurements for trial in trials)
    loading, dense = "peak_tensor_bytes.load", 4 * 4 * (3 * 128 * 192 + 2 * 128 * (128 + 64))

    assert ours[loading].value > dense > loras[loading].value
    assert any("all of them are loaded" in note for note in trials[0].cautions())
    model = trials[0].model
    random = model.model_copy(update={"config": model.name, "weights": "random"})
    drawn = trials[0].model_copy(update={"model": random})
    found = predict_memory(drawn).measurements
    assert found[loading].value < dense
    assert not any("all of them are loaded" in note for note in drawn.cautions())


@pytest.mark.slow
@pytest.mark.parametrize("base", [NF4, RTN3], ids=["nf4", "rtn"])
@pytest.mark.parametrize("weights", ["hub", "random"])
def test_several_rounds_take_what_is_predicted(
    base: dict[str, Any], weights: str, tiny_trial: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tradebench.worlds.meters.Profiler", lambda: None)
    trial = tiny_trial(loftq(base, iterations=2, around={"precision": {"method": "bf16"}}))
    fields = {"weights": weights} | ({"config": trial.model.name} if weights == "random" else {})
    trial = trial.model_copy(update={"model": trial.model.model_copy(update=fields)})
    real = Outcome()
    rehearse(trial, prepare(trial), real, lambda beat: None, MemoryMeter("cpu"))
    fake = predict_memory(trial).measurements

    assert fake.keys() == real.measurements.keys()
    for name in fake.keys() - {"peak_tensor_bytes.load"}:
        assert fake[name].value == real.measurements[name].value, name


def test_a_base_that_counts_on_adapters_is_a_caution(tiny_trial: Make) -> None:
    notes = [tiny_trial(loftq(RTN3, iterations=count)).cautions() for count in (1, 2)]

    assert ["counts on its adapters" in " ".join(found) for found in notes] == [False, True]


@pytest.mark.slow
def test_ranks_are_blended(tiny_trial: Make, recorded: Recorded, differences: Differences) -> None:
    def at(rank: int) -> Record:
        trial = tiny_trial(loftq(NF4, rank=rank))
        return recorded(
            trial.model_copy(update={"model": trial.model.model_copy(update={"layers": 2})})
        )

    # At the whole rank of a matrix its factors are no slices, and lie otherwise.
    assert differences(blend(at(4), at(32), Fraction(16 - 4, 32 - 4)), at(16)) == []


# What it is good for, on the reference model.


def divergence(trial: Trial, compressed: Compress, adapted: Adapt, dense: nn.Module) -> float:
    """From the dense model's next tokens before training, in nats, over 12 training batches."""
    model = adapted(trial, compressed(trial)).eval()
    apart, tokens = 0.0, 0
    for batch in islice(prepare(trial).request.calibration(), 12):
        real = batch["attention_mask"].bool()
        with torch.no_grad():
            wanted, found = (
                each(input_ids=batch["input_ids"]).logits[real].log_softmax(-1)
                for each in (dense, model)
            )
        apart += float((wanted.exp() * (wanted - found)).sum())
        tokens += int(real.sum())
    return apart / tokens


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "base",
    [NF4, {"method": "fp4"}, *({"method": "rtn", "bits": bits, "group": 64} for bits in (4, 3, 2))],
    ids=["nf4", "fp4", "rtn4", "rtn3", "rtn2"],
)
def test_training_starts_nearer_the_dense_model_than_with_lora(
    base: dict[str, Any], seed: int, compressed: Compress, adapted: Adapt
) -> None:
    def trial(method: str) -> Trial:
        return Trial.from_payload(
            {
                "model": {"name": "reference"},
                "budget": {"batch": 8, "sequence": 128, "seed": seed},
                "evaluate": {},
                "settings": {"quantization": base, "adapters": {"method": method, "rank": 16}},
            }
        )

    plain = trial("lora")
    dense = load_model(plain.model, prepare(plain.model_copy(update={"techniques": ()})).request)
    ours, loras = (
        divergence(trial(method), compressed, adapted, dense.eval()) for method in ("loftq", "lora")
    )

    assert ours < loras
