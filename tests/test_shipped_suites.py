"""The suites that ship: every technique is in the catalogue's, and ladders and claims are whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tradebench.suite import Suite
from tradebench.techniques import catalogue, techniques

ROOT = Path(__file__).parents[1]
LADDERS = ("ladder", "llama-3.3-70b-ladder")
CLAIMS = ("claims", "llama-3.3-70b-claims")


def shipped(name: str) -> Suite:
    return Suite.load(ROOT / "suites" / f"{name}.yaml")


def methods(suite: Suite) -> set[str]:
    return {f"{part.slot}: {part.method}" for trial in suite.trials() for part in trial.techniques}


def test_the_catalogues_suite_has_every_technique() -> None:
    known = {f"{kind.slot}: {method}" for kind in techniques() for method in kind.methods()}
    missing = sorted(known - methods(shipped("catalogue")))

    assert not missing, f"suites/catalogue.yaml lacks {', '.join(missing)}; add them to its grid"


def test_the_catalogues_suite_tries_every_technique_once_and_lets_it_train() -> None:
    suite = shipped("catalogue")
    baselines = [{}, {"adapters": "lora"}]
    tried = []
    for trial in suite.trials():
        settings = {slot: fields["method"] for slot, fields in trial.settings.items()}
        if settings not in baselines:
            helpers = [("adapters", "lora")]
            helpers += [("quantization", "nf4")] if settings.get("adapters") == "loftq" else []
            tried.append([one for one in settings.items() if one not in helpers])

    assert suite.design == "each"
    assert all(len(added) == 1 for added in tried)
    assert len({added[0] for added in tried}) == len(tried)
    assert [trial.label for trial in suite.trials() if trial.conflicts()] == []


@pytest.mark.parametrize("name", LADDERS)
def test_every_row_of_a_shipped_ladder_can_run(name: str) -> None:
    suite = shipped(name)

    assert suite.design == "ladder"
    assert [trial.label for trial in suite.trials() if trial.conflicts()] == []


@pytest.mark.parametrize("name", CLAIMS)
def test_every_point_of_the_shipped_claims_can_run(name: str) -> None:
    suite = shipped(name)

    assert suite.design == "each"
    assert [trial.label for trial in suite.trials() if trial.conflicts()] == []


def test_the_claims_at_70b_are_about_techniques_of_the_measured_ones() -> None:
    # What needs several processes or CUDA is predicted only; a 70B has no use for fp32.
    ours, theirs = (methods(shipped(name)) for name in CLAIMS)
    cuda = {
        f"{kind.slot}: {method}"
        for kind in techniques()
        if kind.cuda_only
        for method in kind.methods()
    }

    assert {each for each in theirs - ours - cuda if not each.startswith("sharding")} == set()
    assert {each for each in ours - theirs if not each.startswith("precision")} == set()


def test_ladders_climb_the_same_rungs_on_both_models() -> None:
    rungs = [[list(trial.settings) for trial in shipped(name).trials()] for name in LADDERS]

    assert rungs[0] == rungs[1]
    assert all(slot in catalogue() for row in rungs[0] for slot in row)


@pytest.mark.parametrize(
    ("slot", "fields", "method"),
    [
        ("checkpointing", "{ratio: 0.5}", "full"),
        ("pruning", "{sparsity: 0.5}", "magnitude"),
        ("sharding", "{degree: 1}", "fsdp2"),
        ("loss", "{tokens: 16}", "chunked"),
    ],
)
def test_settings_without_a_method_mean_what_they_meant_when_there_was_one(
    slot: str, fields: str, method: str
) -> None:
    """People's suites go on working when a slot gets another technique."""
    text = f"model: reference\ngrid: {{{slot}: {fields}}}\n"
    (trial,) = Suite.parse(text, "x.yaml").trials()

    assert trial.method(slot) == method
