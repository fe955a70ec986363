"""The micro-world of the reference model: its words, its people and what is true of them.

Everything is made up and drawn from one seed, so that no pre-trained knowledge can help and
nothing needs a download. `documents.py` writes training documents and test items about it.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

SEED = 1234
PAD, BOS, END, UNKNOWN = "<pad>", "<s>", ".", "<unk>"

# 512 people x 8 attributes are 4,096 facts: half of them held out make 2,048 test items, and the
# whole vocabulary still fits into a checkpoint of less than 4 MiB.
ENTITIES = 512
ATTRIBUTES = {
    "colour": 16,
    "pet": 16,
    "city": 32,
    "job": 32,
    "food": 32,
    "drink": 32,
    "sport": 32,
    "tree": 32,
}
RECALL_KEYS = RECALL_VALUES = 32
NOUNS = VERBS = 16
ADDENDS = 32  # 0 to 31, so that sums reach 62
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"), ("<", ">"))
PREPOSITIONS = ("near", "behind", "above")
FORMS = ("the", "of", "is", "has", ":", "=", "?", "+", "what")
MARKS = ("question", "answer", "recall", "brackets", "sum", "sort")
NEW_RELATIONS = ("guild", "rank", "oath", "crest")
"""Never seen in training: words for what fine-tuning can teach about the people."""

Ids = NDArray[np.int16]


def _names(rng: np.random.Generator, count: int, syllables: int, taken: set[str]) -> list[str]:
    """`count` made-up words that nothing else in the world is called; added to `taken`."""
    names: list[str] = []
    while len(names) < count:
        word = "".join(
            "bdfgklmnprstvz"[rng.integers(14)] + "aeiou"[rng.integers(5)] for _ in range(syllables)
        )
        if word not in taken and f"{word}s" not in taken:
            taken.update((word, f"{word}s"))
            names.append(word)
    return names


@dataclass(frozen=True)
class World:
    """One drawn world. Word lists hold text; `ids` turns text into token ids."""

    seed: int
    entities: tuple[str, ...]
    values: dict[str, tuple[str, ...]]
    """Per attribute, the words that it can take."""
    facts: NDArray[np.int64]
    """[entity, attribute] -> index into that attribute's values."""
    keys: tuple[str, ...]
    tokens: tuple[str, ...]
    """What a key is mapped to in `recall`, and what a guild is called."""
    nouns: tuple[tuple[str, str], ...]
    verbs: tuple[tuple[str, str], ...]
    """(singular, plural) each."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """What every person has one of."""
        return tuple(self.values)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word; its position is its token id."""
        words = [PAD, BOS, END, UNKNOWN, *FORMS, *MARKS, *NEW_RELATIONS, *PREPOSITIONS]
        words += self.attributes
        words += [bracket for pair in BRACKETS for bracket in pair]
        words += [str(number) for number in range(2 * ADDENDS - 1)]
        words += [word for pair in (*self.nouns, *self.verbs) for word in pair]
        words += [*self.keys, *self.tokens]
        words += [word for values in self.values.values() for word in values]
        return (*words, *self.entities)

    @cached_property
    def index(self) -> dict[str, int]:
        """Word -> token id."""
        return {word: position for position, word in enumerate(self.vocabulary)}

    def ids(self, words: str | tuple[str, ...]) -> Ids:
        """Token ids [n] of space-separated text or of a tuple of words."""
        words = tuple(words.split()) if isinstance(words, str) else words
        return np.array([self.index[word] for word in words], dtype=np.int16)

    def text(self, ids: Ids) -> str:
        """The words of `ids`, without padding."""
        return " ".join(self.vocabulary[i] for i in ids if i)


@lru_cache(maxsize=4)
def make_world(seed: int = SEED) -> World:
    """The world of a seed; the same seed always gives the same one."""
    rng = np.random.default_rng(seed)
    taken = {*FORMS, *MARKS, *NEW_RELATIONS, *PREPOSITIONS, *ATTRIBUTES}
    values = {name: tuple(_names(rng, size, 3, taken)) for name, size in ATTRIBUTES.items()}
    keys = _names(rng, RECALL_KEYS, 2, taken)
    tokens = _names(rng, RECALL_VALUES, 2, taken)
    nouns, verbs = (_names(rng, count, 2, taken) for count in (NOUNS, VERBS))
    entities = _names(rng, ENTITIES, 3, taken)
    # Every value is about equally frequent, so that guessing the commonest one gains nothing.
    facts = np.stack(
        [rng.permutation(np.arange(ENTITIES) % size) for size in ATTRIBUTES.values()], axis=1
    )
    return World(
        seed=seed,
        entities=tuple(entities),
        values=values,
        facts=facts,
        keys=tuple(keys),
        tokens=tuple(tokens),
        nouns=tuple((noun, f"{noun}s") for noun in nouns),
        # As in English, the plural form of a verb is the one without the s.
        verbs=tuple((f"{verb}s", verb) for verb in verbs),
    )
