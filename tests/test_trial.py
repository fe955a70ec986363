"""Trials: what names them, and what their copies are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tradebench import store
from tradebench.result import digest
from tradebench.trial import SHAPE, Budget, Model, Trial, reshaped

EXAMPLE = Path(__file__).parents[1] / "results" / "quickstart-full" / "example"
PAYLOAD = {
    "model": {"name": "reference"},
    "budget": {"steps": 4, "warmup": 1},
    "evaluate": {},
    "settings": {"checkpointing": {"method": "full", "ratio": 0.5}},
}


def test_a_copy_with_other_fields_has_an_id_of_its_own() -> None:
    """Whether or not the id was asked for before: it is kept once it is known."""
    trial = Trial.from_payload(PAYLOAD)
    known = trial.id
    update = {"budget": Budget(steps=5, warmup=1)}
    copied = trial.model_copy(update=update)

    assert copied.id == Trial.from_payload({**PAYLOAD, "budget": update["budget"].model_dump()}).id
    assert copied.id != known == trial.id
    assert copied.model_copy(update={"budget": trial.budget}).id == known


@pytest.mark.parametrize("deep", [False, True])
def test_a_copy_of_the_same_fields_has_the_same_id(deep: bool) -> None:
    trial = Trial.from_payload(PAYLOAD)
    copied = trial.model_copy(deep=deep)

    assert copied == trial
    assert copied.id == trial.id


def test_a_trial_comes_back_from_its_payload() -> None:
    trial = Trial.from_payload(PAYLOAD)
    back = Trial.from_payload(json.loads(json.dumps(trial.payload())))

    assert (back, back.id) == (trial, trial.id)


def test_an_id_is_the_digest_of_all_that_is_said() -> None:
    trial = Trial.from_payload(PAYLOAD)

    assert trial.id == digest(trial.payload())
    assert trial.payload().keys() == PAYLOAD.keys()


def test_what_a_suite_varies_is_in_the_label_alone() -> None:
    trial = Trial.from_payload({**PAYLOAD, "budget": {"sequence": 64}})
    varied = trial.model_copy(update={"varied": ("sequence",)})

    assert (trial.label, varied.label) == (
        "checkpointing 0.5",
        "checkpointing 0.5 + sequence 64",
    )
    assert varied.id == trial.id
    assert varied.model_dump() == trial.model_dump()


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ((32, 8, 1), (32, 8, 1), ()),
        ((32, 8, 1), (16, 8, 1), (("sequence",),)),
        ((32, 8, 1), (32, 2, 4), (("batch", "accumulation"),)),
        ((32, 8, 1), (32, 2, 2), (("batch",), ("accumulation",))),
        ((32, 8, 1), (16, 4, 2), (("sequence",), ("batch", "accumulation"))),
        ((32, 8, 1), (32, 8, 2), (("accumulation",),)),
    ],
)
def test_a_step_cut_into_other_micro_batches_is_one_change(
    before: Sequence[int], after: Sequence[int], changes: Sequence[Sequence[str]]
) -> None:
    one, other = (dict(zip(SHAPE, values, strict=True)) for values in (before, after))

    assert reshaped(one, other) == changes


def test_what_is_not_cut_short_says_nothing_of_layers() -> None:
    """So that trials keep the ids they had before models could be."""
    whole = Model(name="x", config="llama-3.2-1b", weights="random")
    cut = whole.model_copy(update={"layers": 2})
    said = Trial(model=whole).payload()["model"]

    assert "layers" not in said
    assert Trial(model=cut).payload()["model"] == {**said, "layers": 2}
    assert Model.model_validate(said) == whole
    assert Trial(model=whole).id != Trial(model=cut).id


def test_committed_results_are_still_the_trials_that_they_were() -> None:
    """A setting that comes later must leave the ids of points that do not use it."""
    results = store.load(EXAMPLE).results

    assert len(results) > 60
    for result in results:
        payload = {name: getattr(result, name) for name in PAYLOAD}
        assert Trial.from_payload(payload).id == result.trial
