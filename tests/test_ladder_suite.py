"""The design `ladder`: every row is the one before it with one change more."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradebench.errors import UserError
from tradebench.suite import Suite

HEAD = "# Why?\nmodel: reference\ndesign: ladder\n"


def suite(grid: str) -> Suite:
    return Suite.parse(HEAD + grid, "x.yaml")


def labels(grid: str) -> list[str]:
    return [trial.label for trial in suite(grid).trials()]


def error(grid: str) -> str:
    with pytest.raises(UserError) as caught:
        suite(grid)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_row_adds_one_technique_in_the_order_of_the_file() -> None:
    assert labels(
        "grid:\n"
        "  precision: [fp32, bf16]\n"
        "  loss: [off, {method: chunked, tokens: 16}]\n"
        "  adapters: [off, lora]\n"
        "  quantization: [off, nf4]\n"
    ) == [
        "fp32",
        "bf16",
        "bf16 + chunked tokens 16",
        "bf16 + lora r16 + chunked tokens 16",
        "bf16 + nf4 + lora r16 + chunked tokens 16",
    ]


def test_a_rung_may_change_one_setting_of_the_one_before() -> None:
    assert labels(
        "grid: {precision: bf16, checkpointing: [off, {method: full, ratio: [0.5, 1]}]}\n"
    ) == [
        "bf16",
        "bf16 + checkpointing 0.5",
        "bf16 + checkpointing 1",
    ]


def test_what_a_method_alone_has_to_choose_comes_with_it() -> None:
    assert labels("grid: {adapters: lora, quantization: [off, int8, nf4]}\n") == [
        "lora r16",
        "int8 + lora r16",
        "nf4 + lora r16",
    ]


def test_a_rung_may_change_the_shape_of_the_budget() -> None:
    """Smaller micro-batches with as many more of them to a step are one change."""
    assert labels(
        "budget: {sequence: 32, batch: 8}\n"
        "grid: {adapters: lora, budget: [{}, {batch: 2, accumulation: 4}, "
        "{batch: 2, accumulation: 4, sequence: 16}]}\n"
    ) == [
        "lora r16",
        "lora r16 + batch 2 + accumulation 4",
        "lora r16 + sequence 16 + batch 2 + accumulation 4",
    ]


def test_a_slot_with_one_alternative_is_in_every_row() -> None:
    rows = suite("grid: {adapters: lora, quantization: [off, nf4]}\n").trials()

    assert all("adapters" in row.settings for row in rows)
    assert len(rows) == 2


def test_exclude_leaves_rows_out_as_in_every_design() -> None:
    assert labels(
        "grid: {precision: [fp32, bf16], checkpointing: [off, full]}\n"
        "exclude: [{precision: bf16, checkpointing: off}]\n"
    ) == ["fp32", "bf16 + checkpointing 1"]


def test_repeats_are_as_in_every_design() -> None:
    loaded = suite(
        "grid: {checkpointing: [off, full]}\nrepeats: 2\n"
        "repeats_where: [{match: {checkpointing: full}, repeats: 3}]\n"
    )

    assert [loaded.repeats_of(trial) for trial in loaded.trials()] == [2, 3]


def test_each_may_have_several_baselines() -> None:
    text = (
        "model: reference\ndesign: each\ngrid:\n"
        "  - {checkpointing: [off, full], loss: [off, {method: chunked, tokens: 16}]}\n"
        "  - {adapters: lora, quantization: [off, nf4]}\n"
    )

    assert [trial.label for trial in Suite.parse(text, "x.yaml").trials()] == [
        "baseline",
        "checkpointing 1",
        "chunked tokens 16",
        "lora r16",
        "nf4 + lora r16",
    ]


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_every_row_differs_from_the_one_before_in_one_slot(sizes: list[int]) -> None:
    choices = {
        "checkpointing": ["off", "{method: full, ratio: 0.25}", "{method: full, ratio: 0.5}"],
        "loss": ["off", "{method: chunked, tokens: 16}", "{method: chunked, tokens: 32}"],
        "adapters": ["off", "{method: lora, rank: 4}", "{method: lora, rank: 8}"],
    }
    grid = {slot: words[:size] for (slot, words), size in zip(choices.items(), sizes, strict=False)}
    if sum(sizes) == len(sizes):
        return
    text = "".join(f"  {slot}: [{', '.join(words)}]\n" for slot, words in grid.items())
    rows = [trial.settings for trial in suite(f"grid:\n{text}").trials()]

    assert len(rows) == 1 + sum(size - 1 for size in sizes)
    for before, after in itertools.pairwise(rows):
        assert before.keys() <= after.keys()
        assert sum(before.get(slot) != after[slot] for slot in after) == 1


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        (
            "grid:\n  adapters: lora\n  quantization:\n    - off\n    - int8\n"
            "    - {method: nf4, double: true}\n",
            "x.yaml:9: quantization: a rung changes one setting, and from int8 to nf4 double "
            "changes method and double; keep one of them, or write design: each",
        ),
        (
            "grid:\n  adapters:\n    - off\n    - {method: lora, rank: [4, 8], alpha: [4, 8]}\n",
            "x.yaml:7: adapters: a rung changes one setting, and from lora r4 to lora r8 changes "
            "rank and alpha; keep one of them, or write design: each",
        ),
        (
            "grid:\n  checkpointing: [full, off]\n",
            "x.yaml:5: a rung only adds, and this one takes checkpointing away; write off first, "
            "or once",
        ),
        (
            "grid:\n  checkpointing:\n    - off\n    - full\n    - {method: full, ratio: 1}\n",
            "x.yaml:8: checkpointing: this rung repeats the one before (checkpointing 1); "
            "remove it",
        ),
        (
            "grid:\n  budget:\n    - {sequence: 16, batch: 4}\n    - {sequence: 8, batch: 2}\n",
            "x.yaml:7: budget: a rung changes one setting, and from sequence 16 and batch 4 and "
            "accumulation 1 to sequence 8 and batch 2 and accumulation 1 changes sequence and "
            "batch; keep one of them, or write design: each",
        ),
        (
            "grid: {precision: bf16, checkpointing: full}\n",
            "x.yaml:4: design: ladder has no rung, because no slot has a second alternative; "
            "write [off, ...] for what is added",
        ),
        (
            "grid: [{precision: bf16}]\n",
            "x.yaml:4: design: ladder takes one mapping of slots, not a list of points; "
            "write design: list",
        ),
    ],
)
def test_what_is_no_ladder_is_refused_where_it_stands(grid: str, sentence: str) -> None:
    assert error(grid) == sentence
