"""From a budget's data to padded batches: token ids, and labels on the answers only."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tradebench import reference
from tradebench.errors import UserError
from tradebench.techniques.protocol import IGNORED
from tradebench.trial import Budget, FileData, HubData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tradebench.techniques.protocol import Batch

RANDOM_EXAMPLES = 64  # of full length; more would only cost time, since nothing is learnt


@dataclass(frozen=True)
class Example:
    """One training sequence: token ids, and the label of each token (IGNORED off the answers)."""

    tokens: tuple[int, ...]
    labels: tuple[int, ...]

    def cut(self, length: int) -> Example:
        """The first `length` tokens."""
        return Example(self.tokens[:length], self.labels[:length])


def load_examples(
    budget: Budget, tokenizer: PreTrainedTokenizerBase | None, vocabulary: int
) -> list[Example]:
    """Every example of the budget's data, cut to its sequence length.

    Raises:
        UserError: the data cannot be found or read, or no example carries a label.
    """
    if budget.data == "random":
        return _random_examples(budget, vocabulary)
    if tokenizer is None:
        raise UserError("random weights have no tokenizer: set budget.data to random")
    encoded = [_encode(row, tokenizer, where) for where, row in _rows(budget)]
    examples = [example.cut(budget.sequence) for example in encoded]
    kept = [example for example in examples if any(x != IGNORED for x in example.labels[1:])]
    if not kept:
        raise UserError(
            f"no example of the training data has an answer within {budget.sequence} tokens: "
            "raise budget.sequence or check the data"
        )
    return kept


def batches(
    examples: Sequence[Example], budget: Budget, padding: int, seed: int, device: str
) -> Iterator[Batch]:
    """Endless micro-batches, every epoch shuffled anew, padded to their longest example."""
    shuffler = random.Random(seed)
    queue: list[Example] = []
    while True:
        while len(queue) < budget.batch:
            queue += shuffler.sample(examples, len(examples))
        yield collate(queue[: budget.batch], padding, device)
        del queue[: budget.batch]


def longest_batch(examples: Sequence[Example], budget: Budget, padding: int, device: str) -> Batch:
    """The batch that needs the most memory: the longest examples together."""
    ordered = sorted(examples, key=lambda example: len(example.tokens), reverse=True)
    repeated = (ordered * budget.batch)[: budget.batch] if ordered else []
    return collate(repeated, padding, device)


def collate(examples: Sequence[Example], padding: int, device: str) -> Batch:
    """Right-padded tensors of shape (sequences, longest)."""
    longest = max(len(example.tokens) for example in examples)
    rows = [(example, longest - len(example.tokens)) for example in examples]
    columns = {
        "input_ids": [[*example.tokens, *[padding] * short] for example, short in rows],
        "labels": [[*example.labels, *[IGNORED] * short] for example, short in rows],
        "attention_mask": [[1] * len(example.tokens) + [0] * short for example, short in rows],
    }
    return {name: torch.tensor(values, device=device) for name, values in columns.items()}


def _random_examples(budget: Budget, vocabulary: int) -> list[Example]:
    source = random.Random(0)
    sequences = [
        tuple(source.randrange(vocabulary) for _ in range(budget.sequence))
        for _ in range(RANDOM_EXAMPLES)
    ]
    return [Example(tokens, tokens) for tokens in sequences]


def _rows(budget: Budget) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row of the data with words for where it stands."""
    match budget.data:
        case FileData(file=file):
            yield from _file_rows(Path(file).expanduser())
        case HubData() as hub:
            yield from _hub_rows(hub)
        case _:
            yield from _file_rows(reference.FINETUNE)


def _file_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{where}: a row must be a JSON object")
                yield where, row
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read the training data: {error.strerror}") from error


def _hub_rows(data: HubData) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    try:
        rows = datasets.load_dataset(data.hub, data.name, split=data.split, revision=data.revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot load data set {data.hub}: {reason}") from error
    for number, row in enumerate(rows):
        yield f"{data.hub} row {number}", row


def _encode(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, where: str) -> Example:
    """Token ids and labels of one row of messages, of prompt and answer, or of plain text."""
    match row:
        case {"messages": list(messages)}:
            text, spans = _render(messages, tokenizer, where)
            return _label(text, spans, tokenizer, special=False)
        case {"prompt": str(prompt), "answer": str(answer)}:
            text = f"{prompt} {answer}"
            return _label(text, [(len(prompt), len(text))], tokenizer, special=True)
        case {"text": str(text)}:
            return _label(text, [(0, len(text))], tokenizer, special=True)
    raise UserError(f"{where}: a row needs messages, or prompt and answer, or text")


def _render(
    messages: list[Any], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and the spans that the assistant said.

    Every prefix of the conversation is rendered, because few chat templates mark the assistant's
    words themselves.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{where}: the model's tokenizer has no chat template for messages")
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    spans = []
    for index, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        before = tokenizer.apply_chat_template(
            messages[:index], tokenize=False, add_generation_prompt=True
        )
        after = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
        if not (text.startswith(before) and text.startswith(after)):
            raise UserError(
                f"{where}: the chat template renders the conversation differently turn by turn, "
                "so the answers cannot be found in it"
            )
        spans.append((len(before), len(after)))
    return text, spans


def _label(
    text: str, spans: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase, *, special: bool
) -> Example:
    """Tokenize, and label the tokens that end inside a span."""
    encoded = tokenizer(
        text, add_special_tokens=special, return_offsets_mapping=True, truncation=False
    )
    tokens = tuple(encoded["input_ids"])
    labels = tuple(
        token if start < end and any(low < end <= high for low, high in spans) else IGNORED
        for token, (start, end) in zip(tokens, encoded["offset_mapping"], strict=True)
    )
    if special and tokenizer.eos_token_id is not None and labels[-1] != IGNORED:
        # The model must learn where an answer ends.
        return Example((*tokens, tokenizer.eos_token_id), (*labels, tokenizer.eos_token_id))
    return Example(tokens, labels)
