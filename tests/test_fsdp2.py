"""Sharding: real on one process, and on as many as you like in the fake world."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.fsdp._fully_shard import _fsdp_common, _fsdp_param
from transformers import AutoConfig, AutoModelForCausalLM

from tradebench.predict.library import Library
from tradebench.predict.memory import perform_fake, predict_memory, reach
from tradebench.predict.point import of_record
from tradebench.result import Outcome
from tradebench.techniques import ContradictionError, fsdp2
from tradebench.techniques.fsdp2 import FSDP2
from tradebench.trial import Model, Trial
from tradebench.worlds.fake import fake_world
from tradebench.worlds.memory import Storage
from tradebench.worlds.meters import MemoryMeter
from tradebench.worlds.shards import ShardTracker

Make = Callable[..., Trial]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]
Settings = Mapping[str, Mapping[str, Any]]
Shape = tuple[int, ...]

pytestmark = pytest.mark.usefixtures("quick_collections")

LORA = {"adapters": {"method": "lora", "rank": 4}}
NF4 = {"quantization": {"method": "nf4"}}
BF16 = {"precision": {"method": "bf16"}}
CHECKPOINTING = {"checkpointing": {"method": "full"}}
CHUNKED = {"loss": {"method": "chunked", "tokens": 16}}
PRUNED = {"pruning": {"method": "magnitude"}}
DEGREES = (1, 3, 1024)  # whole, with rows left over, and with more processes than rows
# The tiny model: fp32 bytes of a decoder layer, of the embedding, which the head equals, and of the
# last norm; q, k, v, o, gate, up and down as (rows, columns).
SHAPES: list[Shape] = [
    (128, 128),
    (64, 128),
    (64, 128),
    (128, 128),
    (192, 128),
    (192, 128),
    (128, 192),
]
LAYER = 4 * (sum(rows * columns for rows, columns in SHAPES) + 2 * 128)
EMBEDDING, NORM = 4 * 256 * 128, 4 * 128
RANK = 4


def sharded(degree: int, **fields: Any) -> dict[str, dict[str, Any]]:
    return {"sharding": {"method": "fsdp2", "degree": degree, **fields}}


def shares(shapes: Iterable[Shape], degree: int) -> int:
    """Elements of the first process's share of tensors, which are dealt out by rows."""
    return sum(math.ceil(rows / degree) * math.prod(rest) for rows, *rest in shapes)


def dense_shapes(layers: int = 4) -> list[Shape]:
    return [*layers * [*SHAPES, (128,), (128,)], (256, 128), (256, 128), (128,)]


def adapter_shapes(layers: int = 4) -> list[Shape]:
    pairs: list[list[Shape]] = [[(RANK, columns), (rows, RANK)] for rows, columns in SHAPES]
    return layers * [shape for pair in pairs for shape in pair]


# What is known before anything runs.


def test_a_trial_takes_a_process_for_every_share(tiny_trial: Make) -> None:
    assert tiny_trial({}).ranks == tiny_trial(sharded(1)).ranks == 1
    assert tiny_trial({**LORA, **sharded(8)}).ranks == 8


def test_the_label_names_what_is_unusual() -> None:
    assert FSDP2(degree=8).label == "fsdp2 x8"
    assert FSDP2(degree=8, reshard=False, offload=True).label == "fsdp2 x8 zero2 offload"


@pytest.mark.parametrize("degree", [0, 1025])
def test_so_many_processes_are_a_mistake(degree: int) -> None:
    with pytest.raises(ValueError, match="degree"):
        FSDP2(degree=degree)


def test_a_step_of_several_processes_says_how_many_sequences_it_takes(tiny_trial: Make) -> None:
    assert tiny_trial(sharded(1)).cautions() == ()
    assert "8 times the sequences" in " ".join(tiny_trial(sharded(8)).cautions())


# One process, for real.


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Leave no process group behind."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("others", "fields"),
    [
        ({}, {}),
        ({**BF16, **LORA, **CHECKPOINTING}, {"reshard": False}),
        ({**NF4, **LORA, **PRUNED}, {}),
        ({**CHUNKED, **CHECKPOINTING}, {"reshard": False}),
        ({"precision": {"method": "fp16"}}, {"offload": True}),
    ],
    ids=["full", "bf16-lora", "pruned-nf4", "chunked", "fp16"],
)
def test_one_process_trains_as_if_nothing_were_sharded(
    others: Settings, fields: dict[str, Any], tiny_trial: Make, run_trial: Run
) -> None:
    _, expected, plain = run_trial(tiny_trial(others))
    _, losses, effects = run_trial(tiny_trial({**others, **sharded(1, **fields)}))

    assert losses == expected
    assert {slot: found for slot, found in effects.items() if slot != "sharding"} == plain


