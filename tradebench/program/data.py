"""From a budget's data to padded batches: token ids, and labels on the answers only."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError

from tradebench import reference
from tradebench.errors import UserError
from tradebench.techniques.protocol import IGNORED, Example
from tradebench.trial import Budget, FileData, HubData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tradebench.techniques.protocol import Batch

RANDOM_EXAMPLES = 64  # of full length; more would only cost time, since nothing is learnt


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
    kept = [example for example in examples if example.answers]
    if not kept:
        raise UserError(
            f"no example of the training data has an answer within {budget.sequence} tokens: "
            "raise budget.sequence or check the data"
        )
    return kept


Arrange = Callable[[Sequence[Example]], Sequence[Example]]


def batches(
    examples: Sequence[Example],
    budget: Budget,
    padding: int,
    seed: int,
    device: str,
    arrange: Arrange = lambda epoch: epoch,
    rank: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Endless micro-batches, every epoch shuffled anew, padded to their longest example.

    `arrange` changes what of an epoch comes, and in which order. Of several ranks, as many
    micro-batches in a row go to one each: `rank` says which is asked, and of how many.
    """
    number, ranks = rank
    shuffler = random.Random(seed)
    queue: list[Example] = []
    while True:
        while len(queue) < budget.batch * ranks:
            queue += arrange(shuffler.sample(examples, len(examples)))
        yield collate(queue[budget.batch * number :][: budget.batch], padding, device)
        del queue[: budget.batch * ranks]


@dataclass
class Calibration:
    """The training batches that compression may look at: the same each time that they are called.

    `looked_at` tells whether anything did, and so whether the compressed model depends on them.
    """

    start: Callable[[], Iterator[Batch]]
    looked_at: bool = False

    def __call__(self) -> Iterator[Batch]:
        """Begin with the first batch."""
        self.looked_at = True
        return self.start()


def uneven(examples: Sequence[Example]) -> bool:
    """Whether batches differ in shape, so that few steps may not meet the one that needs most."""
    return len({(len(example.tokens), example.answers) for example in examples}) > 1


def longest(examples: Sequence[Example], budget: Budget) -> list[Example]:
    """The examples of the micro-batch that needs the most memory.

    A batch is padded to its longest example, so one such is enough; the others carry as many
    answer tokens as there are, which is what a chunked loss needs memory for. An example may be
    there twice, as where one epoch meets the next.
    """
    first = max(examples, key=lambda example: (len(example.tokens), example.answers))
    others = sorted(examples, key=lambda example: example.answers, reverse=True)
    return [first, *(others * budget.batch)[: budget.batch - 1]]


def fullest(examples: Sequence[Example], budget: Budget) -> list[Example]:
    """The examples of the micro-batch with the most tokens, packed ones before all others.

    Those need a mask. An example may be there twice, as where one epoch meets the next.
    """
    ordered = sorted(
        examples,
        key=lambda example: (len(example.packed) > 1, len(example.tokens)),
        reverse=True,
    )
    return (ordered * budget.batch)[: budget.batch]


def collate(examples: Sequence[Example], padding: int, device: str) -> Batch:
    """Right-padded tensors of shape (rows, longest).

    Where a row holds several sequences, `position_ids` have the place of each token in its own:
    transformers finds where they start again and masks attention there.
    """
    longest = max(len(example.tokens) for example in examples)
    rows = [(example, longest - len(example.tokens)) for example in examples]
    columns = {
        "input_ids": [[*example.tokens, *[padding] * short] for example, short in rows],
        "labels": [[*example.labels, *[IGNORED] * short] for example, short in rows],
        "attention_mask": [[1] * len(example.tokens) + [0] * short for example, short in rows],
    }
    if any(len(example.packed) > 1 for example in examples):
        columns["position_ids"] = [_positions(example, longest) for example in examples]
    return {name: torch.tensor(values, device=device) for name, values in columns.items()}


def _positions(example: Example, width: int) -> list[int]:
    """The place of each token in its sequence; padding goes on where the last one ends.

    So a row that nobody shares looks as if it were not packed.
    """
    lengths = example.packed or (len(example.tokens),)
    places = [place for length in lengths for place in range(length)]
    return [*places, *range(lengths[-1], lengths[-1] + width - len(places))]


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
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{path}:{number}"
                    yield where, _row(line, where)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot read the training data: {reason}") from error


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row must be a JSON object")
    return row


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
    for message in messages:
        match message:
            case {"role": str(), "content": str()}:
                continue
        raise UserError(f"{where}: every message needs a role and a content, both text")

    def render(count: int, *, answering: bool = False) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages[:count], tokenize=False, add_generation_prompt=answering
                )
            )
        except TemplateError as error:
            raise UserError(f"{where}: the chat template refuses this: {error}") from error

    text = render(len(messages)) if messages else ""
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if index == 0:
            raise UserError(f"{where}: a conversation cannot begin with the assistant's answer")
        before, after = render(index, answering=True), render(index + 1)
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
    end = tokenizer.eos_token_id
    if special and end is not None:
        # The model must learn where an answer ends; it may end there already.
        kept = len(tokens) - (tokens[-1:] == (end,))
        return Example((*tokens[:kept], end), (*labels[:kept], end))
    return Example(tokens, labels)
