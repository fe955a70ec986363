"""Loading: real and random weights, tokenizers, and what cannot be found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from tradebench import configs, reference
from tradebench.errors import UserError
from tradebench.program.model import (
    _config,
    depth,
    load_model,
    load_tokenizer,
    longest_input,
    plan_loading,
    source,
    vocabulary,
)
from tradebench.techniques import LoadRequest, Stage
from tradebench.techniques.targets import decoder_linears
from tradebench.trial import Model, Trial
from tradebench.worlds.meters import MemoryMeter

Make = Callable[..., Trial]


def test_a_model_comes_in_training_mode_without_a_cache(tiny_trial: Make) -> None:
    trial = tiny_trial({})
    model: Any = load_model(trial.model, plan_loading(trial, "cpu"))

    assert model.training
    assert model.config.use_cache is False
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_precision_of_a_trial_decides_how_weights_are_loaded(tiny_trial: Make) -> None:
    trial = tiny_trial({"precision": {"method": "bf16"}})
    model = load_model(trial.model, plan_loading(trial, "cpu"))

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_random_weights_fill_the_shape_of_a_config(tiny_model_path: str) -> None:
    trial = Trial(model=Model(name="shape", config=tiny_model_path, weights="random"))
    model = load_model(trial.model, plan_loading(trial, "cpu"))

    assert sum(parameter.numel() for parameter in model.parameters()) == 558_208


@pytest.mark.parametrize("layers", [1, 3])
def test_a_random_model_is_cut_to_its_layers(layers: int, tiny_model_path: str) -> None:
    whole = Model(name="shape", config=tiny_model_path, weights="random")
    cut = whole.model_copy(update={"layers": layers})
    trial = Trial(model=cut)
    parts = [
        name
        for name, _ in load_model(cut, plan_loading(trial, "cpu")).named_modules()
        if name.startswith("model.layers.") and name.count(".") == 2
    ]

    assert parts == [f"model.layers.{layer}" for layer in range(layers)]
    assert (depth(whole), depth(cut)) == (4, layers)


def test_a_shape_that_names_a_kind_for_each_layer_is_cut_with_its_names() -> None:
    cut = Model(name="shape", config="qwen3-8b", weights="random", layers=2)

    assert _config(cut).layer_types == ["full_attention"] * 2
    assert depth(cut) == 2


def test_random_weights_have_no_tokenizer(tiny_model_path: str) -> None:
    shape = Model(name="shape", config=tiny_model_path, weights="random")

    assert load_tokenizer(shape) is None


def test_random_weights_are_never_quantized_from_a_checkpoint(tiny_model_path: str) -> None:
    trial = Trial(model=Model(name="shape", config=tiny_model_path, weights="random"))

    assert plan_loading(trial, "cpu").dense_first


def test_a_shape_knows_its_vocabulary_and_its_positions(tiny_model_path: str) -> None:
    model = Model(name=tiny_model_path)

    assert (vocabulary(model), longest_input(model)) == (256, 128)


def test_the_reference_model_is_found_where_it_lies() -> None:
    assert source(Model(name="reference")) == str(reference.CHECKPOINT)


def test_a_name_that_is_no_folder_is_a_hub_id() -> None:
    assert source(Model(name="someone/something")) == "someone/something"


@pytest.mark.parametrize("find", [vocabulary, load_tokenizer], ids=["config", "tokenizer"])
def test_a_model_out_of_reach_is_refused_in_one_line(find: Callable[[Model], object]) -> None:
    with pytest.raises(UserError) as caught:
        find(Model(name="nobody/nothing"))

    assert "nobody/nothing: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_refused(tiny_model_path: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((Path(tiny_model_path) / "config.json").read_text())
    trial = Trial(model=Model(name=str(tmp_path)))

    with pytest.raises(UserError, match="cannot load model"):
        load_model(trial.model, plan_loading(trial, "cpu"))


def test_a_config_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(UserError, match="cannot load model"):
        vocabulary(Model(name=str(tmp_path)))


# Random weights that are quantized: a 70B in 16 bits has no room on the device meant for its 4.


def drawn(settings: dict[str, Any], folder: str) -> tuple[nn.Module, MemoryMeter]:
    """A model of random weights after compression, and the meter that watched."""
    trial = Trial.from_payload(
        {
            "model": {"name": "shape", "config": folder, "weights": "random"},
            "budget": {"data": "random"},
            "evaluate": {},
            "settings": {
                "precision": {"method": "bf16"},
                "adapters": {"method": "lora"},
                **settings,
            },
        }
    )
    request, meter = plan_loading(trial, "cpu"), MemoryMeter("cpu")
    with meter.running():
        with meter.phase("load"):
            torch.manual_seed(0)
            model = load_model(trial.model, request)
        with meter.phase("compress"):
            for part in trial.between(Stage.LOAD, Stage.QUANTIZE):
                model = part.model(model, request)
    return model, meter


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_random_weights_to_be_quantized_never_exist_all_at_once(
    method: str, tiny_model_path: str
) -> None:
    _, meter = drawn({"quantization": {"method": method}}, tiny_model_path)
    layer, largest = 2 * (2 * 128**2 + 2 * 64 * 128 + 3 * 192 * 128), 2 * 192 * 128
    outside = 2 * (2 * 256 * 128)
    held = outside + 4 * layer * {"nf4": 0.5 + 4 / 64, "int8": 1}[method] / 2

    # A dense weight lies beside its copy in the format that is quantized, and the result.
    assert held < meter.peaks["compress"] < held + 3 * largest < outside + 4 * layer


def test_weights_that_are_drawn_late_are_spread_as_those_of_the_config(
    tiny_model_path: str,
) -> None:
    model, _ = drawn({"quantization": {"method": "int8"}}, tiny_model_path)
    again, _ = drawn({"quantization": {"method": "int8"}}, tiny_model_path)
    linears, repeated = (
        [cast(Any, linear.weight) for _, linear in decoder_linears(each)] for each in (model, again)
    )
    # A row's scale is its largest number; rows have 128 or 192 normal ones of deviation 0.05.
    spread = [float(((weight.CB.float() / 127) * weight.SCB[:, None]).std()) for weight in linears]

    assert len(linears) == 28
    assert spread == pytest.approx([0.05] * 28, rel=0.03)
    assert all(map(torch.equal, linears, repeated))


def test_what_is_not_quantized_is_as_in_any_random_model(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(configs.path("qwen2.5-7b"))  # its q, k and v have biases
    small = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": None}
    config.update({**small, **heads, "vocab_size": 256, "tie_word_embeddings": True})
    config.save_pretrained(tmp_path)
    model: Any = drawn({"quantization": {"method": "nf4"}}, str(tmp_path))[0]
    plain: Any = load_model(
        Model(name="shape", config=str(tmp_path), weights="random"),
        LoadRequest(device="cpu", dtype=torch.bfloat16, compute_dtype=torch.bfloat16),
    )
    biases = [linear.bias for _, linear in decoder_linears(model) if linear.bias is not None]

    assert len(biases) == 6
    assert not any(map(torch.count_nonzero, biases))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert float(model.lm_head.weight.data.std()) == pytest.approx(
        config.initializer_range, rel=0.03
    )
    assert torch.equal(model.model.norm.weight, torch.ones(128))
    for (name, found), (_, expected) in zip(
        model.named_buffers(), plain.named_buffers(), strict=True
    ):
        assert torch.equal(found, expected), name
