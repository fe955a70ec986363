"""Length grouping: the same sequences, beside others of their length."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import pytest
from torch import nn

from tradebench.program.perform import feed, longest, prepare
from tradebench.techniques.length_grouping import LengthGrouping
from tradebench.techniques.protocol import Example
from tradebench.trial import Budget, Trial

Make = Callable[..., Trial]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]

GROUPING: Mapping[str, Any] = {"data": {"method": "grouping"}}


def epoch(count: int) -> list[Example]:
    chance = random.Random(1)
    lengths = [chance.randrange(2, 40) for _ in range(count)]
    return [
        Example((number,) * length, (number,) * length) for number, length in enumerate(lengths)
    ]


def padding(examples: list[Example], batch: int) -> int:
    lengths = [len(example.tokens) for example in examples]
    groups = [lengths[at : at + batch] for at in range(0, len(lengths), batch)]
    return sum(max(group) * len(group) - sum(group) for group in groups)


def tokens(examples: list[Example]) -> list[tuple[int, ...]]:
    return sorted(example.tokens for example in examples)


@pytest.mark.parametrize("count", [64, 61, 3])
def test_an_epoch_keeps_its_examples_and_loses_padding(count: int) -> None:
    before = epoch(count)
    after = list(LengthGrouping().examples(before, Budget(batch=4)))

    assert tokens(after) == tokens(before)
    assert padding(after, 4) <= padding(before, 4) / (4 if count > 4 else 1)


def test_no_other_grouping_of_a_window_pads_less() -> None:
    """By trying every way to make two groups of three."""
    from itertools import combinations

    before = epoch(6)
    best = min(
        padding([*some, *(each for each in before if each not in some)], 3)
        for some in combinations(before, 3)
    )

    assert padding(list(LengthGrouping().examples(before, Budget(batch=3))), 3) == best


def test_sequences_stay_in_their_window() -> None:
    before = epoch(40)
    after = list(LengthGrouping(window=5).examples(before, Budget(batch=4)))

    for start in (0, 20):
        assert tokens(after[start : start + 20]) == tokens(before[start : start + 20])


def test_long_and_short_micro_batches_come_mixed() -> None:
    lengths = [len(each.tokens) for each in LengthGrouping().examples(epoch(200), Budget(batch=4))]

    assert lengths != sorted(lengths)
    assert abs(sum(lengths[:100]) - sum(lengths[100:])) < 0.3 * sum(lengths) / 2


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    file = tmp_path_factory.mktemp("data") / "mixed.jsonl"
    rows = [{"text": " ".join(["river"] * length)} for length in (2, 28, 3, 27, 4, 26, 5, 25)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"data": {"file": str(file)}, "batch": 2, "steps": 4}


def padded(trial: Trial) -> int:
    stream = feed(trial, prepare(trial), trial.budget.seed)
    batches = list(islice(stream, trial.budget.steps))
    return sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)


def test_training_sees_little_padding_and_says_how_much(
    tiny_trial: Make, mixed: Mapping[str, Any], run_trial: Run
) -> None:
    plain, grouped = tiny_trial({}, **mixed), tiny_trial(GROUPING, **mixed)
    _, _, effects = run_trial(grouped)
    probed = sum(
        int((batch["attention_mask"] == 0).sum())
        for micro in longest(grouped, prepare(grouped))
        for batch in micro
    )

    assert padded(grouped) == 4 < padded(plain)
    assert effects["data"]["padding"] == 4 + probed


def test_the_batch_that_needs_most_memory_is_that_of_the_same_data_ungrouped(
    tiny_trial: Make, mixed: Mapping[str, Any]
) -> None:
    found = [
        [batch["input_ids"].tolist() for micro in longest(trial, prepare(trial)) for batch in micro]
        for trial in (tiny_trial({}, **mixed), tiny_trial(GROUPING, **mixed))
    ]

    assert found[0] == found[1]
