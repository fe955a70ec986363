"""Loading in shares: every rank reads its rows and no others, and together they have the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard._fsdp_common import _chunk_with_empty

from tradebench.errors import UserError
from tradebench.program import checkpoint
from tradebench.program.checkpoint import Checkpoint
from tradebench.program.model import load_model, plan_loading
from tradebench.techniques import Stage
from tradebench.techniques.protocol import SHARE
from tradebench.trial import Model, Trial
from tradebench.worlds.memory import tensors_in
from tradebench.worlds.shares import cut, keep_share, rows

Make = Callable[..., Trial]


@given(count=st.integers(1, 40), ranks=st.integers(1, 64), data=st.data())
@settings(max_examples=60, derandomize=True, deadline=None)
def test_a_share_is_torchs_share_padded_as_the_first(
    count: int, ranks: int, data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, ranks - 1))
    whole = torch.arange(1.0, 3 * count + 1).view(count, 3)
    chunks = _chunk_with_empty(whole, ranks, dim=0)
    share = cut(whole, (number, ranks))
    own = len(chunks[number])

    assert rows(count, (number, ranks))[1:] == (own, len(chunks[0]))
    assert len(share) == len(chunks[0])
    assert torch.equal(share[:own].flatten(), chunks[number].flatten())
    assert torch.count_nonzero(share[own:]) == 0


def test_whoever_looks_at_a_weight_that_is_not_there_finds_nan() -> None:
    linear = nn.Linear(4, 6)
    keep_share(linear, (0, 3))

    assert linear.weight.shape == (6, 4)
    assert linear.weight.untyped_storage().nbytes() == 4
    assert torch.isnan(linear(torch.ones(4))).all()


# Checkpoints.


def test_rows_are_those_of_the_checkpoint(tiny_model_path: str) -> None:
    from safetensors.torch import load_file

    tensors = load_file(Path(tiny_model_path) / "model.safetensors")
    found = Checkpoint(tiny_model_path, "main")
    for name, tensor in tensors.items():
        assert torch.equal(found.rows(name, tensor.shape, 0, len(tensor), len(tensor)), tensor)
        share = found.rows(name, tensor.shape, 50, 3, 5)
        assert torch.equal(share[:3], tensor[50:53])
        assert torch.count_nonzero(share[3:]) == 0


def test_a_checkpoint_of_several_files_is_read_by_its_index(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    found = Checkpoint(str(tmp_path), "main")

    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    for name, parameter in model.named_parameters():
        count = len(parameter)
        assert torch.equal(found.rows(name, parameter.shape, 0, count, count), parameter)


def test_what_is_not_in_a_checkpoint_is_said(tiny_model_path: str, tmp_path: Path) -> None:
    found = Checkpoint(tiny_model_path, "main")

    with pytest.raises(UserError, match=r"no model\.norm\.weight of shape \[7\]"):
        found.rows("model.norm.weight", torch.Size([7]), 0, 1, 1)
    with pytest.raises(UserError, match="its files have no other"):
        found.rows("other", torch.Size([7]), 0, 1, 1)
    with pytest.raises(UserError, match="no safetensors files"):
        Checkpoint(str(tmp_path), "main")


def test_a_rank_reads_its_rows_and_nothing_else(
    tiny_trial: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    rows = Checkpoint.rows

    def counted(self: Checkpoint, *arguments: Any) -> Tensor:
        first, before = _read_bytes(), _read_bytes()
        found = rows(self, *arguments)
        read.append(_read_bytes() - before - (before - first))  # to ask is to read, too
        return found

    monkeypatch.setattr(checkpoint.Checkpoint, "rows", counted)
    for number in range(3):
        read.clear()
        model = load(sharded(tiny_trial, 3), number)
        own = sum(parameter.nbytes for parameter in model.parameters()) / 3

        assert sum(read) == pytest.approx(own, rel=0.02)


def _read_bytes() -> int:
    """What this process has read from files."""
    (line,) = (
        line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")
    )
    return int(line.split()[1])


# Models.


def sharded(make: Make, degree: int, **others: Any) -> Trial:
    return make({**others, "sharding": {"method": "fsdp2", "degree": degree}})


def load(trial: Trial, number: int) -> nn.Module:
    """The compressed model as one rank of the trial has it."""
    planned = plan_loading(trial, "cpu")
    request = planned
    if planned.place is not None:
        here = (number, trial.ranks)
        request = replace(planned, place=here, keep=partial(keep_share, place=here))
    torch.manual_seed(0)
    model = load_model(trial.model, request)
    for part in trial.between(Stage.LOAD, Stage.QUANTIZE):
        model = part.model(model, request)
    return model


def joined(trial: Trial) -> dict[str, Tensor]:
    """Every parameter, put together of the shares of all ranks."""
    ranks = [dict(load(trial, number).named_parameters()) for number in range(trial.ranks)]
    return {
        name: torch.cat([getattr(rank[name], SHARE) for rank in ranks])[: len(parameter)]
        for name, parameter in ranks[0].items()
    }


LORA: dict[str, Any] = {"method": "lora"}
PIECEMEAL: dict[str, dict[str, Any]] = {
    "dense": {},
    "nf4": {"quantization": {"method": "nf4"}, "adapters": LORA},
    "rtn": {"quantization": {"method": "rtn", "bits": 3}, "adapters": LORA},
    "fp8": {"precision": {"method": "fp8"}},
    "oft": {"adapters": {"method": "oft", "block": 16}},
    "vera": {"adapters": {"method": "vera", "rank": 8}},
    "loftq": {"quantization": {"method": "nf4"}, "adapters": {"method": "loftq", "rank": 4}},
}


@pytest.mark.parametrize("weights", ["hub", "random"])
@pytest.mark.parametrize("others", PIECEMEAL.values(), ids=PIECEMEAL)
@pytest.mark.parametrize("degree", [2, 3])
def test_all_ranks_together_have_the_model(
    others: dict[str, Any], weights: str, degree: int, tiny_trial: Make
) -> None:
    def of(trial: Trial) -> Trial:
        model = trial.model.model_dump() | {"weights": weights}
        if weights == "random":
            model["config"] = trial.model.name
        return trial.model_copy(update={"model": Model.model_validate(model)})

    whole = load(of(tiny_trial(others)), 0)
    found = joined(of(sharded(tiny_trial, degree, **others)))

    assert found.keys() == {name for name, _ in whole.named_parameters()}
    for name, parameter in whole.named_parameters():
        assert torch.equal(found[name], parameter.data), name
    for (name, buffer), (_, expected) in zip(
        load(of(sharded(tiny_trial, degree, **others)), 0).named_buffers(),
        whole.named_buffers(),
        strict=True,
    ):
        assert torch.equal(buffer, expected), name


def test_what_looks_at_whole_weights_is_loaded_whole(tiny_trial: Make) -> None:
    trial = sharded(tiny_trial, 2, pruning={"method": "magnitude"})

    assert not trial.in_shares
    assert plan_loading(trial, "cpu").place is None
    assert "looks at whole weights" in " ".join(trial.cautions())


def test_shares_take_the_memory_of_a_share(tiny_trial: Make) -> None:
    model = load(sharded(tiny_trial, 3), 2)
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for parameter in model.parameters()
        for tensor in tensors_in((parameter, getattr(parameter, SHARE)))
    }
    share = sum(math.ceil(len(p) / 3) * (p.nbytes // len(p)) for p in model.parameters())

    assert sum(storages.values()) == share + 4 * len(list(model.parameters()))
