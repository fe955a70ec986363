"""Every combination of techniques either trains and proves itself, or says why it cannot."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tradebench.program.loop import surrounding
from tradebench.result import digest
from tradebench.techniques import techniques
from tradebench.trial import Model, Trial

Make = Callable[..., Trial]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]
Fields = Mapping[str, Any] | None
Settings = Mapping[str, Mapping[str, Any]]

CHOICES: Mapping[str, tuple[Fields, ...]] = {
    "precision": (
        None,
        {"method": "fp32"},
        {"method": "bf16"},
        {"method": "bf16_autocast"},
        {"method": "fp16"},
    ),
    "pruning": (None, {"method": "magnitude", "sparsity": 0.5}),
    "quantization": (
        None,
        {"method": "int8"},
        {"method": "nf4"},
        {"method": "nf4", "double": True},
        {"method": "fp4"},
    ),
    "adapters": (
        None,
        {"method": "lora", "rank": 4},
        {"method": "lora", "rank": 4, "merge": True},
        {"method": "rslora", "rank": 4},
        {"method": "dora", "rank": 4},
        {"method": "dora", "rank": 4, "merge": True},
    ),
    "checkpointing": (None, {"method": "full", "ratio": 0.5}),
    "sharding": (None, {"method": "fsdp2"}),
    "loss": (None, {"method": "chunked", "tokens": 16}),
}
DRAWN = 25


def combinations() -> list[dict[str, Mapping[str, Any]]]:
    """The product of all choices, those that are off left out."""
    return [
        {slot: fields for slot, fields in zip(CHOICES, point, strict=True) if fields is not None}
        for point in itertools.product(*CHOICES.values())
    ]


def refused(settings: Settings) -> list[str]:
    """A word of every reason to refuse the combination, said again without asking a technique."""
    method = {slot: fields["method"] for slot, fields in settings.items()}
    merged = settings.get("adapters", {}).get("merge", False)
    reasons = {
        "take no gradient": "quantization" in method and "adapters" not in method,
        "dora crashes": method.get("quantization") == "int8" and method.get("adapters") == "dora",
        "fills the zeros": bool(merged) and "pruning" in method,
        "lose their scales": method.get("quantization") == "int8" and "sharding" in method,
        "cannot merge": bool(merged)
        and method.get("quantization") in ("nf4", "fp4")
        and "sharding" in method,
    }
    return [reason for reason, holds in reasons.items() if holds]


def name(settings: Settings) -> str:
    words = [str(value) for fields in settings.values() for value in fields.values()]
    return "-".join(words) or "baseline"


LEGAL = [settings for settings in combinations() if not refused(settings)]


def drawn() -> list[dict[str, Mapping[str, Any]]]:
    """Another handful whenever the code of a technique changes, the same one until then."""
    seed = digest([technique.version() for technique in techniques()])
    return random.Random(seed).sample(LEGAL, DRAWN)


def test_every_technique_takes_part_in_the_combinations() -> None:
    known = {
        (slot, fields["method"])
        for slot, choices in CHOICES.items()
        for fields in choices
        if fields is not None
    }

    assert {(kind.slot, method) for kind in techniques() for method in kind.methods()} == known


def test_every_combination_is_legal_or_says_every_reason_why_not(tiny_trial: Make) -> None:
    for settings in combinations():
        reasons, expected = tiny_trial(settings).conflicts(), refused(settings)

        assert len(reasons) == len(expected), settings
        for part in expected:
            assert any(part in reason for reason in reasons), settings


def test_every_reason_is_a_sentence_with_a_remedy(tiny_trial: Make) -> None:
    reasons = {reason for settings in combinations() for reason in tiny_trial(settings).conflicts()}

    assert len(reasons) == 7
    for reason in reasons:
        assert re.fullmatch(r"\w[\w ]{15,}; (add|use|set|choose) [\w:, ]+\w", reason)


def test_every_caution_is_a_sentence(tiny_trial: Make) -> None:
    cautions = {note for settings in combinations() for note in tiny_trial(settings).cautions()}

    assert len(cautions) == 8
    for note in cautions:
        assert re.fullmatch(r"\w[\w -]{15,}: [\w ,]{10,}\w", note)


def test_combinations_have_ids_and_labels_of_their_own(tiny_trial: Make) -> None:
    trials = [tiny_trial(settings) for settings in combinations()]

    assert len({trial.id for trial in trials}) == len(trials)
    assert len({trial.label for trial in trials}) == len(trials)


def test_the_order_in_a_suite_does_not_matter(tiny_trial: Make) -> None:
    for settings in drawn():
        backwards = dict(reversed(list(settings.items())))

        assert tiny_trial(backwards) == tiny_trial(settings)


def test_a_slot_takes_one_technique() -> None:
    part = tuple(kind(method=kind.methods()[0]) for kind in techniques())

    with pytest.raises(ValueError, match="a slot is filled twice"):
        Trial(model=Model.model_validate({"name": "reference"}), techniques=(*part, part[0]))


def prove(settings: Settings, make: Make, run: Run) -> None:
    """Two real steps, every effect, and what is left once training is over."""
    trial = make(settings, steps=2)
    model, losses, effects = run(trial)
    for part in trial.techniques:
        model = part.trained(model)
    device = next(model.parameters()).device
    with torch.no_grad(), surrounding(trial.techniques, device.type):
        logits = model.eval()(torch.tensor([[5, 6, 7]], device=device)).logits

    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert effects.keys() == settings.keys()
    assert all(effects.values())
    assert logits.isfinite().all()


@pytest.mark.parametrize("settings", drawn(), ids=name)
def test_a_legal_combination_trains_and_proves_itself(
    settings: Settings, tiny_trial: Make, run_trial: Run
) -> None:
    prove(settings, tiny_trial, run_trial)


@pytest.mark.slow
@pytest.mark.parametrize("settings", LEGAL, ids=name)
def test_every_legal_combination_trains_and_proves_itself(
    settings: Settings, tiny_trial: Make, run_trial: Run
) -> None:
    prove(settings, tiny_trial, run_trial)
