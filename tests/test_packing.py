"""Packing: several sequences in a row of the budget's length, and nothing of one in another."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import masking_utils

from tradebench.predict.memory import predict_memory
from tradebench.program import loop
from tradebench.program.data import collate
from tradebench.program.measure import rehearse
from tradebench.program.perform import feed, longest, prepare
from tradebench.result import Outcome
from tradebench.techniques.packing import Packing, best_fit
from tradebench.techniques.protocol import IGNORED, Example, model_inputs
from tradebench.trial import Budget, Trial
from tradebench.worlds.meters import MemoryMeter

Settings = Mapping[str, Any]
Make = Callable[..., Trial]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]

PACKING: Settings = {"data": {"method": "packing"}}
LENGTHS = (30, 7, 12, 18, 5, 9)


def sequences(lengths: Sequence[int]) -> list[Example]:
    """Random sequences, every other token of which carries a label, from the first on."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for length in lengths:
        tokens = tuple(torch.randint(6, 200, (length,), generator=generator).tolist())
        labels = tuple(t if place % 2 == 0 else IGNORED for place, t in enumerate(tokens))
        examples.append(Example(tokens, labels))
    return examples


def batch(lengths: Sequence[int] = LENGTHS) -> dict[str, Tensor]:
    return dict(collate(sequences(lengths), 0, "cpu"))


def packed(lengths: Sequence[int] = LENGTHS, room: int = 30) -> dict[str, Tensor]:
    """The same sequences in rows of so many tokens."""
    rows = Packing().examples(sequences(lengths), Budget(sequence=room))
    return dict(collate(rows, 0, "cpu"))


@pytest.fixture(scope="module")
def model(tiny_model_path: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32).train()


def loss_and_gradients(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[float, Tensor]:
    model.zero_grad()
    loss = loop.summed_loss(model, batch) / loop.answer_tokens(batch)
    loss.backward()
    return float(loss.detach()), torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    )


def test_loss_and_gradients_are_those_of_the_padded_batch(model: Any) -> None:
    expected, padded = loss_and_gradients(model, batch())
    found, gradients = loss_and_gradients(model, packed())

    assert found == pytest.approx(expected, rel=1e-6)
    assert float((gradients - padded).abs().max()) < 1e-6 * float(padded.abs().max()) * 10
    assert packed()["input_ids"].shape == (3, 30)


def seen(model: Any, tokens: Mapping[str, Tensor], **options: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**model_inputs(tokens), **options).logits
    return logits


def test_no_sequence_sees_another(model: Any) -> None:
    """Every logit of a packed sequence is what the sequence alone gives."""
    whole = packed()
    found = seen(model, whole, use_cache=False)
    for index, length in enumerate(LENGTHS):
        alone = batch()["input_ids"][index : index + 1, :length]
        expected = seen(model, {"input_ids": alone}, use_cache=False)[0]
        row, place = next(
            (row, place)
            for row in range(len(found))
            for place in range(31 - length)
            if torch.equal(whole["input_ids"][row, place : place + length], alone[0])
        )

        torch.testing.assert_close(found[row, place : place + length], expected)


