"""Loading: real and random weights, tokenizers, and what cannot be found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tradebench import reference
from tradebench.errors import UserError
from tradebench.program.model import (
    load_model,
    load_tokenizer,
    longest_input,
    plan_loading,
    source,
    vocabulary,
)
from tradebench.trial import Model, Trial

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
