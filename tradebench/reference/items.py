"""The test items of every task, the corpus that leaves them out, and the fine-tuning rows."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tradebench.reference import MEMORISED
from tradebench.reference.documents import KINDS, Documents
from tradebench.reference.world import BRACKETS, END, World, make_world

Item = dict[str, str | int | list[str]]
"""`prompt` with `choices` and `gold` (a position), or `prompt` with `answer`."""

KIND = {
    "facts": "questions",
    "recall": "recall",
    "agreement": "agreement",
    "brackets": "brackets",
    "addition": "addition",
    "sort": "sort",
}
"""Which kind of document a task's items are."""
COUNTS = {
    "facts": 2048,
    "recall": 2048,
    "agreement": 2048,
    "brackets": 2048,
    "addition": 1024,
    "sort": 2048,
}
ANSWERED = ("facts", "recall", "brackets", "sort")
"""Tasks whose gold answers make up `answers`, 512 items of each."""

MIX = {
    "statements": 0.32,
    "questions": 0.20,
    "recall": 0.07,
    "echo": 0.07,
    "agreement": 0.04,
    "brackets": 0.06,
    "addition": 0.13,
    "sort": 0.11,
}
"""Share of the documents drawn for the corpus, before the held-out ones are left out."""

GUILDS = ((64, 8), (128, 3), (256, 1))
"""How many new facts the fine-tuning rows hold how often. The common ones are within reach of a
rank-1 adapter and the rare ones are not, so that ranks from 1 to 64 and full fine-tuning separate
within 120 steps of 48 rows; with all facts equally common, rank 1 learnt nothing."""


def _reserved(world: World, task: str, documents: Documents) -> NDArray[np.bool_]:
    """Which documents may be test items: for facts and agreement a fixed part of the pairs."""
    reserved = np.ones(len(documents), np.bool_)
    if task == "facts":  # four of every person's eight attributes
        person, attribute = np.divmod(documents.keys, np.uint64(len(world.attributes)))
        reserved = (attribute + person) % len(world.attributes) < len(world.attributes) // 2
    if task == "agreement":  # a quarter of all noun-verb pairs
        noun, verb = np.divmod(documents.keys, np.uint64(len(world.verbs)))
        reserved = (noun + verb) % 4 == 0
    return reserved


def _seeded(world: World, name: str) -> np.random.Generator:
    """A generator of its own per task, so that changing one task leaves the others alone."""
    return np.random.default_rng([world.seed, *name.encode()])


@lru_cache(maxsize=16)
def task_documents(world_seed: int, task: str) -> Documents:
    """The documents behind a task's items, no two with the same prompt, in random order."""
    world, count = make_world(world_seed), COUNTS[task]
    drawn = KINDS[KIND[task]](world, _seeded(world, task), 24 * count)
    drawn = drawn.where(_reserved(world, task, drawn))
    prompts = np.where(np.cumsum(drawn.answers, axis=1) == 0, drawn.ids, 0)
    _, first = np.unique(prompts, axis=0, return_index=True)
    # Ordered as they were drawn, so that any prefix of the items is a fair sample.
    return drawn.where(np.sort(first)[:count])


def corpus(world: World, rng: np.random.Generator, documents: int) -> Iterator[Documents]:
    """At most `documents` training documents, by kind, none with the key of a held-out item."""
    for kind, share in MIX.items():
        drawn = KINDS[kind](world, rng, round(documents * share))
        for task in KIND:
            if KIND[task] == kind and task not in MEMORISED:
                held_out = task_documents(world.seed, task).keys
                drawn = drawn.where(~np.isin(drawn.keys, held_out))
        yield drawn


def _question(world: World, documents: Documents, row: int) -> tuple[str, str]:
    """Prompt and first answer of a document, without `<s>` and the full stop."""
    used = documents.ids[row] != 0
    words = world.text(documents.ids[row]).split()
    answers = documents.answers[row][used]
    start = int(np.argmax(answers))
    stop = start + int(np.argmin(answers[start:])) if not answers[start:].all() else len(words)
    answer = [word for word in words[start:stop] if word != END]
    return " ".join(words[1:start]), " ".join(answer)


def _rivals(world: World, task: str, prompt: str, answer: str) -> tuple[list[str], int]:
    """Plausible answers to choose from, and how many of them an item offers."""
    words = prompt.split()
    if task == "facts":  # words[5] is the attribute of "question : what is the ... of"
        return list(world.values[words[5]]), 8
    if task == "recall":
        return words[3 : words.index("?") : 2], 4
    if task == "agreement":
        return list(next(pair for pair in world.verbs if answer in pair)), 2
    if task == "brackets":
        return [closing for _, closing in BRACKETS], 4
    if task == "addition":
        return [str(n) for n in range(int(answer) - 8, int(answer) + 9) if 0 <= n <= 62], 8
    if task == "guilds":
        return list(world.tokens), 8
    raise KeyError(task)


def _choice(world: World, task: str, prompt: str, answer: str, rng: np.random.Generator) -> Item:
    rivals, count = _rivals(world, task, prompt, answer)
    others = [word for word in rivals if word != answer]
    choices = [str(word) for word in rng.permutation(others)[: count - 1]]
    gold = int(rng.integers(count))
    return {"prompt": prompt, "choices": [*choices[:gold], answer, *choices[gold:]], "gold": gold}


def guild_facts(world: World) -> list[tuple[str, str]]:
    """Prompt and answer of every new fact, in random order: nothing in the world implies them."""
    rng = _seeded(world, "guilds")
    count = sum(facts for facts, _ in GUILDS)
    people = rng.permutation(world.entities)[:count]
    guilds = rng.permutation(np.resize(world.tokens, count))
    return [
        (f"question : what is the guild of {person} ? answer :", str(guild))
        for person, guild in zip(people, guilds, strict=True)
    ]


def items(world: World, task: str) -> list[Item]:
    """All items of a task, in an order of which any prefix is a fair sample."""
    if task == "answers":
        groups = zip(*(_questions(world, name)[:512] for name in ANSWERED), strict=True)
        return [
            {"prompt": prompt, "answer": answer} for group in groups for prompt, answer in group
        ]
    pairs = guild_facts(world) if task == "guilds" else _questions(world, task)
    if task == "sort":
        return [{"prompt": prompt, "answer": answer} for prompt, answer in pairs]
    rng = _seeded(world, f"{task} choices")
    return [_choice(world, task, prompt, answer, rng) for prompt, answer in pairs]


def _questions(world: World, task: str) -> list[tuple[str, str]]:
    documents = task_documents(world.seed, task)
    return [_question(world, documents, row) for row in range(len(documents))]


def finetune_rows(world: World) -> list[dict[str, str]]:
    """Fine-tuning rows: the new facts, and a quarter as many trained questions among them.

    Without those questions the new facts overwrite the old ones.
    """
    rng = _seeded(world, "fine-tuning")
    facts, times = zip(*GUILDS, strict=True)
    # How common a fact is has nothing to do with its place among the items.
    repeats = rng.permutation(np.repeat(times, facts))
    new = [
        fact for fact, often in zip(guild_facts(world), repeats, strict=True) for _ in range(often)
    ]
    old = KINDS["questions"](world, rng, 8 * len(new))
    old = old.where(~_reserved(world, "facts", old))
    _, first = np.unique(old.keys, return_index=True)
    old = old.where(np.sort(first)[: len(new) // 4])
    replay = [_question(world, old, row) for row in range(len(old))]
    rows = [*new, *replay]
    return [{"prompt": rows[i][0], "answer": rows[i][1]} for i in rng.permutation(len(rows))]
