"""Training documents and test items about the world, as arrays of token ids.

A document is `<s> prompt answer .`. Every kind of document is drawn by one function, used for
the corpus and for the test items alike; its `keys` say what an item tests, and the corpus leaves
out every document whose key belongs to a test item.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradebench.reference.world import (
    ADDENDS,
    BRACKETS,
    END,
    PREPOSITIONS,
    RECALL_KEYS,
    RECALL_VALUES,
    Ids,
    World,
)

SORT_LENGTH, SORT_NUMBERS = 5, 16
RECALL_PAIRS = (4, 8)
ECHO_LENGTH, ECHO_AGAIN = 14, 9
BRACKET_LENGTH, BRACKET_DEPTH = (7, 11), 4

Bools = NDArray[np.bool_]
Keys = NDArray[np.uint64]
Rng = np.random.Generator
Part = str | Ids | tuple[Ids]
"""Of a document: words that all share, ids [n, k], or ids of an answer, as a tuple of one."""


@dataclass(frozen=True)
class Documents:
    """n documents: ids [n, length] with 0 (padding) anywhere, and which of them are answers."""

    ids: Ids
    answers: Bools
    keys: Keys
    """[n] what a document is about; equal keys test the same thing."""

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, rows: Bools | NDArray[np.int64]) -> "Documents":
        """The documents chosen by a mask [n] or by their numbers."""
        return Documents(self.ids[rows], self.answers[rows], self.keys[rows])


def _fingerprint(ids: Ids) -> Keys:
    """[n] 64-bit hash of each row: equal rows are equal, others differ but for chance."""
    multipliers = np.random.default_rng(1).integers(1, 2**63, ids.shape[1], dtype=np.uint64) | 1
    hashes: Keys = (ids.astype(np.uint64) * multipliers).sum(axis=1, dtype=np.uint64)
    return hashes


def _write(world: World, count: int, *parts: Part, keys: Keys) -> Documents:
    """Documents from parts side by side, between `<s>` and a full stop."""
    columns, answers = [], []
    for part in (world.ids("<s>"), *parts, world.ids(END)):
        block = part[0] if isinstance(part, tuple) else part
        block = world.ids(block) if isinstance(block, str) else block
        columns.append(np.broadcast_to(block, (count, block.shape[-1])))
        answers.append(np.full(columns[-1].shape, isinstance(part, tuple)))
    # The full stop belongs to the answer: generation has to end with it.
    answers[-1][:] = True
    return Documents(np.hstack(columns), np.hstack(answers), keys)


def _facts(world: World, rng: Rng, count: int) -> tuple[Ids, Ids, Ids, Keys]:
    """Random facts: ids [n, 1] of entity, attribute and value, and the pair's key [n]."""
    entity = rng.integers(len(world.entities), size=count)
    attribute = rng.integers(len(world.attributes), size=count)
    table = np.zeros((len(world.attributes), max(map(len, world.values.values()))), np.int16)
    for row, words in zip(table, world.values.values(), strict=True):
        row[: len(words)] = world.ids(words)
    value = table[attribute, world.facts[entity, attribute]]
    return (
        world.ids(world.entities)[entity, None],
        world.ids(world.attributes)[attribute, None],
        value[:, None],
        (entity * len(world.attributes) + attribute).astype(np.uint64),
    )


def statements(world: World, rng: Rng, count: int) -> Documents:
    """A fact told in one of three forms; every fact is told, also those asked in the test."""
    who, what, value, keys = _facts(world, rng, count)
    the, of, is_ = (world.ids(word) for word in ("the", "of", "is"))
    has, colon, equals = (world.ids(word) for word in ("has", ":", "="))
    form = rng.integers(3, size=(count, 1))
    columns = [
        np.where(form == 0, the, 0),
        np.where(form == 0, what, who),
        np.where(form == 0, of, np.where(form == 1, has, colon)),
        np.where(form == 0, who, what),
        np.where(form == 0, is_, np.where(form == 1, 0, equals)),
    ]
    # Facts of the test set are told on purpose: only their question form is held out.
    return _write(world, count, np.hstack(columns).astype(np.int16), (value,), keys=keys)


def questions(world: World, rng: Rng, count: int) -> Documents:
    """A fact as question and answer."""
    who, what, value, keys = _facts(world, rng, count)
    parts: list[Part] = ["question : what is the", what, "of", who, "? answer :", (value,)]
    return _write(world, count, *parts, keys=keys)


def recall(world: World, rng: Rng, count: int) -> Documents:
    """Look a key up in a list of pairs: the skill that attention has to learn."""
    low, high = RECALL_PAIRS
    order = rng.permuted(np.tile(np.arange(RECALL_KEYS), (count, 1)), axis=1)[:, :high]
    worth = rng.permuted(np.tile(np.arange(RECALL_VALUES), (count, 1)), axis=1)[:, :high]
    length = rng.integers(low, high + 1, size=(count, 1))
    present = np.arange(high) < length
    keys, values = world.ids(world.keys)[order], world.ids(world.tokens)[worth]
    pairs = np.where(present[..., None], np.stack([keys, values], axis=2), 0)
    pairs = pairs.reshape(count, -1).astype(np.int16)
    # All pairs are asked for, in another order, so that one document teaches several times.
    asked = rng.permuted(np.tile(np.arange(high), (count, 1)), axis=1)
    parts: list[Part] = ["recall :", pairs]
    for column in asked.T[:, :, None]:
        there = np.take_along_axis(present, column, axis=1)
        query = np.where(there, np.take_along_axis(keys, column, axis=1), 0)
        value = np.where(there, np.take_along_axis(values, column, axis=1), 0)
        mark = np.where(there, world.ids("?"), 0)
        parts += [np.hstack([mark, query]).astype(np.int16), (value.astype(np.int16),)]
    return _write(world, count, *parts, keys=_fingerprint(pairs))


