"""Training data: what carries loss, what is refused, and how batches are made."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tradebench import reference
from tradebench.errors import UserError
from tradebench.program.data import batches, collate, load_examples, longest
from tradebench.program.model import load_tokenizer
from tradebench.techniques.protocol import IGNORED, Example
from tradebench.trial import Budget, FileData, HubData, Model

Rows = Callable[..., list[Example]]


@pytest.fixture(scope="session")
def tokenizer(tiny_model_path: str) -> Any:
    return load_tokenizer(Model(name=tiny_model_path))


@pytest.fixture
def load(tokenizer: Any, tmp_path: Path) -> Rows:
    """Examples of these lines of a file."""

    def read(*rows: object, sequence: int = 64) -> list[Example]:
        file = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file.write_text("\n".join(lines))
        budget = Budget(sequence=sequence, data=FileData(file=str(file)))
        return load_examples(budget, tokenizer, 256)

    return read


def said(example: Example, tokenizer: Any) -> tuple[str, str]:
    """The whole text, and the part that carries loss."""
    answers = [label for label in example.labels if label != IGNORED]
    return tokenizer.decode(example.tokens), tokenizer.decode(answers)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


# What carries loss.


def test_only_what_the_assistant_says_carries_loss(load: Rows, tokenizer: Any) -> None:
    (example,) = load({"messages": [turn("user", "w1 w2"), turn("assistant", "w3 w4")]})

    assert said(example, tokenizer) == (
        "<|user|> w1 w2 <|end|> <|assistant|> w3 w4 <|end|>",
        "w3 w4 <|end|>",
    )


def test_every_answer_of_a_conversation_carries_loss(load: Rows, tokenizer: Any) -> None:
    (example,) = load(
        {
            "messages": [
                turn("user", "w1"),
                turn("assistant", "w2"),
                turn("user", "w3"),
                turn("assistant", "w4"),
            ]
        }
    )

    assert said(example, tokenizer)[1] == "w2 <|end|> w4 <|end|>"


def test_the_words_of_an_answer_carry_no_loss_where_the_user_says_them(load: Rows) -> None:
    (example,) = load({"messages": [turn("user", "w1 w2"), turn("assistant", "w1 w2")]})

    assert [label != IGNORED for label in example.labels] == [False] * 5 + [True] * 3


def test_an_answer_carries_loss_and_its_prompt_none(load: Rows, tokenizer: Any) -> None:
    (example,) = load({"prompt": "w1 w2", "answer": "w3"})

    assert said(example, tokenizer) == ("w1 w2 w3 <|end|>", "w3 <|end|>")


def test_plain_text_carries_loss_everywhere(load: Rows, tokenizer: Any) -> None:
    (example,) = load({"text": "w1 w2 w3"})

    assert said(example, tokenizer) == ("w1 w2 w3 <|end|>",) * 2


def test_a_text_that_ends_by_itself_is_not_ended_twice(load: Rows, tokenizer: Any) -> None:
    (example,) = load({"text": "w1 w2 <|end|>"})

    assert said(example, tokenizer)[0] == "w1 w2 <|end|>"


def test_labels_are_the_tokens_themselves(load: Rows) -> None:
    (example,) = load({"text": "w1 w2 w3"})

    assert example.labels == example.tokens


def test_reference_rows_are_documents_of_the_models_own_form() -> None:
    tokenizer: Any = load_tokenizer(Model(name="reference"))
    first = json.loads(reference.FINETUNE.read_text().splitlines()[0])
    example = load_examples(Budget(data="reference"), tokenizer, 1024)[0]

    assert said(example, tokenizer) == (
        f"<s> {first['prompt']} {first['answer']} .",
        f"{first['answer']} .",
    )


def test_every_reference_row_fits_and_knows_all_its_words() -> None:
    tokenizer: Any = load_tokenizer(Model(name="reference"))
    rows = reference.FINETUNE.read_text().splitlines()
    examples = load_examples(Budget(data="reference", sequence=64), tokenizer, 1024)

    assert len(examples) == len(rows)
    assert not any(tokenizer.unk_token_id in example.tokens for example in examples)


def test_long_examples_are_cut(load: Rows) -> None:
    (example,) = load({"text": " ".join(["w1"] * 50)}, sequence=20)

    assert (len(example.tokens), len(example.labels)) == (20, 20)


def test_rows_whose_answer_is_cut_off_are_left_out(load: Rows) -> None:
    kept = load(
        {"prompt": " ".join(["w1"] * 30), "answer": "w2"},
        {"prompt": "w1", "answer": "w2"},
        sequence=20,
    )

    assert len(kept) == 1


def test_empty_lines_and_a_byte_order_mark_are_skipped(load: Rows) -> None:
    assert len(load('\ufeff{"text": "w1 w2"}', "", '{"text": "w3 w4"}')) == 2


def test_a_compressed_file_is_read(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "w1 w2"}\n' * 3))
    examples = load_examples(Budget(data=FileData(file=str(file))), tokenizer, 256)

    assert len(examples) == 3


# What is refused, in one line that says where.

BAD_ROWS = {
    "not JSON": ('{"text": ', "not JSON: Expecting value"),
    "no object": ("[1, 2]", "a row must be a JSON object"),
    "other columns": ('{"question": "w1"}', "a row needs messages, or prompt and answer, or text"),
    "text is a number": ('{"text": 3}', "a row needs messages, or prompt and answer, or text"),
    "no role": (
        '{"messages": [{"content": "w1"}]}',
        "every message needs a role and a content, both text",
    ),
    "message is text": (
        '{"messages": ["w1"]}',
        "every message needs a role and a content, both text",
    ),
    "no content": (
        '{"messages": [{"role": "user", "content": null}]}',
        "every message needs a role and a content, both text",
    ),
    "answer first": (
        '{"messages": [{"role": "assistant", "content": "w1"}]}',
        "a conversation cannot begin with the assistant's answer",
    ),
}


@pytest.mark.parametrize(("line", "reason"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(
    line: str, reason: str, load: Rows, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load({"text": "w1 w2"}, line)

    assert str(caught.value) == f"{tmp_path / 'rows.jsonl'}:2: {reason}"


def test_bytes_that_are_not_text_are_named_by_line(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "w1 w2"}\n{"text": "\xff"}\n')

    with pytest.raises(UserError, match=r"rows.jsonl:2: not UTF-8 text$"):
        load_examples(Budget(data=FileData(file=str(file))), tokenizer, 256)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"plain text", "Not a gzipped file"),
        (gzip.compress(b'{"text": "w1 w2"}\n' * 99)[:-9], "Compressed file ended before"),
    ],
    ids=["not compressed", "torn"],
)
def test_a_broken_compressed_file_is_refused(
    content: bytes, reason: str, tokenizer: Any, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(content)

    with pytest.raises(UserError, match=f"cannot read the training data: {reason}"):
        load_examples(Budget(data=FileData(file=str(file))), tokenizer, 256)


def test_a_missing_file_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"^/no/such/file: cannot read the training data: No such"):
        load_examples(Budget(data=FileData(file="/no/such/file")), tokenizer, 256)


def test_data_without_any_answer_in_reach_is_refused(load: Rows) -> None:
    with pytest.raises(UserError, match=r"has an answer within 4 tokens: raise budget\.sequence"):
        load({"prompt": "w1 w2 w3 w4 w5", "answer": "w6"}, sequence=4)


def test_messages_without_a_chat_template_are_refused(tiny_model_path: str, tmp_path: Path) -> None:
    tokenizer: Any = load_tokenizer(Model(name=tiny_model_path))
    tokenizer.chat_template = None
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": [turn("user", "w1")]}))

    with pytest.raises(UserError, match=r"rows\.jsonl:1: the model's tokenizer has no chat"):
        load_examples(Budget(data=FileData(file=str(file))), tokenizer, 256)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no users') }}", "the chat template refuses this: no users"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "the chat template renders the conversation differently turn by turn",
        ),
    ],
    ids=["refuses", "differs"],
)
def test_a_chat_template_that_does_not_fit_is_refused(
    template: str, reason: str, tiny_model_path: str, tmp_path: Path
) -> None:
    tokenizer: Any = load_tokenizer(Model(name=tiny_model_path))
    tokenizer.chat_template = template
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": [turn("user", "w1"), turn("assistant", "w2")]}))

    with pytest.raises(UserError, match=f"rows.jsonl:1: {reason}"):
        load_examples(Budget(data=FileData(file=str(file))), tokenizer, 256)


def test_a_hub_data_set_out_of_reach_is_refused_in_one_line(tokenizer: Any) -> None:
    budget = Budget(data=HubData(hub="nobody/nothing"))

    with pytest.raises(UserError) as caught:
        load_examples(budget, tokenizer, 256)

    assert str(caught.value).startswith("cannot load data set nobody/nothing: Couldn't reach")
    assert "\n" not in str(caught.value)


def test_words_for_a_model_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(UserError, match=r"set budget\.data to random"):
        load_examples(Budget(data="reference"), None, 256)


# Random data.


def test_random_data_fill_the_sequence_and_stay_in_the_vocabulary() -> None:
    examples = load_examples(Budget(data="random", sequence=48), None, 100)

    assert {len(example.tokens) for example in examples} == {48}
    assert {token for example in examples for token in example.tokens} == set(range(100))


def test_random_data_are_the_same_every_time() -> None:
    budget = Budget(data="random", sequence=48)

    assert load_examples(budget, None, 100) == load_examples(budget, None, 100)


# Batches.


def numbered(lengths: Iterable[int]) -> list[Example]:
    """Examples of these lengths, each made of its own number."""
    rows = [(number,) * length for number, length in enumerate(lengths, start=1)]
    return [Example(row, row) for row in rows]


def drawn(count: int, seed: int, batch: int = 2) -> list[list[int]]:
    stream = batches(numbered([3] * 6), Budget(batch=batch), 0, seed, "cpu")
    return [micro["input_ids"][:, 0].tolist() for micro in islice(stream, count)]


def test_every_epoch_covers_every_example_once() -> None:
    epochs = [drawn(6, seed=0)[:3], drawn(6, seed=0)[3:]]

    assert [sorted(chain.from_iterable(epoch)) for epoch in epochs] == [[1, 2, 3, 4, 5, 6]] * 2


def test_every_epoch_is_shuffled_anew() -> None:
    order = list(chain.from_iterable(drawn(6, seed=0)))

    assert order[:6] != order[6:]


def test_a_batch_that_does_not_divide_the_data_loses_no_example() -> None:
    counted = Counter(chain.from_iterable(drawn(6, seed=0, batch=4)))

    assert set(counted.values()) == {4}


def test_a_batch_may_be_larger_than_the_data() -> None:
    (batch,) = drawn(1, seed=0, batch=15)

    assert sorted(Counter(batch).values()) == [2, 2, 2, 3, 3, 3]


def test_a_seed_decides_the_order() -> None:
    assert drawn(6, seed=1) == drawn(6, seed=1)
    assert drawn(6, seed=1) != drawn(6, seed=2)


def test_batches_are_padded_on_the_right_to_their_longest() -> None:
    batch = collate([Example((7, 8, 9), (IGNORED, 8, 9)), Example((5,), (5,))], 4, "cpu")

    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[7, 8, 9], [5, 4, 4]],
        "labels": [[IGNORED, 8, 9], [5, IGNORED, IGNORED]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }


def test_no_batch_is_longer_than_the_longest_or_has_more_answers() -> None:
    source = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 40, (30,), generator=source).tolist()
    examples = [
        Example(
            one.tokens, (*[IGNORED] * (index % len(one.tokens)), *one.labels)[: len(one.tokens)]
        )
        for index, one in enumerate(numbered(lengths))
    ]
    budget = Budget(batch=4)
    bound = longest(examples, budget)
    stream = islice(batches(examples, budget, 0, 3, "cpu"), 200)
    widths, answers = zip(
        *(
            (micro["input_ids"].shape[1], int((micro["labels"][:, 1:] != IGNORED).sum()))
            for micro in stream
        ),
        strict=True,
    )

    assert len(bound) == 4
    assert max(widths) == max(len(one.tokens) for one in bound) == max(lengths)
    assert max(answers) <= sum(one.answers for one in bound)


def test_the_longest_batch_is_full_where_data_are_few() -> None:
    assert [len(one.tokens) for one in longest(numbered([2, 9]), Budget(batch=5))] == [
        9,
        9,
        2,
        9,
        2,
    ]
