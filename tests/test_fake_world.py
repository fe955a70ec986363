"""The fake world against the real one: the same program, the same bytes, without a weight."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoConfig, AutoModelForCausalLM, masking_utils
from transformers.utils import import_utils

from tradebench import configs, reference
from tradebench.errors import UserError
from tradebench.predict.memory import perform_fake, predict_memory, reach
from tradebench.program import loop
from tradebench.program.measure import rehearse
from tradebench.program.model import build_model
from tradebench.program.perform import prepare
from tradebench.result import CATEGORIES, Outcome
from tradebench.trial import Model, Trial
from tradebench.worlds.fake import fake_world, load
from tradebench.worlds.fake.values import value_of
from tradebench.worlds.meters import MemoryMeter

pytestmark = pytest.mark.usefixtures("quick_collections")

Settings = Mapping[str, Mapping[str, Any]]
Make = Callable[..., Trial]
Measure = Callable[[Trial], dict[str, int]]

LORA = {"method": "lora", "rank": 4}
CHECKPOINTING = {"checkpointing": {"method": "full"}}
BF16 = {"precision": {"method": "bf16"}}

# Where the two worlds may differ, and why. Everything else is held to the byte.
#   load           a checkpoint is read by name, here with the quantized layers last; and the
#                  rotary frequencies are computed in reality, which takes three small vectors
#   int8 outliers  how many columns of its inputs LLM.int8() keeps in 16 bits is decided by values:
#                  none here, or all on demand. On a CPU only evaluations look for them; the list of
#                  the last one stays alive while training
ROTARY = 3 * 4 * 16  # bytes of three fp32 vectors of half a head


def save_model(folder: Path, **changes: Any) -> str:
    """The reference model's shape and tokenizer with two layers of random weights."""
    config = AutoConfig.from_pretrained(reference.CHECKPOINT)
    config.update({"num_hidden_layers": 2, **changes})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in reference.CHECKPOINT.glob("tokenizer*"):
        shutil.copy(file, folder)
    return str(folder)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("shallow"))


@pytest.fixture(scope="module")
def make(shallow: str) -> Make:
    """Makes a trial on the shallow model."""

    def trial(settings: Settings, *tasks: str, **budget: Any) -> Trial:
        evaluate = {"tasks": tasks, "limit": 4, "batch_size": 3}
        return made(settings, {"name": shallow}, evaluate, **budget)

    return trial


def made(
    settings: Settings, model: Mapping[str, Any], evaluate: Mapping[str, Any], **budget: Any
) -> Trial:
    return Trial.from_payload(
        {
            "model": model,
            "budget": {"batch": 2, "sequence": 48, "data": "random"} | budget,
            "evaluate": evaluate,
            "settings": settings,
        }
    )


def predicted(trial: Trial) -> dict[str, int]:
    meter, outcome = MemoryMeter("cpu", fake=True), Outcome()
    perform_fake(trial, reach(trial).materials, meter, outcome)
    return figures(outcome, meter)


def figures(outcome: Outcome, meter: MemoryMeter) -> dict[str, int]:
    """Every measurement of a rehearsal, and the peak of each part of its training steps."""
    found = {name: int(measurement.value) for name, measurement in outcome.measurements.items()}
    return found | {f"peak of {part}": size for part, size in meter.parts.items()}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, needed: Callable[[Trial], None]) -> Measure:
    """The real rehearsal, as in a fresh process and without the profiler beside it."""
    monkeypatch.setattr("tradebench.worlds.meters.Profiler", lambda: None)

    def measure(trial: Trial) -> dict[str, int]:
        needed(trial)
        monkeypatch.setattr(bitsandbytes.functional, "name2qmap", {})
        meter, outcome = MemoryMeter("cpu"), Outcome()
        rehearse(trial, prepare(trial), outcome, lambda beat: None, meter)
        return figures(outcome, meter)

    return measure


