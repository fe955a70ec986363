"""Activation offload: what leaves the device, what comes back, and what it takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tradebench.predict.blend import _host as blend_host
from tradebench.predict.library import Library
from tradebench.predict.memory import perform_fake, reach
from tradebench.predict.recorder import HostPeak
from tradebench.predict.structure import StructureError
from tradebench.program.data import collate
from tradebench.program.loop import summed_loss
from tradebench.program.perform import prepare
from tradebench.result import Outcome
from tradebench.techniques import ContradictionError, activation_offload
from tradebench.techniques.activation_offload import _Offload, _Stored
from tradebench.trial import Trial
from tradebench.worlds.meters import MemoryMeter

Settings = Mapping[str, Any]
Make = Callable[..., Trial]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]

OFFLOAD: Settings = {"offload": {"method": "activations"}}
FULL: Settings = {"checkpointing": {"method": "full"}}
LORA: Settings = {"adapters": {"method": "lora", "rank": 4, "dropout": 0.5}}
HIDDEN, TOKENS, LAYERS = 128, 2 * 32, 4


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Has tensors really move, from one place in memory to another; what moved away is listed."""
    moved: list[Tensor] = []

    def away(tensor: Tensor) -> Tensor:
        moved.append(tensor.clone())
        return moved[-1]

    monkeypatch.setattr(activation_offload, "to_host", away)
    monkeypatch.setattr(activation_offload, "to_device", lambda tensor, device: tensor.clone())
    return moved


@pytest.mark.parametrize("rest", [{}, LORA, FULL], ids=["full", "lora", "checkpointing"])
def test_what_went_away_and_came_back_gives_the_same_losses(
    rest: Settings, moving: list[Tensor], tiny_trial: Make, run_trial: Run
) -> None:
    _, expected, _ = run_trial(tiny_trial(rest))
    _, losses, effects = run_trial(tiny_trial({**rest, **OFFLOAD}))

    assert losses == expected
    assert effects["offload"]["tensors"] == len(moving) > 0
    assert effects["offload"]["bytes"] == sum(each.nbytes for each in moving) // 3  # steps


def saved(model: nn.Module, trial: Trial) -> None:
    materials = prepare(trial)
    summed_loss(model, collate(materials.examples[: trial.budget.batch], 0, "cpu"))


def test_recomputed_layers_put_their_inputs_aside_and_nothing_else(
    moving: list[Tensor], tiny_trial: Make, compressed: Any, adapted: Any
) -> None:
    trial = tiny_trial({**FULL, **OFFLOAD})
    saved(adapted(trial, compressed(trial)), trial)

    assert [each.nbytes for each in moving] == LAYERS * [TOKENS * HIDDEN * 4]


def test_no_weight_moves_and_nothing_moves_twice(
    moving: list[Tensor], tiny_trial: Make, compressed: Any, adapted: Any
) -> None:
    """`save_on_cpu` would copy every weight, and an input once for each matrix that reads it."""
    trial = tiny_trial(OFFLOAD)
    model = adapted(trial, compressed(trial))
    for name, parameter in model.named_parameters():
        if "norm" in name:  # a norm by ones puts out what it has saved
            nn.init.normal_(parameter)
    weights = [each.detach().flatten() for each in model.parameters()]
    saved(model, trial)
    copies = [each.flatten() for each in moving]

    assert not [
        copy for copy in copies for weight in weights if torch.equal(copy, weight) and len(copy) > 1
    ]
    assert not [
        (one, other)
        for one, copy in enumerate(copies)
        for other in range(one)
        if torch.equal(copy, copies[other])
    ]


def test_small_tensors_stay(tiny_trial: Make, moving: list[Tensor], run_trial: Run) -> None:
    least = TOKENS * HIDDEN * 4 + 1
    _, _, effects = run_trial(tiny_trial({"offload": {"method": "activations", "minimum": least}}))

    assert min(each.nbytes for each in moving) >= least
    assert effects["offload"]["tensors"] == len(moving)


def test_nothing_large_enough_is_found_out(tiny_trial: Make, run_trial: Run) -> None:
    trial = tiny_trial({"offload": {"method": "activations", "minimum": 2**40}})

    with pytest.raises(ContradictionError, match="put nothing aside"):
        run_trial(trial)


def test_another_storage_at_the_same_place_is_another_storage(moving: list[Tensor]) -> None:
    offload = _Offload(1, _Stored.by_place())
    places = set()
    for value in range(8):
        tensor = torch.full((64,), float(value))
        places.add(tensor.untyped_storage()._cdata)
        packed: Any = offload._pack(tensor)
        del tensor

        assert packed.stored.host.tolist() == [float(value)] * 64
    assert len(places) < 8, "no place was used again, so nothing was tested"


