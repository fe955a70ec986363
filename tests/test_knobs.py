"""Knobs: which numbers of a trial are straight lines, and which trials share all the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tradebench.knobs import Knob, family, knobs, turned
from tradebench.techniques import techniques
from tradebench.trial import BUDGET, Trial

Make = Callable[..., Trial]

RANK, LENGTH = Knob("adapters", "rank"), Knob(BUDGET, "sequence")


def adapted(rank: int) -> dict[str, Any]:
    return {"adapters": {"method": "lora", "rank": rank}, "loss": {"method": "chunked"}}


def test_ranks_and_lengths_are_knobs(tiny_trial: Make) -> None:
    assert knobs(tiny_trial(adapted(8), sequence=48)) == {RANK: 8, LENGTH: 48}


def test_the_length_is_one_only_where_every_sequence_has_it(tiny_trial: Make) -> None:
    trial = tiny_trial(adapted(8), data="reference")

    assert knobs(trial) == {RANK: 8}


def test_a_trial_without_adapters_has_no_rank(tiny_trial: Make) -> None:
    assert knobs(tiny_trial({"precision": {"method": "bf16"}}, data="reference")) == {}


@pytest.mark.parametrize("technique", techniques(), ids=lambda kind: kind.__name__)
def test_a_technique_names_whole_numbers_among_its_own_settings(technique: Any) -> None:
    assert all(technique.model_fields[field].annotation is int for field in technique.affine)


def test_a_knob_is_turned_and_nothing_else(tiny_trial: Make) -> None:
    trial = tiny_trial(adapted(8), sequence=48)

    assert turned(trial, RANK, 32) == tiny_trial(adapted(32), sequence=48)
    assert turned(trial, LENGTH, 96) == tiny_trial(adapted(8), sequence=96)
    assert turned(turned(trial, RANK, 32), RANK, 8) == trial
    assert knobs(trial) == {RANK: 8, LENGTH: 48}


def test_a_turned_trial_has_an_id_of_its_own(tiny_trial: Make) -> None:
    trial = tiny_trial(adapted(8))

    assert trial.id != turned(trial, RANK, 32).id == tiny_trial(adapted(32)).id


def test_trials_that_differ_in_a_knob_are_a_family(tiny_trial: Make) -> None:
    small, large = (tiny_trial(adapted(rank), sequence=rank) for rank in (8, 16))

    assert family(small, RANK, LENGTH) == family(large, LENGTH, RANK)
    assert family(small, RANK) != family(large, RANK)
    assert family(small, LENGTH) != family(large, LENGTH)


def test_trials_that_differ_in_more_are_none(tiny_trial: Make) -> None:
    trial = tiny_trial(adapted(8))
    others = [
        tiny_trial(adapted(8), batch=4),
        tiny_trial({**adapted(8), "precision": {"method": "bf16"}}),
        tiny_trial({**adapted(8), "adapters": {"method": "dora", "rank": 8}}),
        trial.model_copy(update={"model": trial.model.model_copy(update={"layers": 3})}),
    ]

    assert family(trial, RANK) not in {family(other, RANK) for other in others}


def test_families_of_another_knob_are_others(tiny_trial: Make) -> None:
    """Whether nothing or only the rank may be turned makes a difference, whatever its value."""
    trial = turned(tiny_trial(adapted(8)), RANK, 0)

    assert family(trial) != family(trial, RANK)