def agree(trial: Trial, measured: Measure) -> None:
    """Both worlds count the same bytes in every phase, category and part of a step.

    Loading has its own bound.
    """
    real, fake = measured(trial), predicted(trial)
    loading = real.pop("peak_tensor_bytes.load") - fake.pop("peak_tensor_bytes.load")
    parts = [fake[f"peak of {part}"] for part in ("forward", "backward", "optimizer")]

    assert -layer_bytes(trial) <= loading <= ROTARY
    assert fake == real
    assert fake["peak_tensor_bytes"] == (
        sum(fake[f"peak_{category}_bytes"] for category in CATEGORIES)
    )
    assert max(parts) <= fake["peak_tensor_bytes"]


def layer_bytes(trial: Trial) -> int:
    """What a decoder layer takes in fp32."""
    layer = build_model(trial.model, torch.float32).get_submodule("model.layers.0")
    return sum(4 * parameter.numel() for parameter in layer.parameters())


# The whole catalogue, and combinations.


def test_every_technique_takes_the_same_bytes_in_both_worlds(
    every_method: Settings, make: Make, measured: Measure
) -> None:
    agree(make(every_method, "facts"), measured)


def test_combinations_take_the_same_bytes_in_both_worlds(
    drawn_combination: Settings, make: Make, measured: Measure
) -> None:
    # Sentences of different lengths, and a task that generates.
    agree(make(drawn_combination, "sort", data="reference"), measured)


@pytest.mark.parametrize(
    "around",
    [
        {},
        {"quantization": {"method": "nf4"}, **CHECKPOINTING},
        {"quantization": {"method": "int8"}},
    ],
    ids=["bf16", "qlora", "int8"],
)
def test_adapters_of_another_format_and_with_dropout_take_the_same_bytes_in_both_worlds(
    around: Settings, make: Make, measured: Measure
) -> None:
    adapters = {**LORA, "dropout": 0.1, "dtype": "model"}

    agree(make({**BF16, **around, "adapters": adapters}, "facts", data="reference"), measured)


@pytest.mark.slow
def test_more_combinations_take_the_same_bytes_in_both_worlds(
    further_combination: Settings, make: Make, measured: Measure
) -> None:
    agree(make(further_combination, "facts", "sort", data="reference"), measured)


# Other shapes.


def test_tied_weights_and_added_up_batches_of_odd_lengths_take_the_same_bytes(
    tmp_path: Path, measured: Measure
) -> None:
    tied = save_model(tmp_path, tie_word_embeddings=True)
    trial = made({}, {"name": tied}, {}, batch=3, sequence=37, accumulation=2, data="reference")

    agree(trial, measured)


@pytest.mark.parametrize("quantization", [{"method": "nf4", "double": True}, {"method": "int8"}])
def test_random_weights_take_the_same_bytes(
    quantization: dict[str, Any], shallow: str, measured: Measure
) -> None:
    settings: Settings = {"quantization": quantization, "adapters": LORA, **BF16}
    model = {"name": shallow, "config": shallow, "weights": "random"}

    agree(made(settings, model, {}), measured)


def test_without_a_loading_order_the_load_differs_by_the_rotary_frequencies_alone(
    make: Make, measured: Measure
) -> None:
    trial = make(BF16)
    fake, real = predicted(trial), measured(trial)

    assert 0 <= real["peak_tensor_bytes.load"] - fake["peak_tensor_bytes.load"] <= ROTARY