def test_the_effect_counts_units_and_bytes(tiny_trial: Make, run_trial: Run) -> None:
    _, _, effects = run_trial(tiny_trial(sharded(1)))
    total = 4 * LAYER + 2 * EMBEDDING + NORM

    # Four layers, the embedding, the head, and the decoder with its last norm.
    assert effects["sharding"] == {
        "units": 7,
        "parameter_bytes": total,
        "share_bytes": total,
    }


def test_a_parameter_that_stayed_whole_is_found_out(tiny_trial: Make, run_trial: Run) -> None:
    model, _, _ = run_trial(tiny_trial(sharded(1)))
    head: Any = model.lm_head
    head.weight = nn.Parameter(torch.zeros(256, 128))

    with pytest.raises(ContradictionError, match="1 of 39 parameters are whole"):
        FSDP2().effect(model)


def test_another_number_of_processes_is_found_out(tiny_trial: Make, run_trial: Run) -> None:
    model, _, _ = run_trial(tiny_trial(sharded(1)))

    with pytest.raises(ContradictionError, match="but this process holds"):
        FSDP2(degree=2).effect(model)
    with pytest.raises(ContradictionError, match="2 processes was asked for, but 1 are running"):
        run_trial(tiny_trial(sharded(2)))


@pytest.fixture(scope="module")
def tied(
    tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Trial], Trial]:
    """Puts a model whose head is its embedding into a trial."""
    folder = tmp_path_factory.mktemp("tied") / "model"
    shutil.copytree(tiny_model_path, folder)
    config = AutoConfig.from_pretrained(folder, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)

    def tie(trial: Trial) -> Trial:
        return trial.model_copy(update={"model": Model(name=str(folder))})

    return tie


@pytest.mark.parametrize("others", [{}, CHUNKED], ids=["plain", "chunked"])
def test_tied_weights_are_sharded_together(
    others: Settings, tied: Callable[[Trial], Trial], tiny_trial: Make, run_trial: Run
) -> None:
    _, expected, _ = run_trial(tied(tiny_trial(others)))
    _, losses, effects = run_trial(tied(tiny_trial({**others, **sharded(1)})))

    assert losses == expected
    assert effects["sharding"]["units"] == 6


@pytest.mark.parametrize("reshard", [True, False])
def test_an_evaluation_leaves_shares_behind(
    reshard: bool, tied: Callable[[Trial], Trial], tiny_trial: Make, run_trial: Run
) -> None:
    trial = tied(tiny_trial(sharded(1, reshard=reshard)))
    model, _, _ = run_trial(trial)
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))

    assert trial.techniques[0].effect(model)["units"] == 6


# Any number of processes, in the fake world.


class Watching(MemoryMeter):
    """Notes the bytes by category when an optimizer step is over."""

    def __init__(self, tracker: ShardTracker | None = None) -> None:
        super().__init__("cpu", fake=True, tracker=tracker)
        self.stepped: list[dict[str, int]] = []

    def holds(self, category: str, tensors: Any) -> None:
        super().holds(category, tensors)
        if category == "optimizer":
            self.stepped.append(dict(self.tracker.bytes))


def watched(
    trial: Trial, tracker: ShardTracker | None = None, device: Literal["cpu", "cuda"] = "cpu"
) -> Watching:
    meter = Watching(tracker)
    perform_fake(trial, reach(trial).materials, meter, Outcome(), device)
    return meter


def predicted(trial: Trial) -> dict[str, int]:
    found = predict_memory(trial).measurements
    return {name: int(measurement.value) for name, measurement in found.items()}


@pytest.mark.parametrize("degree", DEGREES)
def test_a_process_holds_its_share_of_weights_gradients_and_moments(
    degree: int, tiny_trial: Make
) -> None:
    share, counters = 4 * shares(dense_shapes(), degree), 4 * 39
    for found in watched(tiny_trial(sharded(degree))).stepped:
        assert found["gradients"] == share
        assert found["optimizer"] == 2 * share + counters
        # Rotary frequencies, and the mesh, which names every process.
        assert 0 <= found["weights"] - share <= 1024 + 4 * degree
        assert found["communication"] == found["activations"] == 0


