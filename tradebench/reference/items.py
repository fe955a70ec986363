"""Test items of every task, the corpus that leaves them out, and the fine-tuning rows."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tradebench.reference.documents import KINDS, SORT_NUMBERS, Documents
from tradebench.reference.world import ADDENDS, BRACKETS, BOS, World, make_world

Item = dict[str, str | int | list[str]]

COUNTS = {"facts": 1024, "recall": 2048, "agreement": 2048, "brackets": 2048, "addition": 1024, "sort": 2048}
SOURCE = {"facts": "questions"}
MEMORISED = {"addition", "guilds"}
ANSWERED = ("facts", "recall", "brackets", "sort")
MIX = {
    "statements": 0.30,
    "questions": 0.20,
    "recall": 0.20,
    "agreement": 0.05,
    "brackets": 0.05,
    "addition": 0.10,
    "sort": 0.10,
}


def _reserved(world: World, task: str, documents: Documents) -> NDArray[np.bool_]:
    """Which documents may be test items: for facts and agreement a fixed part of the pairs."""
    if task == "facts":  # two of every person's five attributes
        person, attribute = np.divmod(documents.keys, np.uint64(len(world.attributes)))
        return (attribute + person) % 5 < 2
    if task == "agreement":  # a quarter of all noun-verb pairs
        noun, verb = np.divmod(documents.keys, np.uint64(len(world.verbs)))
        return (noun + verb) % 4 == 0
    return np.ones(len(documents), bool)


@lru_cache(maxsize=None)
def _test_documents(seed: int, task: str) -> Documents:
    world, count = make_world(seed), COUNTS[task]
    rng = np.random.default_rng([seed, sorted(COUNTS).index(task), 7])
    documents = KINDS[SOURCE.get(task, task)](world, rng, 24 * count)
    documents = documents.where(_reserved(world, task, documents))
    prompts = np.where(np.cumsum(documents.answers, axis=1) == 0, documents.ids, 0)
    _, first = np.unique(prompts, axis=0, return_index=True)
    # Sorted by first occurrence, the items are in random order: any prefix is a fair sample.
    return documents.where(np.sort(first)[:count])


def corpus(world: World, rng: np.random.Generator, documents: int) -> Iterator[Documents]:
    """About `documents` training documents, by kind, none with the key of a test item."""
    for kind, share in MIX.items():
        drawn = KINDS[kind](world, rng, int(documents * share))
        for task in COUNTS:
            if SOURCE.get(task, task) == kind and task not in MEMORISED:
                held_out = _test_documents(world.seed, task).keys
                drawn = drawn.where(~np.isin(drawn.keys, held_out))
        yield drawn