def test_outlier_columns_of_int8_are_the_one_thing_that_values_decide(
    tmp_path: Path, measured: Measure
) -> None:
    folder = save_model(tmp_path, intermediate_size=2048)  # more than the logits take
    model = AutoModelForCausalLM.from_pretrained(folder)
    nn.init.normal_(model.model.embed_tokens.weight)  # the rehearsal reads padding, which was zero
    for layer in model.model.layers:
        nn.init.constant_(layer.post_attention_layernorm.weight, 20.0)
    model.save_pretrained(folder)
    settings: Settings = {"quantization": {"method": "int8"}, "adapters": LORA}
    trial = made(settings, {"name": folder}, {"tasks": ["facts"], "limit": 4, "batch_size": 3})
    fake, real = predicted(trial), measured(trial)
    columns = 8 * 2 * (4 * 128 + 2 * 128 + 2048)  # as int64, if every one of them were listed
    evaluated = [f"peak_tensor_bytes.evaluate_{when}" for when in ("before", "after")]

    assert 0 < real["peak_tensor_bytes"] - fake["peak_tensor_bytes"] <= columns
    assert all(fake[phase] < real[phase] < 1.1 * fake[phase] for phase in evaluated)


# Figures known from elsewhere: an independent trace, and arithmetic.


def deep(layers: int, tmp_path: Path) -> str:
    """A folder with the config of Llama 3.3 70B at another depth."""
    config = json.loads(configs.path("llama-3.3-70b").read_text())
    folder = tmp_path / str(layers)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    return str(folder)


def peak_of_shape(folder: str, settings: Settings, **budget: Any) -> int:
    model = {"name": folder, "config": folder, "weights": "random"}
    return predicted(made(settings, model, {}, **budget))["peak_tensor_bytes"]


@pytest.mark.parametrize(
    ("recomputed", "per_layer"), [(CHECKPOINTING, 1_775_927_352), ({}, 2_943_402_040)]
)
def test_a_layer_of_a_70b_takes_what_another_tracer_found(
    recomputed: Settings, per_layer: int, tmp_path: Path
) -> None:
    settings = {**BF16, **recomputed, "adapters": {"method": "lora", "rank": 16}}
    two, three = (
        peak_of_shape(deep(layers, tmp_path), settings, batch=1, sequence=2048) for layers in (2, 3)
    )

    assert three - two == per_layer