def echo(world: World, rng: Rng, count: int) -> Documents:
    """A list, then a stretch of it again: no test, but it teaches the matching `recall` needs.

    Trained mostly on `recall` itself, 500 steps stayed at chance; with `echo` 300 reached 99 %.
    """
    words = world.ids((*world.keys, *world.tokens))
    order = rng.permuted(np.tile(np.arange(len(words)), (count, 1)), axis=1)[:, :ECHO_LENGTH]
    start = rng.integers(ECHO_LENGTH - ECHO_AGAIN + 1, size=(count, 1))
    listed = words[order]
    again = np.take_along_axis(listed, start + np.arange(ECHO_AGAIN), axis=1)
    keys = np.zeros(count, np.uint64)
    return _write(world, count, "recall :", listed, "?", again[:, :1], (again[:, 1:],), keys=keys)


def agreement(world: World, rng: Rng, count: int) -> Documents:
    """The verb takes the number of its subject, whatever stands between them."""
    noun = rng.integers(len(world.nouns), size=count)
    verb = rng.integers(len(world.verbs), size=count)
    number = rng.integers(2, size=count)
    nouns = np.array([world.ids(pair) for pair in world.nouns])
    verbs = np.array([world.ids(pair) for pair in world.verbs])
    distractors = rng.integers(3, size=count)
    parts: list[Part] = ["the", nouns[noun, number][:, None]]
    for place in range(2):
        other = nouns[rng.integers(len(nouns), size=count), rng.integers(2, size=count)]
        words = np.empty((count, 3), np.int16)
        words[:, 0] = world.ids(PREPOSITIONS)[rng.integers(len(PREPOSITIONS), size=count)]
        words[:, 1] = world.ids("the")
        words[:, 2] = other
        parts.append(np.where((distractors > place)[:, None], words, 0).astype(np.int16))
    keys = (noun * len(verbs) + verb).astype(np.uint64)
    return _write(world, count, *parts, (verbs[verb, number][:, None],), keys=keys)


def brackets(world: World, rng: Rng, count: int) -> Documents:
    """Which bracket has to be closed next."""
    low, high = BRACKET_LENGTH
    opening = world.ids(tuple(pair[0] for pair in BRACKETS))
    closing = world.ids(tuple(pair[1] for pair in BRACKETS))
    rows = np.arange(count)
    stack = np.zeros((count, high + 1), np.int64)
    depth = np.zeros(count, np.int64)
    body = np.zeros((count, high), np.int16)
    length = rng.integers(low, high + 1, size=count)
    for place in range(high):
        # The last token must leave something open; an empty or full stack decides by itself.
        least = np.where(place == length - 1, 1, 0)
        push = (rng.random(count) < 0.5) | (depth - 1 < least)
        push &= depth < BRACKET_DEPTH
        live = place < length
        kind = rng.integers(len(BRACKETS), size=count)
        top = stack[rows, np.maximum(depth - 1, 0)]
        body[:, place] = np.where(live, np.where(push, opening[kind], closing[top]), 0)
        stack[rows, depth] = np.where(push & live, kind, stack[rows, depth])
        depth += np.where(live, np.where(push, 1, -1), 0)
    answer = closing[stack[rows, depth - 1]][:, None]
    return _write(world, count, "brackets :", body, "answer :", (answer,), keys=_fingerprint(body))


def addition(world: World, rng: Rng, count: int) -> Documents:
    """A sum from a table of 32 x 32: memorised, every sum is trained and asked alike."""
    a, b = rng.integers(ADDENDS, size=(2, count, 1))
    numbers = world.ids(tuple(str(n) for n in range(2 * ADDENDS - 1)))
    keys = (a * ADDENDS + b)[:, 0].astype(np.uint64)
    return _write(
        world, count, "sum :", numbers[a], "+", numbers[b], "answer :", (numbers[a + b],), keys=keys
    )


def sort(world: World, rng: Rng, count: int) -> Documents:
    """Five numbers from 0 to 15 into ascending order."""
    drawn = rng.integers(SORT_NUMBERS, size=(count, SORT_LENGTH))
    numbers = world.ids(tuple(str(n) for n in range(SORT_NUMBERS)))
    body = numbers[drawn]
    answer = numbers[np.sort(drawn, axis=1)]
    return _write(world, count, "sort :", body, "answer :", (answer,), keys=_fingerprint(body))


Draw = Callable[[World, Rng, int], Documents]
KINDS: Mapping[str, Draw] = {
    "statements": statements,
    "questions": questions,
    "recall": recall,
    "echo": echo,
    "agreement": agreement,
    "brackets": brackets,
    "addition": addition,
    "sort": sort,
}
