"""Selective checkpointing: what is kept, what is computed twice, and what that takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tradebench.predict.depth import extend, shorten
from tradebench.predict.library import kinds_of, shallower
from tradebench.predict.memory import predict_memory
from tradebench.predict.record import Record
from tradebench.program.data import collate
from tradebench.program.loop import summed_loss
from tradebench.program.measure import rehearse
from tradebench.program.perform import prepare
from tradebench.result import Outcome
from tradebench.techniques import ContradictionError
from tradebench.techniques.checkpointing import OPERATIONS, SelectiveCheckpointing
from tradebench.trial import Trial
from tradebench.worlds.meters import MemoryMeter
from tradebench.worlds.shards import ShardTracker

Settings = Mapping[str, Any]
Make = Callable[..., Trial]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]

LORA = {"method": "lora", "rank": 4}
QLORA = {"quantization": {"method": "nf4"}, "adapters": LORA}
TOKENS, LAYERS = 2 * 32, 4
PRODUCTS = 128 + 64 + 64 + 128 + 192 + 192 + 128  # values per token that a layer's matrices put out


def selective(save: str, **fields: Any) -> Settings:
    return {"checkpointing": {"method": "selective", "save": save, **fields}}


FULL: Settings = {"checkpointing": {"method": "full"}}


def ready(trial: Trial, compressed: Callable[..., Any], adapted: Callable[..., Any]) -> Any:
    return adapted(trial, compressed(trial))


def batch_of(trial: Trial) -> dict[str, torch.Tensor]:
    materials = prepare(trial)
    return dict(collate(materials.examples[: trial.budget.batch], 0, "cpu"))


def counted(model: nn.Module, trial: Trial) -> dict[str, int]:
    """Floating-point operations of one forward and backward pass, by operation."""
    with FlopCounterMode(display=False) as counter:
        summed_loss(model, batch_of(trial)).backward()
    return {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}


def test_no_product_and_no_attention_is_computed_twice(
    tiny_trial: Make, compressed: Any, adapted: Any
) -> None:
    plain, full, both = (
        counted(ready(trial, compressed, adapted), trial)
        for settings in ({}, FULL, selective("both"))
        for trial in [tiny_trial(settings)]
    )

    assert both == plain
    assert sum(full.values()) > sum(plain.values())


class Products(TorchDispatchMode):
    """Counts how often 4-bit weights are multiplied with."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found += int(func._opname == "gemm_4bit")
        return func(*args, **(kwargs or {}))


def products_of(model: nn.Module, trial: Trial) -> int:
    products = Products()
    with products:
        summed_loss(model, batch_of(trial)).backward()
    return products.found


def test_products_of_4_bit_weights_are_kept_as_well(
    tiny_trial: Make, compressed: Any, adapted: Any
) -> None:
    found = [
        products_of(ready(trial, compressed, adapted), trial)
        for settings in (FULL, selective("matmuls"))
        for trial in [tiny_trial({**QLORA, **settings})]
    ]

    assert found == [2 * 7 * LAYERS, 7 * LAYERS]


def alive_after_forward(model: nn.Module, trial: Trial) -> int:
    batch = batch_of(trial)
    with ShardTracker("cpu") as tracker:
        loss = summed_loss(model, batch)
        total = tracker.total
    loss.backward()
    return total


def test_what_is_kept_is_what_the_matrices_put_out(
    tiny_trial: Make, compressed: Any, adapted: Any
) -> None:
    """Hooks of saved tensors would not see it; the tracker does."""
    full, kept = (
        alive_after_forward(ready(trial, compressed, adapted), trial)
        for settings in (FULL, selective("matmuls"))
        for trial in [tiny_trial(settings)]
    )

    assert kept - full == LAYERS * TOKENS * PRODUCTS * 4


def train_peak(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("tradebench.worlds.meters.Profiler", lambda: None)
    outcome = Outcome()
    rehearse(trial, prepare(trial), outcome, lambda beat: None, MemoryMeter("cpu"))
    return int(outcome.measurements["peak_tensor_bytes"].value)


@pytest.mark.slow
@pytest.mark.parametrize("save", ["matmuls", "attention"])
def test_both_worlds_agree_on_what_is_kept(
    save: str, tiny_trial: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny_trial({**selective(save, ratio=0.5), **QLORA})
    fake = predict_memory(trial).measurements["peak_tensor_bytes"].value

    assert fake == train_peak(trial, monkeypatch)


def peak_of(trial: Trial) -> float:
    return predict_memory(trial).measurements["peak_tensor_bytes"].value


@pytest.mark.slow
def test_it_lies_between_recomputing_nothing_and_everything(tiny_trial: Make) -> None:
    settings = [{}, selective("both"), selective("attention"), FULL]
    peaks = [peak_of(tiny_trial(each, batch=16)) for each in settings]

    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)


@pytest.mark.slow
def test_beside_adapters_it_keeps_more_than_no_recomputation(tiny_trial: Make) -> None:
    """The backward pass of a frozen layer does not need what comes after it; torch keeps it."""
    settings = {"adapters": LORA, **selective("matmuls")}
    trial = tiny_trial(settings, batch=8)

    assert peak_of(trial) > peak_of(tiny_trial({"adapters": LORA}, batch=8))
    assert any("frozen" in note for note in trial.cautions())


@pytest.mark.slow
def test_a_share_of_selective_layers_is_continued_in_depth(
    tiny_trial: Make,
    recorded: Callable[[Trial], Record],
    differences: Callable[[Record, Record], list[str]],
) -> None:
    trial = tiny_trial(selective("attention", ratio=0.5))
    deep = trial.model_copy(update={"model": trial.model.model_copy(update={"layers": 8})})
    kinds = kinds_of(deep, 8)
    short = shorten(kinds)
    composed = extend(recorded(shallower(deep, short)), short, kinds)

    assert len(short) < 8
    assert differences(composed, recorded(deep)) == []


def test_losses_are_those_of_no_recomputation(tiny_trial: Make, run_trial: Run) -> None:
    """Dropout is drawn again as it was, although fewer operations run."""
    rest = {"adapters": {**LORA, "dropout": 0.5}}
    _, expected, _ = run_trial(tiny_trial(rest))
    for save in ("matmuls", "attention"):
        _, losses, effects = run_trial(tiny_trial({**rest, **selective(save)}))

        assert losses == expected
        kept = effects["checkpointing"]["kept"]
        assert kept.keys() <= set(OPERATIONS[save])


def test_full_checkpointing_is_found_out_where_results_were_to_be_kept(
    tiny_trial: Make, run_trial: Run
) -> None:
    model, _, _ = run_trial(tiny_trial(FULL))

    with pytest.raises(ContradictionError, match="no result of an operation was kept"):
        SelectiveCheckpointing(method="selective").effect(model)


def test_labels_say_what_is_kept() -> None:
    assert SelectiveCheckpointing(method="selective", ratio=0.5).label == "selective 0.5"
    assert (
        SelectiveCheckpointing(method="selective", save="matmuls").label
        == "selective 1 saving matmuls"
    )
    assert (
        SelectiveCheckpointing(method="selective", layers=(0, 2)).label == "selective layers 0, 2"
    )