@pytest.mark.parametrize("how", ["cache", "mask", "positions"])
def test_what_keeps_sequences_apart_is_needed(
    how: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cache, without the mask, or without positions, sequences leak into each other."""
    whole = dict(packed())
    right = seen(model, whole, use_cache=False)
    if how == "mask":
        monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda positions: None)
    if how == "positions":
        del whole["position_ids"]
    wrong = seen(model, whole, use_cache=how == "cache")

    assert float((wrong - right).abs().max()) > 1e-3


def test_tokens_and_answers_are_counted_as_before() -> None:
    padded, whole = batch(), packed()

    assert loop.answer_tokens(whole) == loop.answer_tokens(padded)
    assert int(whole["attention_mask"].sum()) == sum(LENGTHS)
    assert sorted(whole["input_ids"][whole["attention_mask"] > 0].tolist()) == sorted(
        padded["input_ids"][padded["attention_mask"] > 0].tolist()
    )


def test_positions_count_within_each_sequence_and_padding_goes_on() -> None:
    whole = packed((5, 2, 2, 4), 5)

    assert whole["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert whole["attention_mask"].tolist() == [[1] * 5, [1] * 4 + [0], [1] * 4 + [0]]
    assert whole["labels"][1, [0, 2]].tolist() == [IGNORED] * 2


@pytest.mark.parametrize(("lengths", "masked"), [((9, 8, 7), False), ((9, 4, 4), True)])
def test_rows_that_nobody_shares_need_no_mask(lengths: Sequence[int], masked: bool) -> None:
    positions = packed(lengths, 9).get("position_ids")

    assert (positions is not None) == masked
    if positions is not None:
        assert masking_utils.find_packed_sequence_indices(positions) is not None


def test_rows_are_as_long_as_the_budget_says_and_not_as_the_longest_sequence() -> None:
    assert packed((8, 7, 5, 4), 24)["input_ids"].shape == (1, 24)
    assert packed((8, 7, 5, 4), 12)["input_ids"].shape == (2, 12)


def fewest(lengths: Sequence[int], room: int) -> int:
    """The fewest rows, by trying every assignment."""
    for rows in range(1, len(lengths) + 1):
        for choice in itertools.product(range(rows), repeat=len(lengths)):
            sums = [0] * rows
            for length, row in zip(lengths, choice, strict=True):
                sums[row] += length
            if max(sums) <= room:
                return rows
    raise AssertionError("each can have a row of its own")


def searched(lengths: Sequence[int], room: int) -> list[int]:
    """What best-fit decreasing leaves of every row, by looking at all rows each time."""
    left: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [each for each in left if each >= length]
        if fitting:
            left.remove(min(fitting))
        left.append((min(fitting) if fitting else room) - length)
    return sorted(left)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5), more=st.integers(0, 12))
@settings(derandomize=True, max_examples=40, deadline=None)
def test_rows_are_as_few_as_can_be_but_for_one(lengths: list[int], more: int) -> None:
    room = max(lengths) + more
    rows = best_fit(lengths, room)

    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= room for row in rows)
    assert fewest(lengths, room) <= len(rows) <= 11 * fewest(lengths, room) / 9 + 6 / 9


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_every_sequence_goes_where_least_room_is_left(lengths: list[int]) -> None:
    rows = best_fit(lengths, 40)

    assert sorted(40 - sum(lengths[index] for index in row) for row in rows) == searched(
        lengths, 40
    )


def test_rows_come_in_an_order_that_follows_the_shuffled_epoch() -> None:
    found = Packing().examples(sequences((3, 9, 2, 8, 4)), Budget(sequence=10))

    assert [len(row.tokens) for row in found] == [9, 10, 7]
    assert [row.packed for row in found] == [(), (8, 2), (4, 3)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Long prompts with a short answer, and short prompts with a longer one."""
    shapes = [(28, 1), (27, 1), (26, 1), (2, 9), (3, 8), (1, 7), (2, 6), (4, 5)]
    rows = [
        {"prompt": " ".join(["river"] * prompt), "answer": " ".join(["town"] * answer)}
        for prompt, answer in shapes
    ]
    file = tmp_path_factory.mktemp("data") / "mixed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"data": {"file": str(file)}, "batch": 4}


def test_training_packs_and_its_losses_are_those_of_padded_batches(
    tiny_trial: Make, mixed: Mapping[str, Any], run_trial: Run
) -> None:
    """All eight sequences in every step: five packed rows of them, or eight padded ones."""
    rest = {"loss": {"method": "chunked", "tokens": 16}, "checkpointing": {"method": "full"}}
    _, expected, _ = run_trial(tiny_trial(rest, **mixed, accumulation=2))
    _, losses, effects = run_trial(tiny_trial({**rest, **PACKING}, **{**mixed, "batch": 5}))

    assert losses == pytest.approx(expected, rel=1e-5)
    # Three steps, and the batch that needs most memory, in which the longest row is there twice.
    tokens = 3 * 139 + (139 - 28 + 30)
    assert effects["data"] == {
        "sequences": 4 * 8,
        "rows": 4 * 5,
        "tokens": tokens,
        "padding": 4 * 5 * 30 - tokens,
    }


def test_a_step_trains_on_batch_rows(tiny_trial: Make, mixed: Mapping[str, Any]) -> None:
    trial = tiny_trial(PACKING, **mixed)
    stream = feed(trial, prepare(trial), seed=0)
    shapes = [next(stream)["input_ids"].shape for _ in range(3)]

    assert {rows for rows, _ in shapes} == {4}
    assert max(width for _, width in shapes) == 30  # of the 32 that there is room for


def test_batches_that_need_most_memory_are_tried_packed(tiny_trial: Make, tmp_path: Path) -> None:
    """Rows that nobody shares have most answers here, and need no mask; the others do."""
    rows = [{"prompt": "river", "answer": " ".join(["town"] * 28)}] * 4
    rows += [{"prompt": " ".join(["river"] * 12), "answer": "town"}] * 8
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trial = tiny_trial(PACKING, data={"file": str(file)}, batch=4)
    most_answers, packed_rows = longest(trial, prepare(trial))

    assert "position_ids" not in most_answers[0]
    assert packed_rows[0]["position_ids"].shape == (4, 28)
    assert loop.answer_tokens(most_answers[0]) > loop.answer_tokens(packed_rows[0])


@pytest.mark.slow
def test_packed_batches_take_the_same_bytes_in_both_worlds(
    tiny_trial: Make, mixed: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tradebench.worlds.meters.Profiler", lambda: None)
    trial = tiny_trial({**PACKING, "offload": {"method": "activations"}}, **mixed)
    outcome = Outcome()
    rehearse(trial, prepare(trial), outcome, lambda beat: None, MemoryMeter("cpu"))
    fake = predict_memory(trial).measurements

    assert fake["peak_tensor_bytes"] == outcome.measurements["peak_tensor_bytes"]
