"""Pruning against brute force: the papers' algorithms said again, slowly and plainly."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

from tradebench.errors import UserError
from tradebench.predict.memory import perform_fake, predict_memory, reach
from tradebench.program.measure import rehearse
from tradebench.program.perform import Judges, perform, prepare
from tradebench.result import Outcome
from tradebench.techniques import ContradictionError, Technique
from tradebench.techniques.calibrated_pruning import allocate
from tradebench.techniques.layerwise import Layer, layers_in_turn
from tradebench.techniques.lora import Lora
from tradebench.techniques.magnitude import Magnitude
from tradebench.techniques.masks import dense
from tradebench.techniques.sparsegpt import SparseGPT, eliminate, inverse_factor
from tradebench.techniques.targets import decoder_linears
from tradebench.techniques.wanda import Wanda
from tradebench.trial import Trial
from tradebench.worlds.meters import MemoryMeter

Make = Callable[..., Trial]
Compress = Callable[[Trial], nn.Module]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]

LORA = {"method": "lora", "rank": 4}
ROWS, COLUMNS, TOKENS = 32, 16, 200


@pytest.fixture
def inputs() -> Tensor:
    """Correlated features, of different sizes."""
    torch.manual_seed(0)
    mixing = torch.randn(COLUMNS, COLUMNS) + 2 * torch.eye(COLUMNS)
    return torch.randn(TOKENS, COLUMNS) @ mixing * torch.logspace(-0.5, 0.5, COLUMNS)


@pytest.fixture
def weight() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(ROWS, COLUMNS)


def layer_of(weight: Tensor, inputs: Tensor) -> tuple[Layer, nn.Linear]:
    """A layer of one matrix, fed these inputs as one sequence and a row of padding."""

    class Alone(Layer):
        def watch(self, see: Callable[[nn.Linear, Tensor], None]) -> None:
            for part in inputs.chunk(3):
                see(self.linears[0], part)

    linear = nn.Linear(COLUMNS, ROWS, bias=False)
    linear.weight.data = weight.clone()
    return Alone(0, linear, (linear,), []), linear


def error(found: Tensor, weight: Tensor, inputs: Tensor) -> float:
    return float((inputs @ (found - weight).T).square().sum())


# Against brute force.


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
def test_wanda_zeroes_what_the_paper_says(weight: Tensor, inputs: Tensor, pattern: str) -> None:
    layer, linear = layer_of(weight, inputs)
    Wanda.model_validate({"method": "wanda", "pattern": pattern}).prune(layer, 0.5)

    expected = weight.clone()
    size = {"unstructured": COLUMNS, "2:4": 4, "4:8": 8}[pattern]
    for row in range(ROWS):
        for first in range(0, COLUMNS, size):
            group = range(first, first + size)
            scores = {
                column: abs(float(weight[row, column])) * float(inputs[:, column].norm())
                for column in group
            }
            for column in sorted(group, key=scores.__getitem__)[: size // 2]:
                expected[row, column] = 0
    assert torch.equal(linear.weight, expected)


def best_update(row: Tensor, zeroed: Tensor, hessian: Tensor) -> Tensor:
    """What the optimal brain surgeon makes of a row whose zeros are given, by solving for it."""
    kept = ~zeroed
    found = torch.zeros_like(row)
    found[kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ row)
    return found


@pytest.mark.parametrize(("size", "block"), [(None, 4), (None, 16), (4, 16), (8, 8)])
def test_sparsegpt_is_the_optimal_brain_surgeon_column_after_column(
    weight: Tensor,
    inputs: Tensor,
    size: int | None,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The columns after it make up for each; the Hessian of those is inverted anew every time."""
    monkeypatch.setattr("tradebench.techniques.sparsegpt.BLOCK", block)
    weight, inputs = weight.double(), inputs.double()
    hessian = inputs.T @ inputs
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(COLUMNS)
    found = weight.clone()
    eliminate(found, inverse_factor(hessian.clone(), 0.01), 0.5, size)

    expected, zeroed = weight.clone(), torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    inverses = [torch.linalg.inv(damped[i:, i:]) for i in range(COLUMNS)]
    for i in range(COLUMNS):
        span = size or block
        if i % span == 0:
            scores = torch.stack(
                [expected[:, j] ** 2 / inverses[j][0, 0] for j in range(i, i + span)], 1
            )
            if size is None:
                chosen = scores.flatten().argsort()[: scores.numel() // 2]
                rows, columns = chosen // span, chosen % span
                zeroed[rows, i + columns] = True
            else:
                for row in range(ROWS):
                    zeroed[row, i + scores[row].argsort()[: size // 2]] = True
        for row in range(ROWS):
            if zeroed[row, i]:
                step = expected[row, i] / inverses[i][0, 0]
                expected[row, i:] -= step * inverses[i][0]
                expected[row, i] = 0

    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    assert ((found == 0) == zeroed).all()


def test_sparsegpt_moves_the_last_zero_of_a_row_as_well_as_can_be(
    weight: Tensor, inputs: Tensor
) -> None:
    """Where only the first column is zeroed, all the others are free: the exact solution."""
    hessian = (inputs.T @ inputs).double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(COLUMNS)
    found = weight.double()
    found[:, 0] = 1e-3  # the least of all, by far
    before = found.clone()
    eliminate(found, inverse_factor(hessian.clone(), 0.01), 1 / COLUMNS, None)
    zeroed = torch.zeros(COLUMNS, dtype=torch.bool)
    zeroed[0] = True

    for row in range(ROWS):
        if found[row, 0] == 0 and (found[row] == 0).sum() == 1:
            torch.testing.assert_close(found[row], best_update(before[row], zeroed, damped))
    assert (found[:, 0] == 0).any()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
def test_sparsegpt_loses_less_than_wanda_and_wanda_less_than_magnitude(
    weight: Tensor, inputs: Tensor, pattern: str
) -> None:
    lost = {}
    for technique in (Wanda, SparseGPT):
        layer, linear = layer_of(weight, inputs)
        technique.model_validate({"method": technique.methods()[0], "pattern": pattern}).prune(
            layer, 0.5
        )
        lost[technique] = error(linear.weight.data, weight, inputs)
    plain = weight.clone()
    size = {"unstructured": COLUMNS, "2:4": 4, "4:8": 8}[pattern]
    places = plain.abs().view(ROWS, -1, size).argsort(-1)[..., : size // 2]
    plain.view(ROWS, -1, size).scatter_(-1, places, 0)

    assert lost[SparseGPT] < lost[Wanda]
    assert lost[Wanda] < error(plain, weight, inputs)


def test_a_feature_that_never_occurs_loses_its_weights(weight: Tensor, inputs: Tensor) -> None:
    inputs[:, 3] = 0
    layer, linear = layer_of(weight, inputs)
    SparseGPT(method="sparsegpt").prune(layer, 0.5)

    assert not linear.weight[:, 3].any()
    assert linear.weight.isfinite().all()


# Layer after layer.


def test_each_layer_is_fed_by_the_pruned_ones_before_it(
    tiny_trial: Make, compressed: Compress, tiny_data_path: str
) -> None:
    """Of real tokens only: the sequences of the data differ in length and are padded."""
    trial = tiny_trial({}, data={"file": tiny_data_path}, batch=3)
    model, request = compressed(trial), prepare(trial).request
    batch = next(request.calibration())
    real = batch["attention_mask"].bool()
    assert not real.all()
    seen: list[Tensor] = []
    for layer in layers_in_turn(model, [batch]):
        # a default of a lambda has no type
        layer.watch(lambda linear, inputs, layer=layer: seen.append(inputs))  # type: ignore[misc]
        for linear in layer.linears:
            linear.weight.data.mul_(0.5)
    whole: list[Tensor] = []
    hooks = [
        linear.register_forward_pre_hook(lambda _, given: whole.append(given[0][real]))
        for _, linear in decoder_linears(model)
    ]
    with torch.no_grad():
        model(batch["input_ids"])
    for hook in hooks:
        hook.remove()

    # The first matrices of a layer are fed by the layers before it alone.
    assert len(seen) == len(whole) == 28
    for index in range(0, 28, 7):
        torch.testing.assert_close(seen[index], whole[index], rtol=1e-5, atol=1e-6)
    assert seen[0].shape == (int(real.sum()), 128)


def test_padding_does_not_decide_what_is_pruned(
    tiny_trial: Make, compressed: Compress, tiny_data_path: str
) -> None:
    model = compressed(tiny_trial({}, data={"file": tiny_data_path}, batch=3))
    trial = tiny_trial({}, data={"file": tiny_data_path}, batch=3)
    batch = dict(next(prepare(trial).request.calibration()))
    padding = ~batch["attention_mask"].bool()
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(padding, 77)}

    def looked_at(given: dict[str, Tensor]) -> list[Tensor]:
        seen: list[Tensor] = []
        for layer in layers_in_turn(model, [given]):
            layer.watch(lambda linear, inputs: seen.append(inputs))
        return seen

    for one, another in zip(looked_at(batch), looked_at(other), strict=True):
        assert torch.equal(one, another)


# How much of each layer.


def test_layers_with_more_outlying_weights_are_pruned_less() -> None:
    found = allocate([0.01, 0.03, 0.02], 0.6)

    assert found == pytest.approx([0.68, 0.52, 0.6])
    assert allocate([0.1, 0.1], 0.6) == [0.6, 0.6]
    assert all(0 < share < 1 for share in allocate([0, 0, 0, 1], 0.99))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_by_layer_keeps_the_mean(method: str, tiny_trial: Make, run_trial: Run) -> None:
    settings = {"method": method, "allocation": "by_layer", "samples": 2}
    model, _, effects = run_trial(tiny_trial({"pruning": settings}))
    layers: dict[str, list[Tensor]] = {}
    for name, linear in decoder_linears(model):
        layers.setdefault(name.split(".")[2], []).append((linear.weight == 0).flatten())
    shares = [float(torch.cat(zeros).float().mean()) for zeros in layers.values()]

    assert effects["pruning"]["zero_share"] == pytest.approx(0.5, abs=0.01)
    assert max(shares) - min(shares) > 0.05


# Patterns.


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("pattern", "size"), [("2:4", 4), ("4:8", 8)])
def test_half_of_every_group_is_zero_and_stays_so(
    method: str, pattern: str, size: int, tiny_trial: Make, run_trial: Run
) -> None:
    model, _, effects = run_trial(tiny_trial({"pruning": {"method": method, "pattern": pattern}}))

    for _, linear in decoder_linears(model):
        zeros = (linear.weight.view(-1, size) == 0).sum(1)
        assert (zeros == size // 2).all()
    assert effects["pruning"] == {"zero_share": 0.5, "bytes_saved": 0}


def test_zeros_in_no_pattern_are_found_out(tiny_trial: Make, run_trial: Run) -> None:
    model, _, _ = run_trial(tiny_trial({"pruning": {"method": "magnitude"}}))

    with pytest.raises(ContradictionError, match=r"pattern 2:4 was asked for, but \d+ groups"):
        Magnitude(pattern="2:4").effect(model)


def test_a_pattern_has_its_own_sparsity(tiny_trial: Make) -> None:
    wanted = {"method": "wanda", "pattern": "2:4", "sparsity": 0.7}
    layers = {"method": "wanda", "pattern": "2:4", "allocation": "by_layer"}

    assert "set sparsity to a half" in " ".join(tiny_trial({"pruning": wanted}).conflicts())
    assert "use allocation: uniform" in " ".join(tiny_trial({"pruning": layers}).conflicts())


def test_rows_that_are_no_groups_are_refused(tiny_trial: Make, compressed: Compress) -> None:
    model = compressed(tiny_trial({}))
    _, first = next(decoder_linears(model))
    first.in_features = 126

    with pytest.raises(UserError, match=r"rows in groups of 4, but .*q_proj has rows of 126"):
        Magnitude(pattern="2:4").model(model, prepare(tiny_trial({})).request)


# Merging.


def test_a_merged_adapter_is_masked_again(tiny_trial: Make, run_trial: Run) -> None:
    settings = {
        "pruning": {"method": "magnitude", "remask": True},
        "adapters": {**LORA, "merge": True},
    }
    trial = tiny_trial(settings)
    assert trial.conflicts() == ()
    model, _, effects = run_trial(trial)
    zeros = [dense(linear) == 0 for _, linear in decoder_linears(model)]
    for part in reversed(trial.techniques):
        model = part.trained(model)

    for (_, linear), zero in zip(decoder_linears(model), zeros, strict=True):
        assert (linear.weight[zero] == 0).all()
    # Half of the weights are pruned, and the update knows nothing of which.
    assert effects["pruning"]["update_dropped"] == pytest.approx(0.5, abs=0.02)


def test_merging_without_the_mask_loses_all_zeros(
    tiny_trial: Make, run_trial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "pruning": {"method": "magnitude", "remask": True},
        "adapters": {**LORA, "merge": True},
    }
    monkeypatch.setattr(Magnitude, "trained", Technique.trained)
    trial = tiny_trial(settings)
    model, _, _ = run_trial(trial)
    for part in reversed(trial.techniques):
        model = part.trained(model)
    zeros = sum(int((linear.weight == 0).sum()) for _, linear in decoder_linears(model))

    assert zeros < 0.01 * 491_520


def test_the_program_masks_after_it_merges(
    tiny_trial: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def note(part: Technique, model: nn.Module) -> nn.Module:
        order.append(part.slot)
        return model

    def ignore(*seen: object) -> None: ...

    for kind in (Magnitude, Lora):
        monkeypatch.setattr(kind, "trained", note)
    trial = tiny_trial({"pruning": {"method": "magnitude"}, "adapters": LORA})
    perform(
        trial,
        replace(prepare(trial), evaluator=MagicMock()),  # the judges below ask it nothing
        seed=0,
        meter=MagicMock(),
        enter=lambda phase: nullcontext(lambda step: None),
        judges=Judges(before=ignore, trained=ignore, after=ignore),
    )

    assert order == ["adapters", "pruning"]


# In the fake world.


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "wanda", "allocation": "by_layer", "samples": 2},
        pytest.param({"method": "wanda", "pattern": "4:8", "samples": 2}, marks=pytest.mark.slow),
        pytest.param(
            {"method": "sparsegpt", "allocation": "by_layer", "samples": 2}, marks=pytest.mark.slow
        ),
        {"method": "sparsegpt", "pattern": "2:4", "samples": 2},
        pytest.param({"method": "magnitude", "pattern": "2:4"}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_compressing_takes_the_bytes_that_the_fake_world_foresees(
    settings: dict[str, Any], tiny_trial: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although nothing is known there of which weights go, nor of how many in which layer."""
    monkeypatch.setattr("tradebench.worlds.meters.Profiler", lambda: None)
    trial = tiny_trial({"pruning": settings}, steps=1)
    real, outcome = MemoryMeter("cpu"), Outcome()
    rehearse(trial, prepare(trial), outcome, lambda beat: None, real)
    fake = MemoryMeter("cpu", fake=True)
    perform_fake(trial, reach(trial).materials, fake, Outcome())

    assert real.peaks["compress"] == fake.peaks["compress"] > real.peaks["load"]
    assert real.peaks["train"] == fake.peaks["train"]


@pytest.mark.slow
def test_masks_of_a_sharded_model_are_sharded(tiny_trial: Make) -> None:
    """One byte for each weight of the process's share."""
    weights = 491_520
    for degree in (1, 4):
        sharding = {"method": "fsdp2", "degree": degree}
        plain, masked = (
            {
                name: found.value
                for name, found in predict_memory(tiny_trial(settings)).measurements.items()
            }
            for settings in (
                {"sharding": sharding},
                {"sharding": sharding, "pruning": {"method": "magnitude"}},
            )
        )

        assert masked["peak_weights_bytes"] - plain["peak_weights_bytes"] == weights // degree