def test_a_storage_that_changes_meanwhile_is_put_aside_again(moving: list[Tensor]) -> None:
    offload = _Offload(1, _Stored.by_place())
    tensor = torch.zeros(64)
    before: Any = offload._pack(tensor)
    tensor.add_(1)  # as seldom happens
    after: Any = offload._pack(tensor)

    assert (before.stored.host.sum(), after.stored.host.sum()) == (0, 64)


def test_views_share_what_was_put_aside_and_keep_their_strides(moving: list[Tensor]) -> None:
    offload = _Offload(1, _Stored.by_place())
    whole = torch.arange(24.0).reshape(4, 6)
    views = [whole, whole.t(), whole[1:, ::2], whole[0].expand(3, 6), whole.view(torch.int32)]
    packed = [offload._pack(view) for view in views]
    found = list(map(activation_offload._unpack, packed))

    assert len(moving) == 1
    for view, back in zip(views, found, strict=True):
        assert torch.equal(view, back)
        assert (view.stride(), view.dtype) == (back.stride(), back.dtype)


def test_the_device_copy_dies_with_its_forward_pass() -> None:
    offload = _Offload(1, _Stored.by_place())
    layer = nn.Identity()
    offload.enter(layer, ())
    tensor = torch.zeros(64)
    reference = weakref.ref(tensor.untyped_storage())
    offload._pack(tensor)
    offload.leave(layer, (), None)
    del tensor

    assert reference() is None


def test_an_evaluation_puts_nothing_aside(
    moving: list[Tensor], tiny_trial: Make, compressed: Any, adapted: Any
) -> None:
    trial = tiny_trial(OFFLOAD)
    model = adapted(trial, compressed(trial))
    with torch.no_grad():
        saved(model, trial)

    assert moving == []


# In the fake world, where a device has a memory of its own.


def on_cuda(trial: Trial) -> tuple[int, int]:
    """Peak bytes of training on the device, and of what lies on the host."""
    meter = MemoryMeter("cpu", fake=True)
    perform_fake(trial, reach(trial).materials, meter, Outcome(), "cuda")
    return meter.peaks["train"], meter.tracker.host_peak


BIG = {"batch": 16, "sequence": 64}  # so that activations outweigh what an optimizer holds


def test_inputs_of_recomputed_layers_lie_on_the_host(tiny_trial: Make) -> None:
    settings = {**FULL, "precision": {"method": "bf16"}}
    there, nothing = on_cuda(tiny_trial(settings, **BIG))
    here, host = on_cuda(tiny_trial({**settings, **OFFLOAD}, **BIG))

    assert nothing == 0
    assert host == LAYERS * 16 * 64 * HIDDEN * 2
    assert here < there


@pytest.mark.slow
def test_a_device_keeps_less_than_by_recomputation_of_everything(tiny_trial: Make) -> None:
    bare, _ = on_cuda(tiny_trial({}, **BIG))
    offloaded, host = on_cuda(tiny_trial(OFFLOAD, **BIG))
    _, recomputed = on_cuda(tiny_trial({**FULL, **OFFLOAD}, **BIG))

    assert offloaded < bare
    assert bare - offloaded <= host
    assert recomputed < host


@pytest.mark.slow
@pytest.mark.parametrize("rest", [{}, FULL], ids=["all", "inputs"])
def test_offloaded_layers_are_continued_in_depth(rest: Settings, tiny_trial: Make) -> None:
    trial = tiny_trial({**rest, **OFFLOAD})
    deep = trial.model_copy(update={"model": trial.model.model_copy(update={"layers": 9})})
    library = Library(device="cuda")
    record, _ = library.record(deep)
    _, host = on_cuda(deep)

    assert (library.composed, library.recorded) == (1, 0)
    assert record.host_bytes == host


@pytest.mark.slow
def test_what_lies_on_the_host_is_blended_as_well(tiny_trial: Make) -> None:
    """Three lengths of sequences: the middle one is put together from the others."""
    settings = {**FULL, **OFFLOAD, "precision": {"method": "bf16"}}
    trials = [tiny_trial(settings, sequence=length) for length in (16, 32, 64)]
    library = Library(trials, device="cuda")
    found = [library.record(trial)[0].host_bytes for trial in trials]

    assert len(library._records) == 2
    assert found == [LAYERS * 2 * length * HIDDEN * 2 for length in (16, 32, 64)]


def test_the_host_is_blended_where_it_is_fullest_at_one_moment() -> None:
    low, high = HostPeak(9, {-1: 4, 0: 10}), HostPeak(9, {-1: 4, 0: 20})

    assert blend_host(low, high, Fraction(1, 5)) == HostPeak(9, {-1: 4, 0: 12})
    for other in (HostPeak(8, {-1: 4, 0: 20}), HostPeak(9, {0: 20}), HostPeak(9, {-1: 4, 0: 21})):
        with pytest.raises(StructureError):
            blend_host(low, other, Fraction(1, 2))
