"""Structured pruning: smaller matrices that compute what zeroed ones would, and fewer bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tradebench.errors import UserError
from tradebench.predict.memory import predict_memory
from tradebench.techniques import ContradictionError
from tradebench.techniques.structured import Structured
from tradebench.trial import Trial

Make = Callable[..., Trial]
Compress = Callable[[Trial], nn.Module]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]

BOTH = {"method": "structured", "channels": 0.3, "heads": 0.5}
TOKENS = torch.tensor([[5, 6, 7, 8, 9]])
HEAD, QUERIES = 32, 2  # of the tiny model: width of a head, and query heads to each key


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(TOKENS).logits
    return found


def lightest(weights: list[Tensor], units: int, removed: int) -> list[int]:
    """The units with the least sum of squares, by loops; each weight has its units ahead."""
    sums = [
        sum(float(row.square().sum()) for part in weights for row in part.chunk(units)[unit])
        for unit in range(units)
    ]
    return sorted(range(units), key=sums.__getitem__)[:removed]


def test_what_is_left_computes_what_the_zeroed_model_would(
    tiny_trial: Make, compressed: Compress
) -> None:
    small, whole = compressed(tiny_trial({"pruning": BOTH})), compressed(tiny_trial({}))
    for layer in whole.get_submodule("model.layers").children():
        mlp: Any = layer.mlp
        attention: Any = layer.self_attn
        parts = [mlp.gate_proj.weight.data, mlp.up_proj.weight.data, mlp.down_proj.weight.data.T]
        for channel in lightest(parts, 192, 64):
            for part in parts:
                part[channel] = 0
        q, k, v, o = (
            attention.get_submodule(f"{name}_proj").weight.data for name in ("q", "k", "v", "o")
        )
        (group,) = lightest([q, k, v, o.T], 2, 1)
        rows = slice(group * QUERIES * HEAD, (group + 1) * QUERIES * HEAD)
        o[:, rows] = 0

    torch.testing.assert_close(logits(small), logits(whole), rtol=1e-4, atol=1e-5)


def test_the_config_says_the_new_shape_and_loads_it(
    tiny_trial: Make, compressed: Compress, tmp_path: Path
) -> None:
    model: Any = compressed(tiny_trial({"pruning": BOTH}))
    config = model.config
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)

    assert (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads) == (
        128,
        2,
        1,
    )
    assert config.head_dim == HEAD
    assert torch.equal(logits(again), logits(model))


def test_bytes_fall_by_what_was_removed(tiny_trial: Make, run_trial: Run) -> None:
    """Weights, gradients and two moments in fp32 of every number that went."""
    model, _, effects = run_trial(tiny_trial({"pruning": BOTH}))
    removed = 4 * (3 * 64 * 128 + (2 * QUERIES + 2) * HEAD * 128)
    whole, small = (
        {name: found.value for name, found in predict_memory(tiny_trial(part)).measurements.items()}
        for part in ({}, {"pruning": BOTH})
    )

    assert sum(p.numel() for p in model.parameters()) == 558_208 - removed
    assert effects["pruning"] == {"channels_removed": 64, "groups_removed": 1, "layers": 4}
    assert whole["peak_weights_bytes"] - small["peak_weights_bytes"] == 4 * removed
    assert whole["peak_tensor_bytes"] - small["peak_tensor_bytes"] >= 3 * 4 * removed


@pytest.mark.parametrize(
    ("share", "kept"), [(0.25, 128), (0.1, 192), (0.5, 128), (0.9, 64), (0.0, 192)]
)
def test_channels_are_kept_in_multiples_of_64(share: float, kept: int) -> None:
    assert Structured(method="structured", channels=share).channels_of(192) == (192, kept)


def test_removing_nothing_is_refused(tiny_trial: Make, compressed: Compress) -> None:
    nothing = {"method": "structured", "channels": 0.0, "heads": 0.0}
    little = {"method": "structured", "channels": 0.1}

    assert "set channels or heads" in " ".join(tiny_trial({"pruning": nothing}).conflicts())
    with pytest.raises(UserError, match="removes nothing of 192 channels"):
        compressed(tiny_trial({"pruning": little}))


def test_another_shape_is_found_out(tiny_trial: Make, compressed: Compress) -> None:
    model = compressed(tiny_trial({"pruning": BOTH}))

    with pytest.raises(ContradictionError, match="leaves 64 channels and 32 rows of keys, but"):
        Structured(method="structured", channels=0.7, heads=0.5).effect(model)


def test_layers_that_are_built_in_another_way_are_refused(
    tiny_trial: Make, compressed: Compress
) -> None:
    trial = tiny_trial({"pruning": BOTH})
    model: Any = compressed(tiny_trial({}))
    del model.model.layers[0].mlp.gate_proj

    with pytest.raises(UserError, match="knows no layers without gate_proj"):
        trial.techniques[0].model(model, None)  # type: ignore[arg-type]  # it does not ask
