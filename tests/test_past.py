"""The libraries of January 2024: what they kept besides, by closed forms, and that they agree.

The closed forms count what the sources of torch 2.1.2, transformers 4.37.2 and bitsandbytes 0.42.0
keep.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama as llama

from tradebench.plan.validate import ALLOCATOR, STAND_IN
from tradebench.predict.past import PLACES, january_2024, predict
from tradebench.published import expressed
from tradebench.target import Target
from tradebench.worlds.fake import fake_world
from tradebench.worlds.memory import Tracker

Age = Callable[[], AbstractContextManager[None]]

TOKENS, HIDDEN, HEAD, LAYERS, POSITIONS = 24, 256, 64, 3, 128
FLOAT, HALF = 4, 2  # bytes


def kept(age: Age, make: Callable[[], Callable[[], object]]) -> int:
    """Bytes that live when a function has answered, and did not before; `make` prepares it."""
    with age(), fake_world():
        function = make()
        tracker = Tracker("cpu")
        with tracker:
            before = tracker.total
            answer = function()
            after = tracker.total
        del answer
    return after - before


def more(make: Callable[[], Callable[[], object]]) -> int:
    """What was kept then and is not now."""
    return kept(january_2024, make) - kept(nullcontext, make)


# torch 2.1.


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_a_mean_has_the_same_value_and_gradient(dim: int, keepdim: bool) -> None:
    def taken(age: Age) -> tuple[Tensor, Tensor]:
        values = torch.arange(24.0).view(2, 3, 4).sin().requires_grad_()
        with age():
            mean = values.mean(dim, keepdim)
            (gradient,) = torch.autograd.grad((mean**3).sum(), values)
        return mean, gradient

    for then, now in zip(taken(january_2024), taken(nullcontext), strict=True):
        torch.testing.assert_close(then, now)


def test_a_mean_over_everything_or_in_another_format_is_that_of_today() -> None:
    values = torch.arange(6).view(2, 3)
    with january_2024():
        assert values.float().mean().item() == 2.5
        assert values.mean(1, dtype=torch.float64).tolist() == [1.0, 4.0]


@pytest.mark.parametrize("trains", [True, False])
def test_a_norm_kept_the_squares_of_its_input_in_fp32_whether_it_trained_or_not(
    trains: bool,
) -> None:
    def make() -> Callable[[], object]:
        norm = llama.LlamaRMSNorm(HIDDEN).to(torch.bfloat16).requires_grad_(trains)
        given = torch.empty(1, TOKENS, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
        return lambda: norm(given)

    assert more(make) == FLOAT * TOKENS * HIDDEN


def test_recomputing_spared_the_squares() -> None:
    def make() -> Callable[[], object]:
        norm = llama.LlamaRMSNorm(HIDDEN)
        given = torch.empty(1, TOKENS, HIDDEN, requires_grad=True)
        return lambda: checkpoint(norm, given, use_reentrant=False)

    assert more(make) == 0


# bitsandbytes 0.42.


def four_bits(outputs: int = 128) -> Linear4bit:
    layer = Linear4bit(HIDDEN, outputs, bias=False, compute_dtype=torch.bfloat16, device="meta")
    weight = torch.full((outputs, HIDDEN), 0.5).cumsum(1).sin()
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4").to("cpu")
    return layer


def passed_on(given: Tensor, layer: nn.Module) -> Tensor:
    """A product whose input nobody else holds."""
    return layer(given * 2)  # type: ignore[no-any-return]  # a module's answer


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_4_bit_product_kept_its_input_recomputed_or_not(recomputed: bool) -> None:
    def make() -> Callable[[], object]:
        layer = four_bits()
        given = torch.empty(TOKENS, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
        if recomputed:
            return lambda: checkpoint(passed_on, given, layer, use_reentrant=False)
        return lambda: passed_on(given, layer)

    assert more(make) == HALF * TOKENS * HIDDEN


def test_a_4_bit_product_kept_nothing_where_nothing_before_it_trained() -> None:
    def make() -> Callable[[], object]:
        layer, given = four_bits(), torch.empty(TOKENS, HIDDEN, dtype=torch.bfloat16)
        return lambda: passed_on(given, layer)

    assert more(make) == 0


def test_a_4_bit_product_has_the_same_answer_and_gradient() -> None:
    layer = four_bits()

    def taken(age: Age) -> tuple[Tensor, Tensor]:
        given = torch.linspace(-1, 1, TOKENS * HIDDEN).view(TOKENS, HIDDEN).requires_grad_()
        with age():
            answer = layer(given)
            (gradient,) = torch.autograd.grad(answer.square().sum(), given)
        return answer, gradient

    for then, now in zip(taken(january_2024), taken(nullcontext), strict=True):
        torch.testing.assert_close(then, now, rtol=0, atol=0)


# transformers 4.37.


def model(heads: int = HIDDEN // HEAD, layers: int = LAYERS, words: int = 96) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=512,
        num_hidden_layers=layers,
        max_position_embeddings=POSITIONS,
        vocab_size=words,
        dtype="bfloat16",
    )
    made: LlamaForCausalLM = LlamaForCausalLM._from_config(config)
    return made


def test_every_layer_had_tables_of_all_positions_and_kept_the_rows_of_its_own() -> None:
    buffers = {}
    for age in (january_2024, nullcontext):
        with age(), torch.device("meta"):
            buffers[age] = sum(
                each.nbytes for name, each in model().named_buffers() if "inv_freq" not in name
            )

    assert buffers == {january_2024: LAYERS * 2 * POSITIONS * HEAD * HALF, nullcontext: 0}


def test_a_model_kept_the_squares_of_every_norm_and_the_rows_of_every_layer() -> None:
    def make() -> Callable[[], object]:
        llama_model, tokens = model(), torch.zeros(1, TOKENS, dtype=torch.long)
        return lambda: llama_model(tokens, use_cache=False)

    norms, rows = 2 * LAYERS + 1, 2 * HEAD * HALF

    # Today's layers share the rows of one table.
    assert more(make) == TOKENS * (norms * FLOAT * HIDDEN + (LAYERS - 1) * rows)


def test_a_model_saves_what_the_libraries_of_then_were_seen_to_save() -> None:
    """7,351,360 bytes by transformers 4.37.2 on torch 2.1.2, on a CPU.

    64 of them are random states, of which the attention of then had four in each layer.
    """
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with january_2024(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        seen = model(heads=2, layers=2, words=1024)
        answer = seen(torch.zeros(1, 256, dtype=torch.long))
    own = {each.untyped_storage().data_ptr() for each in (*seen.parameters(), *seen.buffers())}
    sizes = [each.untyped_storage().nbytes() for at, each in saved.items() if at not in own]

    assert answer.logits.shape == (1, 256, 1024)
    assert sum(sizes) == 7_351_360 - 64


def test_a_model_has_the_same_logits_and_gradients() -> None:
    def taken(age: Age) -> list[Tensor]:
        with age():
            torch.manual_seed(0)
            made = model().float()
            logits = made(torch.arange(TOKENS)[None], use_cache=False).logits
            logits.square().mean().backward()
        return [logits, *(each.grad for each in made.parameters() if each.grad is not None)]

    then, now = taken(january_2024), taken(nullcontext)

    assert len(then) == len(now) == 1 + len(list(model().parameters()))
    for ours, theirs in zip(then, now, strict=True):
        torch.testing.assert_close(ours, theirs)


# All of it.


def places() -> list[object]:
    return [vars(owner).get(name) for owner, name, _ in PLACES]


def test_the_libraries_are_those_of_today_afterwards() -> None:
    before = places()
    with january_2024():
        assert places() == [instead for _, _, instead in PLACES]

    assert places() == before
    assert "mean" not in vars(Tensor)


def test_the_libraries_are_those_of_today_after_an_error() -> None:
    before = places()
    with pytest.raises(ZeroDivisionError), january_2024():
        1 / 0  # noqa: B018

    assert places() == before


@pytest.mark.parametrize("row", ["M055", "M069"])
def test_a_figure_of_then_is_met_with_nothing_fitted(row: str) -> None:
    (found,) = (each for each in expressed() if each.row.id == row)
    target = Target(device=STAND_IN, allocator=ALLOCATOR).model_dump()
    (answer,) = predict([found.trial.payload()], target)
    measurement: dict[str, Any] = answer["measurements"][found.reading.measurement]
    workspace = (2 * 4096 + 8 * 16) * 2**10  # of the backward pass of the length before

    assert found.code == "2024-01"
    assert -workspace - 1e6 < measurement["value"] - found.value < 1e6  # read to 0.001 GB