@pytest.mark.parametrize("degree", [3, 8])
def test_adapters_are_padded_to_a_row_for_every_process(degree: int, tiny_trial: Make) -> None:
    adapters = 4 * shares(adapter_shapes(), degree)
    base = 4 * shares(dense_shapes(), degree)
    for found in watched(tiny_trial({**LORA, **sharded(degree)})).stepped:
        assert found["gradients"] == adapters
        assert found["optimizer"] == 2 * adapters + 4 * 2 * 28
        assert 0 <= found["weights"] - base - adapters <= 1024


def test_scales_of_4_bit_weights_are_not_sharded(tiny_trial: Make) -> None:
    def weights(degree: int) -> int:
        (found, *_) = watched(tiny_trial({**NF4, **LORA, **sharded(degree)})).stepped
        return found["weights"]

    packed = 4 * [(rows * columns // 2,) for rows, columns in SHAPES]  # bytes
    dense = [*8 * [(128,)], (256, 128), (256, 128), (128,), *adapter_shapes()]
    saved_of_packed = shares(packed, 1) - shares(packed, 2)
    saved_of_dense = 4 * (shares(dense, 1) - shares(dense, 2))

    mesh = 4  # bytes by which two processes take more than one to be named

    assert weights(1) - weights(2) + mesh == saved_of_packed + saved_of_dense


@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "degrees"),
    [
        ({}, (2, 8, 64)),
        # The adapters have four rows, so that more processes only pad them.
        ({**BF16, **LORA, **CHECKPOINTING}, (2, 4)),
        ({**NF4, **LORA}, (2, 4)),
    ],
    ids=["full", "bf16-lora", "nf4"],
)
def test_more_processes_never_need_more_until_padding_does(
    others: Settings, degrees: tuple[int, ...], tiny_trial: Make
) -> None:
    peaks = [
        predicted(tiny_trial({**others, **sharded(degree)}))["peak_tensor_bytes"]
        for degree in degrees
    ]

    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > peaks[-1]


