"""The shipped shapes: their parameters, counted a second way, and their bytes in both worlds."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tradebench import configs, reference
from tradebench.predict.memory import predict_memory
from tradebench.program.measure import rehearse
from tradebench.program.perform import prepare
from tradebench.result import Outcome
from tradebench.trial import Trial

# From the model cards and the index files of the public checkpoints. Two shapes stand for others:
# llama-random-1.14b is that of a notebook on memory, which says 1.14B; qwen-7b is the first Qwen
# as transformers' own Qwen2, whose tensors hold the same numbers.
PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360,
    "qwen-7b": 7_721_324_544,
    "llama-random-1.14b": 1_137_805_312,
}
# Where a quarter of the layers or heads would be less than one, so that a tiny run is real.
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def shape(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(configs.path(name).read_text())
    return found


def test_every_shipped_shape_is_counted_here() -> None:
    assert set(configs.names()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shape_has_the_published_number_of_parameters(name: str) -> None:
    config = AutoConfig.from_pretrained(configs.path(name))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    assert sum(math.prod(part.shape) for part in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_follow_from_the_shape_by_arithmetic(name: str) -> None:
    found = shape(name)
    hidden, inner = found["hidden_size"], found["intermediate_size"]
    head = found.get("head_dim", hidden // found["num_attention_heads"])
    queries = head * found["num_attention_heads"]
    keys = head * found["num_key_value_heads"]
    kind = found["model_type"]
    layer = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * inner + 2 * hidden
    layer += queries + 2 * keys if kind == "qwen2" else 0  # biases of queries, keys and values
    layer += 2 * head if kind == "qwen3" else 0  # norms of queries and of keys
    ends = (1 if found["tie_word_embeddings"] else 2) * found["vocab_size"] * hidden + hidden

    assert found["num_hidden_layers"] * layer + ends == PARAMETERS[name]


def test_llama_3_and_its_successors_differ_in_reach_alone() -> None:
    """Llama 3.1 and 3.3 stretch the positions of Llama 3; no tensor has another shape."""
    reach = {"max_position_embeddings", "rope_scaling", "eos_token_id"}
    for old, new in (
        ("llama-3-8b", "llama-3.1-8b"),
        ("llama-3-70b", "llama-3.1-70b"),
        ("llama-3-70b", "llama-3.3-70b"),
    ):
        before, after = shape(old), shape(new)
        assert {key for key in after if before[key] != after[key]} == reach


def trial_on(folder: Path, settings: Mapping[str, Any]) -> Trial:
    return Trial.from_payload(
        {
            "model": {"name": str(folder), "config": str(folder), "weights": "random"},
            "budget": {"batch": 2, "sequence": 48, "data": "random"},
            "evaluate": {},
            "settings": settings,
        }
    )


def bytes_of(outcome: Outcome) -> dict[str, int]:
    return {name: int(found.value) for name, found in outcome.measurements.items()}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param(
            {"adapters": {"method": "lora", "rank": 4}, "checkpointing": {"method": "full"}},
            marks=pytest.mark.slow,
        ),
        {
            "precision": {"method": "bf16"},
            "quantization": {"method": "nf4", "double": True},
            "adapters": {"method": "lora", "rank": 4},
        },
    ],
    ids=["full", "lora", "nf4"],
)
@pytest.mark.parametrize("name", ["llama-2-7b", "mistral-7b-v0.3", "qwen2.5-7b", "qwen3-8b"])
def test_a_kind_of_model_takes_the_same_bytes_in_both_worlds(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tradebench.worlds.meters.Profiler", lambda: None)
    # A table that the first quantization in a process makes; the fake world starts without it.
    monkeypatch.setattr(bitsandbytes.functional, "name2qmap", {})
    (tmp_path / "config.json").write_text(json.dumps({**shape(name), **TINY}))
    for file in reference.CHECKPOINT.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    trial, real = trial_on(tmp_path, settings), Outcome()
    fake = bytes_of(predict_memory(trial))
    rehearse(trial, prepare(trial), real, lambda beat: None)
    found = bytes_of(real)

    # Loading computes the rotary frequencies in reality, which takes three fp32 vectors.
    assert 0 <= found.pop("peak_tensor_bytes.load") - fake.pop("peak_tensor_bytes.load") <= 96
    assert fake == found


@pytest.mark.parametrize("name", ["mistral-7b-v0.3", "qwen2.5-72b", "qwen3-8b"])
def test_two_layers_of_a_real_width_are_predicted(name: str, tmp_path: Path) -> None:
    found = {**shape(name), "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(found))
    trial = trial_on(tmp_path, {"precision": {"method": "bf16"}})
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = sum(math.prod(part.shape) for part in model.parameters())
    peak = bytes_of(predict_memory(trial))

    # Weights, gradients and two moments, two bytes each, stand together while AdamW steps.
    assert peak["peak_weights_bytes"] == pytest.approx(2 * parameters, rel=1e-5)
    assert peak["peak_tensor_bytes"] >= 8 * parameters