LORA_16 = {"adapters": {"method": "lora", "rank": 16}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "peak"),
    [
        ({}, 1_578_814_004),
        (CHECKPOINTING, 1_242_946_100),
        (BF16, 1_004_011_060),
        ({**BF16, **CHECKPOINTING}, 819_138_100),
        (LORA_16, 1_094_036_168),
        ({**LORA_16, **CHECKPOINTING}, 790_153_928),
        ({**BF16, **LORA_16}, 878_929_608),
        ({**BF16, **LORA_16, **CHECKPOINTING}, 600_213_192),
    ],
)
def test_a_small_llama_takes_what_another_tracer_found(
    settings: Settings, peak: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {
        "model_type": "llama",
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1536,
        "vocab_size": 32_000,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    kept: list[Any] = []

    def loss_of_the_model(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What that tracer's loop called; it held the logits until the next step."""
        kept[:] = [model(input_ids=batch["input_ids"], labels=batch["labels"], use_cache=False)]
        value: torch.Tensor = kept[0].loss
        return value

    monkeypatch.setattr(loop, "summed_loss", loss_of_the_model)
    found = peak_of_shape(str(tmp_path), settings, batch=2, sequence=512)
    more = 2 * (2 * 512 * 8) + 4  # labels, mask, and the loss before it is divided by the tokens

    assert found == peak + more


@pytest.mark.slow
def test_a_70b_is_predicted_on_a_laptop() -> None:
    settings: Settings = {
        **BF16,
        **CHECKPOINTING,
        "quantization": {"method": "nf4", "double": True},
        "adapters": {"method": "lora", "rank": 16},
    }
    model = {"name": "meta-llama/Llama-3.3-70B-Instruct", "config": "llama-3.3-70b"}
    trial = made(settings, model, {"tasks": ["mmlu"]}, batch=1, sequence=2048)
    skeleton = build_model(trial.model, torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    linears = 80 * 7
    quantized = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    scales = quantized // 64
    tables = linears * (16 * 4 + 256 * 4 + 4)  # of values, of scales, and the scales' mean
    once = 256 * 4 + 2 * 64 * 4  # a table that is made once, and the rotary frequencies
    peaks = predicted(trial)

    assert parameters == 70_553_706_496
    assert peaks["peak_tensor_bytes.compress"] == (
        quantized // 2 + scales + scales // 256 * 4 + 2 * (parameters - quantized) + tables + once
    )
    assert peaks["peak_tensor_bytes.load"] < 1.02 * peaks["peak_tensor_bytes.compress"]
    assert 44 * 2**30 < peaks["peak_tensor_bytes"] < 45 * 2**30


# What a prediction reads, and what it does without.


def test_no_weight_is_read(shallow: str, make: Make, tmp_path: Path) -> None:
    for file in Path(shallow).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    trial = make({"adapters": LORA}, data="reference")
    bare = trial.model_copy(update={"model": Model(name=str(tmp_path))})

    assert predicted(bare) == predicted(trial)


def test_a_tokenizer_out_of_reach_leaves_full_sequences_and_a_warning(shallow: str) -> None:
    model = {"name": "nobody/nothing", "config": shallow}
    outcome = predict_memory(made({}, model, {"tasks": ["facts"]}, data="reference"))
    full = predict_memory(made({}, {"name": shallow}, {}))

    assert outcome.measurements == full.measurements
    assert [warning.split(":")[0] for warning in outcome.warnings] == [
        "cannot load the tokenizer of nobody/nothing",
        "memory is predicted without evaluation",
    ]


def test_data_out_of_reach_leaves_full_sequences_and_a_warning(make: Make) -> None:
    outcome = predict_memory(make({}, data={"hub": "nobody/nothing"}))

    assert outcome.measurements == predict_memory(make({})).measurements
    assert len(outcome.warnings) == 1
    assert outcome.warnings[0].endswith("memory is predicted for sequences of full length")


def test_a_missing_file_is_an_error_all_the_same(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the training data"):
        predict_memory(make({}, data={"file": str(tmp_path / "none.jsonl")}))


def test_a_prediction_is_what_the_rehearsal_measures(make: Make) -> None:
    trial = make({"adapters": LORA}, "facts")
    found = predict_memory(trial).measurements

    assert {name: figure.value for name, figure in found.items()} == {
        name: size for name, size in predicted(trial).items() if name.startswith("peak_")
    }


def test_cautions_come_with_a_prediction(make: Make) -> None:
    trial = make({"pruning": {"method": "magnitude"}})

    assert predict_memory(trial).warnings == list(trial.cautions())


# Values.


def test_what_follows_from_tokens_is_known() -> None:
    with fake_world():
        labels = torch.tensor([[5, -100, 7], [-100, -100, 9]])
        kept = labels[:, 1:] != -100
        rows = torch.empty(2, 2, 8, requires_grad=True)[kept]

        assert int(kept.sum()) == 2
        assert rows.shape == (2, 8)
        assert labels[:, 1:][kept].tolist() == [7, 9]
        assert kept.nonzero().tolist() == [[0, 1], [1, 1]]
        assert labels.clone().fill_(3).tolist() == [[3, 3, 3], [3, 3, 3]]
        assert isinstance(labels, FakeTensor)


def test_what_weights_decide_is_not_known() -> None:
    with fake_world():
        unknown = torch.empty(4)
        drawn_by_chance = torch.randint(9, (4,))
        never_written = torch.empty(4, dtype=torch.long)

        assert [value_of(x) for x in (unknown, drawn_by_chance, never_written)] == [None] * 3
        assert value_of(unknown > 0) is None
        assert value_of(unknown.argmax()) is None
        with pytest.raises(torch._subclasses.fake_tensor.DynamicOutputShapeException):
            torch.empty(4)[unknown > 0]


def test_a_value_that_is_overwritten_is_forgotten_with_every_view_of_it() -> None:
    with fake_world():
        tokens = torch.tensor([1, 2, 3])
        view = tokens[1:]
        kept = tokens + 0
        tokens.copy_(torch.empty(3).long())

        assert value_of(tokens) is None
        assert value_of(view) is None
        assert kept.tolist() == [1, 2, 3]

        torch.add(tokens, 1, out=kept)

        assert value_of(kept) is None


def test_numbers_that_nobody_knows_are_finite_and_nothing_is_so() -> None:
    with fake_world():
        loss = torch.empty(3).sum()

        assert loss.item() == 1.0
        assert torch.empty(3).argmax().item() == 1
        assert not loss.isnan()


# The world's own makings.


def test_positions_in_order_are_seen_not_to_be_packed() -> None:
    with fake_world():
        ordered = masking_utils.find_packed_sequence_indices(torch.arange(5)[None])
        packed = masking_utils.find_packed_sequence_indices(torch.tensor([[0, 1, 2, 0, 1]]))

        assert ordered is None
        assert packed.tolist() == [[0, 0, 0, 1, 1]]


def test_positions_that_are_not_looked_at_cost_a_mask(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = predicted(make({}))
    monkeypatch.setattr("tradebench.worlds.fake.world._looks_real", import_utils.is_fake_tensor)

    assert predicted(make({}))["peak_tensor_bytes"] > right["peak_tensor_bytes"]


def test_a_quantized_weight_is_of_its_library_and_fake() -> None:
    with fake_world():
        weight = Params4bit(torch.empty(64, 64), quant_type="nf4").to("cpu")

        assert isinstance(weight, Params4bit)
        assert isinstance(weight, FakeTensor)
        assert weight.nbytes == 64 * 64 // 2


def test_a_copy_lives_in_the_same_world() -> None:
    with fake_world():
        weight = nn.Parameter(torch.empty(4), requires_grad=False)
        vars(weight)["mark"] = [torch.empty(2)]  # as libraries leave some
        copied: Any = copy.deepcopy(weight)

        assert copied.fake_mode is vars(weight)["fake_mode"]
        assert copied.untyped_storage()._cdata != weight.untyped_storage()._cdata
        assert isinstance(copied, nn.Parameter)
        assert not copied.requires_grad
        assert vars(copied)["mark"][0].shape == (2,)
        assert value_of(copy.deepcopy(torch.tensor([1, 2]))) is not None


def test_a_model_is_loaded_with_its_ties_and_what_is_frozen() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    model[0].weight.requires_grad_(False)
    with fake_world():
        loaded: Any = load(model, torch.float64)

        assert loaded[0].weight is loaded[1].weight
        assert isinstance(loaded[0].weight, nn.Parameter)
        assert not loaded[0].weight.requires_grad
        assert loaded[0].weight.dtype == torch.float32
        assert loaded[0].weight.device.type == "cpu"


def test_a_layer_that_a_quantizer_leaves_alone_is_read_after_all(shallow: str) -> None:
    skeleton = build_model(Model(name=shallow), torch.float32)
    with fake_world():
        loaded: Any = load(skeleton, torch.float32, lambda dense: dense)

        assert {p.device.type for p in loaded.parameters()} == {"cpu"}
        assert type(loaded.model.layers[0].mlp.up_proj) is nn.Linear


def test_the_world_leaves_everything_as_it_was(make: Make) -> None:
    def places() -> list[object]:
        return [
            import_utils.is_fake_tensor,
            torch.Tensor._make_subclass,
            torch.utils.swap_tensors,
            bitsandbytes.functional.name2qmap,
            vars(FakeTensor).get("__deepcopy__"),
        ]

    before, tables = places(), dict(bitsandbytes.functional.name2qmap)
    predict_memory(make({"quantization": {"method": "nf4", "double": True}, "adapters": LORA}))

    assert places() == before
    assert bitsandbytes.functional.name2qmap.keys() == tables.keys()
    with pytest.raises(ZeroDivisionError), fake_world():
        1 / 0  # noqa: B018
    assert places() == before
    assert type(torch.empty(1)) is torch.Tensor
    assert type(Linear4bit(64, 64).weight) is Params4bit