class Highest(ShardTracker):
    """Notes the most bytes that each category has ever had."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.most = dict.fromkeys(self.bytes, 0)

    def _resize(self, storage: Storage, size: int) -> None:
        super()._resize(storage, size)
        for category, count in self.bytes.items():
            self.most[category] = max(self.most[category], count)


def test_two_layers_at_most_are_on_their_way(tiny_trial: Make) -> None:
    tracker = Highest()
    watched(tiny_trial({**LORA, **CHECKPOINTING, **sharded(8)}), tracker)
    adapters = 4 * shares(adapter_shapes(1), 8) * 8
    base = 4 * shares(dense_shapes(), 8)

    assert LAYER < tracker.most["communication"] <= 2 * (LAYER + adapters) + EMBEDDING
    assert tracker.most["weights"] >= base + LAYER


def test_zero2_keeps_what_it_gathered(tiny_trial: Make) -> None:
    three, two = (
        predicted(tiny_trial({**LORA, **sharded(8, reshard=reshard)})) for reshard in (True, False)
    )
    whole = 4 * LAYER + 2 * EMBEDDING

    assert two["peak_weights_bytes"] > whole > three["peak_weights_bytes"]
    assert two["peak_tensor_bytes"] > three["peak_tensor_bytes"]


@pytest.mark.parametrize("others", [{}, NF4], ids=["dense", "nf4"])
def test_no_process_loads_more_than_its_share_and_what_is_read(
    others: Settings, tiny_trial: Make
) -> None:
    one, many = (predicted(tiny_trial({**others, **LORA, **sharded(degree)})) for degree in (1, 64))
    total = 4 * LAYER + 2 * EMBEDDING + NORM

    assert many["peak_tensor_bytes.load"] <= total // 64 + LAYER + EMBEDDING + total // 8
    assert many["peak_tensor_bytes.load"] < one["peak_tensor_bytes.load"] // 2


def test_quantizing_random_weights_leaves_a_share_of_each(tiny_trial: Make) -> None:
    def weights(degree: int) -> int:
        trial = tiny_trial({**NF4, **LORA, **sharded(degree)})
        model = trial.model.model_copy(update={"weights": "random", "config": trial.model.name})
        found = predicted(trial.model_copy(update={"model": model}))
        return found["peak_tensor_bytes.compress"]

    packed = sum(rows * columns // 2 for rows, columns in SHAPES)

    assert weights(1) - weights(2) >= 4 * packed // 2 - packed


@pytest.mark.slow
@pytest.mark.parametrize("reshard", [True, False], ids=["zero3", "zero2"])
@pytest.mark.parametrize("others", [{}, {**NF4, **LORA}], ids=["full", "nf4"])
def test_few_layers_tell_of_many(others: Settings, reshard: bool, tiny_trial: Make) -> None:
    trial = tiny_trial({**BF16, **others, **sharded(8, reshard=reshard)})
    model = {"name": trial.model.name, "config": trial.model.name, "weights": "random"}
    deep = trial.model_copy(update={"model": Model.model_validate({**model, "layers": 7})})
    library = Library([deep])
    found, _ = of_record(library.record(deep)[0])

    assert (library.composed, library.recorded) == (1, 0)
    assert {name: each.value for name, each in found.items()} == predicted(deep)


# Offloading, where the host has a memory of its own and where it has not.


@pytest.mark.parametrize("degree", [1, 3])
def test_what_is_offloaded_leaves_the_device(degree: int, tiny_trial: Make) -> None:
    meter = watched(tiny_trial(sharded(degree, offload=True)), device="cuda")
    share, counters = 4 * shares(dense_shapes(), degree), 4 * 39

    # Weights, gradients and two moments; the counters of torch's fused optimizer stay behind.
    assert meter.tracker.host_peak == 4 * share
    for found in meter.stepped:
        assert (found["gradients"], found["optimizer"]) == (0, counters)
        assert found["weights"] <= 1024


def test_what_is_not_offloaded_stays(tiny_trial: Make) -> None:
    meter = watched(tiny_trial(sharded(8)), device="cuda")

    assert meter.tracker.host_peak == 0
    assert meter.stepped[0]["gradients"] == 4 * shares(dense_shapes(), 8)


def test_on_a_cpu_offloading_changes_nothing(tiny_trial: Make) -> None:
    peaks = [predicted(tiny_trial(sharded(8, offload=offload))) for offload in (False, True)]

    assert peaks[0] == peaks[1]


def test_offloading_saves_what_the_device_would_hold(tiny_trial: Make) -> None:
    held, moved = (
        watched(tiny_trial({**CHECKPOINTING, **sharded(2, offload=offload)}), device="cuda").peaks[
            "train"
        ]
        for offload in (False, True)
    )
    share = 4 * shares(dense_shapes(), 2)

    assert held - moved > share


# The process group.


@pytest.mark.parametrize("ranks", [1, 8, 1024])
def test_a_fake_group_has_any_size_and_goes_with_its_world(ranks: int) -> None:
    with fake_world(ranks=ranks):
        assert (dist.get_rank(), dist.get_world_size()) == (0, ranks)

    assert not dist.is_initialized()


def test_a_group_of_one_gives_way_to_a_fake_one(tiny_trial: Make, run_trial: Run) -> None:
    run_trial(tiny_trial(sharded(1)))
    with fake_world(ranks=4):
        assert dist.get_world_size() == 4

    _, losses, _ = run_trial(tiny_trial(sharded(1)))
    assert len(losses) == 3


@pytest.mark.parametrize(
    ("state", "groups"),
    [
        (SimpleNamespace(_fsdp_param_groups=["a", "b"]), ["a", "b"]),
        (SimpleNamespace(_fsdp_param_group="a"), ["a"]),
        (SimpleNamespace(_fsdp_param_group=None), []),
    ],
)
def test_groups_are_found_as_every_version_of_torch_keeps_them(
    state: SimpleNamespace, groups: list[str]
) -> None:
    assert fsdp2._groups(state) == groups


@given(rows=st.integers(1, 40), columns=st.integers(1, 3), ranks=st.integers(1, 64))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_the_first_share_is_torchs_first_share(rows: int, columns: int, ranks: int) -> None:
    tensor = torch.arange(rows * columns).view(rows, columns)
    expected = _fsdp_common._chunk_with_empty(tensor, ranks, dim=0)[0]
    with fake_world(ranks=ranks):
        first = _fsdp_param._chunk_with_empty  # type: ignore[attr-defined]

    (found,) = first(tensor, ranks, dim=0)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
