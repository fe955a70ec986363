"""The pair matrix: every two methods of different slots, with what stands against them."""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console

from tradebench import pairs
from tradebench.pairs import Name, Pair
from tradebench.techniques import catalogue, techniques
from tradebench.trial import Trial

NF4 = Name("quantization", "nf4")
INT8 = Name("quantization", "int8")
DORA = Name("adapters", "dora")
FULL = Name("checkpointing", "full")
CHUNKED = Name("loss", "chunked")


@pytest.fixture
def fresh() -> Iterator[None]:
    """Pairs are asked for again, before and after."""
    pairs.pairs.cache_clear()
    yield
    pairs.pairs.cache_clear()


def found(one: Name, other: Name) -> Pair:
    (pair,) = [each for each in pairs.pairs() if {each.first, each.second} == {one, other}]
    return pair


def test_every_two_methods_of_different_slots_stand_in_it_once() -> None:
    every = [(kind.slot, method) for kind in techniques() for method in kind.methods()]
    expected = {
        frozenset((one, other))
        for one, other in itertools.combinations(every, 2)
        if one[0] != other[0]
    }
    stated = [
        frozenset(((pair.first.slot, pair.first.method), (pair.second.slot, pair.second.method)))
        for pair in pairs.pairs()
    ]

    assert set(stated) == expected
    assert len(stated) == len(expected)


def test_a_verdict_is_what_the_trial_itself_says() -> None:
    for pair in pairs.pairs():
        settings = {each.slot: {"method": each.method} for each in (pair.first, pair.second)}
        payload = {"model": {"name": "reference"}, "budget": {}, "evaluate": {}}
        alone, lora, nf4 = (
            Trial.from_payload({**payload, "settings": {**helper, **settings}}).conflicts()
            for helper in (
                {},
                {"adapters": {"method": "lora"}},
                {"quantization": {"method": "nf4"}},
            )
        )

        assert (pair.verdict == "works") == (not alone)
        assert (pair.verdict == "works beside lora") == bool(alone and not lora)
        assert (pair.verdict == "works beside nf4") == bool(alone and lora and not nf4)
        assert bool(pair.reasons) == (pair.verdict == "refused")


def test_known_pairs_are_as_they_are_known() -> None:
    assert found(NF4, FULL).verdict == "works beside lora"
    assert found(FULL, CHUNKED).verdict == "works"
    assert found(FULL, Name("adapters", "loftq")).verdict == "works beside nf4"
    assert found(INT8, DORA).verdict == "refused"
    assert "dora crashes on an int8 base" in found(INT8, DORA).reasons[0]


def test_what_lora_mends_is_no_reason_of_a_pair_that_is_refused_beside_it_too() -> None:
    reasons = found(INT8, Name("sharding", "fsdp2")).reasons

    assert len(reasons) == 1
    assert "lose their scales" in reasons[0]


def test_a_new_conflict_is_in_the_matrix_at_once(
    monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    reason = "chunks and recomputation hate each other here; use one of them"
    kind = catalogue()["loss"]["chunked"]
    monkeypatch.setattr(
        kind, "conflicts", lambda self, trial: [reason] if trial.method("checkpointing") else []
    )

    assert found(FULL, CHUNKED).reasons == (reason,)
    assert found(FULL, CHUNKED) in pairs.refused(CHUNKED)
    assert f". {reason}" in pairs.markdown()


def test_methods_share_a_row_only_where_they_agree_about_everything() -> None:
    table = pairs.markdown().split(pairs.KEY)[0]
    rows = [set(re.findall(r"\w+", line)) for line in table.splitlines()]

    assert any({"lora", "rslora"} <= row for row in rows)
    assert not any({"lora", "dora"} <= row or {"nf4", "int8"} <= row for row in rows)


def test_every_method_has_its_row() -> None:
    text = pairs.markdown().split(pairs.KEY)[0]

    for name in pairs.names():
        assert any(name.slot in line and name.method in line for line in text.splitlines())


def test_the_command_prints_it_for_programs() -> None:
    words = ["techniques", "--pairs", "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "tradebench", *words], capture_output=True, text=True, check=True
    )
    printed = json.loads(done.stdout)

    assert printed["schema"] == "tradebench.techniques/1"
    assert printed["pairs"] == [pair.describe() for pair in pairs.pairs()]


@pytest.mark.parametrize("width", [60, 400])
def test_a_terminal_of_any_width_is_told_every_reason(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(pairs.draw(console))
    shown = " ".join(console.export_text().split())

    assert ("+ works · L works beside lora" in shown) == (width == 400)
    for reason in {reason for pair in pairs.pairs() for reason in pair.reasons}:
        assert " ".join(reason.split()) in shown
    assert "quantization int8 + adapters dora" in shown or width == 400


def test_the_command_prints_it_for_people() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tradebench", "techniques", "--pairs"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "dora crashes on an int8 base" in done.stdout
