"""A subset of the data: which examples belong to it, and that no other is trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tradebench.errors import UserError
from tradebench.predict.library import Library
from tradebench.program.perform import feed, longest, prepare
from tradebench.techniques import ContradictionError
from tradebench.techniques.protocol import Example
from tradebench.techniques.subset import Subset, place
from tradebench.trial import Budget, Trial

Make = Callable[..., Trial]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]

HALF = {"data": {"method": "subset", "fraction": 0.5}}


def examples(count: int) -> list[Example]:
    return [Example((number, 1, 2), (number, 1, 2)) for number in range(count)]


def test_about_the_fraction_belongs_whatever_the_order() -> None:
    every = examples(2000)
    chosen = Subset(fraction=0.25).examples(every, Budget(batch=4))
    backwards = Subset(fraction=0.25).examples(every[::-1], Budget(batch=8))

    assert 400 < len(chosen) < 600
    assert backwards == chosen[::-1]


def test_a_smaller_subset_is_part_of_a_larger_one() -> None:
    small, large = (
        {each.tokens for each in Subset(fraction=fraction).examples(examples(200), Budget(batch=4))}
        for fraction in (0.2, 0.6)
    )

    assert small < large


def test_an_empty_subset_is_an_error_of_one_line() -> None:
    outside = [each for each in examples(50) if place(each.tokens) >= 0.3]

    with pytest.raises(UserError, match=r"falls into subset fraction 0\.3: raise data\.fraction"):
        Subset(fraction=0.3).examples(outside, Budget(batch=4))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"text": " ".join(["river"] * length)} for length in range(1, 25)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_no_other_example_is_trained_on_or_tried(
    tiny_trial: Make, file: Path, run_trial: Run
) -> None:
    trial = tiny_trial(HALF, data={"file": str(file)}, steps=30)
    materials = prepare(trial)
    lengths = {len(example.tokens) for example in materials.examples if place(example.tokens) < 0.5}
    seen = {
        int(length)
        for batch in islice(feed(trial, materials, 0), trial.budget.steps)
        for length in batch["attention_mask"].sum(1)
    }
    ((tried,),) = longest(trial, materials)
    _, _, effects = run_trial(trial)

    assert 0 < len(lengths) < 24
    assert seen == lengths
    assert tried["input_ids"].shape[1] == max(lengths)
    assert effects["data"]["sequences"] == 2 * (30 + 1)
    assert Library().tokens(trial) == pytest.approx(2 * sum(lengths) / len(lengths))


def test_another_example_is_found_out(
    tiny_trial: Make, file: Path, run_trial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subset, "examples", lambda self, examples, batch: examples)

    with pytest.raises(ContradictionError, match="sequences belong to it"):
        run_trial(tiny_trial(HALF, data={"file": str(file)}, steps=8))
