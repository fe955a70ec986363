"""Every combination of techniques either trains and proves itself, or says why it cannot."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tradebench.predict.memory import perform_fake, reach
from tradebench.program.loop import surrounding
from tradebench.program.perform import Materials
from tradebench.result import Outcome, digest
from tradebench.techniques import catalogue, techniques
from tradebench.trial import Model, Trial
from tradebench.worlds.meters import MemoryMeter

Make = Callable[..., Trial]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]
Settings = Mapping[str, Any]
Point = Mapping[str, Settings]

# Every method of every slot at least once, with the switches that change what is legal.
CHOICES: Mapping[str, tuple[Settings, ...]] = {
    "precision": (
        {"method": "fp32"},
        {"method": "bf16"},
        {"method": "bf16_autocast"},
        {"method": "fp16"},
        {"method": "fp8"},
    ),
    "pruning": (
        {"method": "magnitude", "sparsity": 0.5},
        {"method": "magnitude", "sparsity": 0.5, "remask": True},
        {"method": "wanda", "sparsity": 0.5, "samples": 2},
        {"method": "sparsegpt", "sparsity": 0.5, "pattern": "2:4", "samples": 2},
        {"method": "structured", "channels": 0.3, "heads": 0.5},
        {"method": "semi_structured"},
    ),
    "low_rank": (
        {"method": "svd", "rank": 16},
        {"method": "svd_activation", "rank": 16, "calibration": 2},
        {"method": "svd", "energy": 0.5},
    ),
    "quantization": (
        {"method": "int8"},
        {"method": "nf4"},
        {"method": "nf4", "double": True},
        {"method": "fp4"},
        {"method": "torchao_int8"},
        {"method": "torchao_fp8"},
        {"method": "qat"},
        {"method": "qat", "activations": True},
        {"method": "rtn", "bits": 3, "group": 64},
        {"method": "gptq", "bits": 3, "group": 64, "samples": 4},
    ),
    "adapters": (
        {"method": "lora", "rank": 4},
        {"method": "lora", "rank": 4, "merge": True},
        {"method": "rslora", "rank": 4},
        {"method": "dora", "rank": 4},
        {"method": "dora", "rank": 4, "merge": True},
        {"method": "pissa", "rank": 4},
        {"method": "pissa", "rank": 4, "merge": True},
        {"method": "loftq", "rank": 4},
        {"method": "loftq", "rank": 4, "merge": True},
        {"method": "loftq", "rank": 4, "iterations": 2},
        {"method": "oft", "block": 16},
        {"method": "oft", "block": 16, "merge": True},
        {"method": "vera", "rank": 32},
        {"method": "vera", "rank": 32, "merge": True},
    ),
    "optimizer": (
        {"method": "adamw", "implementation": "fused"},
        {"method": "adamw", "implementation": "foreach"},
        {"method": "adamw", "implementation": "for-loop"},
        {"method": "adamw", "in_backward": True},
        {"method": "adamw", "offload": True},
        {"method": "adamw8bit"},
        {"method": "adamw8bit", "in_backward": True},
        {"method": "lion8bit"},
        {"method": "adafactor"},
        {"method": "adafactor", "in_backward": True},
        {"method": "galore", "rank": 4},
        {"method": "galore", "rank": 4, "in_backward": True},
        {"method": "torchao_adamw8bit"},
        {"method": "torchao_adamw8bit", "in_backward": True},
        {"method": "torchao_adamw4bit"},
        {"method": "paged_adamw"},
        {"method": "paged_adamw8bit"},
    ),
    "checkpointing": (
        {"method": "full", "ratio": 0.5},
        {"method": "selective", "ratio": 0.5},
    ),
    "offload": ({"method": "activations"},),
    "sharding": ({"method": "fsdp2"},),
    "data": (
        {"method": "packing"},
        {"method": "grouping"},
        {"method": "subset", "fraction": 0.5},
    ),
    "loss": (
        {"method": "chunked", "tokens": 16},
        {"method": "fused"},
    ),
}
LORA, NF4 = CHOICES["adapters"][0], CHOICES["quantization"][1]
MASKED = ("magnitude", "wanda", "sparsegpt")
TORCHAO = ("torchao_int8", "torchao_fp8")
DRAWN_PAIRS, DRAWN_POINTS, DRAWN_SLOWLY = 40, 10, 150


def pairs() -> Iterator[Point]:
    """Every two choices of different slots, beside lora or nf4 where they need it."""
    for (slot, ones), (other, others) in itertools.combinations(CHOICES.items(), 2):
        for one, another in itertools.product(ones, others):
            point = {slot: one, other: another}
            reasons = " ".join(refused(point))
            point |= {"adapters": LORA} if "take no gradient" in reasons else {}
            yield point | ({"quantization": NF4} if "error of quantization" in reasons else {})


def points() -> Iterator[Point]:
    """Combinations of any number of techniques; others whenever the code of one changes."""
    chance = random.Random(digest([technique.version() for technique in techniques()]))
    while True:
        picks = {slot: chance.choice([None, *choices]) for slot, choices in CHOICES.items()}
        yield {slot: fields for slot, fields in picks.items() if fields is not None}


def refused(settings: Point) -> list[str]:
    """A word of every reason to refuse the combination, said again without asking a technique."""
    method = {slot: fields["method"] for slot, fields in settings.items()}
    merged = settings.get("adapters", {}).get("merge", False)
    compressed = method.get("pruning") == "semi_structured"
    reasons = {
        "compressed and take no gradient": compressed and "adapters" not in method,
        "merge into compressed": compressed and bool(merged),
        "compressed already": compressed and "quantization" in method,
        "structured leaves none": compressed and method.get("precision") == "fp8",
        "compressed semi_structured weights cannot be split": compressed and "sharding" in method,
        "take no gradient": method.get("quantization") not in (None, "qat")
        and "adapters" not in method,
        "dora crashes": method.get("quantization") == "int8" and method.get("adapters") == "dora",
        "fills the zeros": bool(merged)
        and method.get("pruning") in MASKED
        and not settings["pruning"].get("remask"),
        "applied to quantized": bool(settings.get("pruning", {}).get("remask"))
        and "quantization" in method,
        "base has none": method.get("precision") == "fp8" and "quantization" in method,
        "that qat rounds": bool(merged) and method.get("quantization") == "qat",
        "norm of the dense": method.get("quantization") == "qat"
        and method.get("adapters") == "dora",
        "rows of factored": method.get("quantization") == "qat" and "low_rank" in method,
        "split over processes": method.get("quantization") == "qat" and "sharding" in method,
        "into shares": method.get("quantization") in TORCHAO and "sharding" in method,
        "lose their scales": method.get("quantization") == "int8" and "sharding" in method,
        "sharding splits it": method.get("loss") == "fused" and "sharding" in method,
        "under autocast": method.get("loss") == "fused"
        and method.get("precision") in ("bf16_autocast", "fp16"),
        "cannot merge": bool(merged)
        and method.get("quantization") in ("nf4", "fp4")
        and "sharding" in method,
        "merge into packed": bool(merged) and method.get("quantization") in ("rtn", "gptq"),
        "on gptq weights": method.get("quantization") == "gptq"
        and method.get("adapters") not in (None, "lora", "rslora"),
        "zeros of a pruned base; use": method.get("quantization") == "gptq" and "pruning" in method,
        "packs sides of 32": method.get("quantization") == "gptq" and "low_rank" in method,
        "rows of zeros": method.get("adapters") == "dora"
        and "quantization" in method
        and "low_rank" in method,
        "have no zeros": "low_rank" in method and "pruning" in method,
        "cannot read quantized": method.get("adapters") == "pissa" and "quantization" in method,
        "undoes the zeros": method.get("adapters") == "pissa" and "pruning" in method,
        "error of quantization": method.get("adapters") == "loftq" and "quantization" not in method,
        "beside quantized ones": method.get("adapters") == "loftq"
        and method.get("quantization") not in (None, "nf4", "fp4", "rtn"),
        "none of their zeros": settings.get("adapters", {}).get("iterations", 1) > 1
        and "pruning" in method,
        "merge into sharded weights": bool(merged)
        and method.get("adapters") in ("oft", "vera")
        and "sharding" in method,
        "ranks by energy": method.get("adapters") == "oft"
        and "energy" in settings.get("low_rank", {}),
        "do not divide": method.get("adapters") == "oft"
        and settings.get("low_rank", {}).get("rank", 16) % 16 != 0,
    }
    optimizer, precision = settings.get("optimizer", {}), method.get("precision")
    reasons |= {
        "plain fused step of adamw alone": precision == "fp16"
        and "optimizer" in method
        and optimizer != {"method": "adamw", "implementation": "fused"},
        "shares of a sharded model": "sharding" in method
        and method.get("optimizer") in ("adamw8bit", "lion8bit", "paged_adamw", "paged_adamw8bit"),
        "bf16 states that are sharded": "sharding" in method
        and "adapters" not in method
        and precision in ("bf16", "fp8")
        and method.get("optimizer") in ("torchao_adamw8bit", "torchao_adamw4bit"),
        "the means of whole matrices": "sharding" in method
        and method.get("optimizer") == "adafactor",
        "whole gradients and not their shares": "sharding" in method
        and method.get("optimizer") == "galore",
        "adapters freeze these": "adapters" in method and method.get("optimizer") == "galore",
        "quantized weights do not have": "quantization" in method
        and "adapters" not in method
        and method.get("optimizer") == "galore",
        "offloaded by the sharding itself": bool(optimizer.get("offload")) and "sharding" in method,
    }
    return [reason for reason, holds in reasons.items() if holds]


def runs_here(settings: Point) -> bool:
    """Whether no part of it is for CUDA alone."""
    return all(
        catalogue()[slot][fields["method"]].cuda_only is None for slot, fields in settings.items()
    )


def name(settings: Point) -> str:
    words = [str(value) for fields in settings.values() for value in fields.values()]
    return "-".join(words) or "baseline"


PAIRS = [{}, *pairs()]
LEGAL_PAIRS = [pair for pair in PAIRS if not refused(pair) and runs_here(pair)]
POINTS = [
    point
    for point in {name(point): point for point in itertools.islice(points(), 400)}.values()
    if point not in PAIRS
]
LEGAL_POINTS = [point for point in POINTS if not refused(point) and runs_here(point)]
DRAWN = [
    *random.Random(name(POINTS[0])).sample(LEGAL_PAIRS, DRAWN_PAIRS),
    *LEGAL_POINTS[:DRAWN_POINTS],
]
# Ranks by energy follow from weights, which a prediction does not read.
PREDICTABLE = [pair for pair in LEGAL_PAIRS if "energy" not in pair.get("low_rank", {})]
# One choice of every method, without the switches.
FIRSTS = {(slot, fields["method"]): fields for slot in CHOICES for fields in CHOICES[slot][::-1]}
PLAIN = [
    pair
    for pair in PREDICTABLE
    if all(FIRSTS[slot, fields["method"]] == fields for slot, fields in pair.items())
]
SWITCHED = [pair for pair in PREDICTABLE if pair not in PLAIN]
FURTHER = [*LEGAL_PAIRS, *LEGAL_POINTS[DRAWN_POINTS:DRAWN_SLOWLY]]


def test_every_technique_takes_part_in_the_combinations() -> None:
    known = {(slot, fields["method"]) for slot, choices in CHOICES.items() for fields in choices}

    assert {(kind.slot, method) for kind in techniques() for method in kind.methods()} == known


def test_every_combination_is_legal_or_says_every_reason_why_not(tiny_trial: Make) -> None:
    for settings in (*PAIRS, *POINTS):
        reasons, expected = tiny_trial(settings).conflicts(), refused(settings)

        assert len(reasons) == len(expected), settings
        for part in expected:
            assert any(part in reason for reason in reasons), settings


def test_every_reason_is_a_sentence_with_a_remedy(tiny_trial: Make) -> None:
    reasons = {
        reason for settings in (*PAIRS, *POINTS) for reason in tiny_trial(settings).conflicts()
    }

    assert reasons
    for reason in reasons:
        assert re.fullmatch(r"\w[\w ]{15,}; (add|use|set|choose) [\w:, ]+\w", reason)


def test_every_caution_is_a_sentence(tiny_trial: Make) -> None:
    cautions = {note for settings in (*PAIRS, *POINTS) for note in tiny_trial(settings).cautions()}

    assert cautions
    for note in cautions:
        assert re.fullmatch(r"\w[\w -]{15,}: [\w ,]{10,}\w", note)


def test_combinations_have_ids_and_labels_of_their_own(tiny_trial: Make) -> None:
    trials = [tiny_trial(settings) for settings in (*PAIRS, *POINTS)]

    assert len({trial.id for trial in trials}) == len(trials)
    assert len({trial.label for trial in trials}) == len(trials)


def test_the_order_in_a_suite_does_not_matter(tiny_trial: Make) -> None:
    for settings in DRAWN:
        backwards = dict(reversed(list(settings.items())))

        assert tiny_trial(backwards) == tiny_trial(settings)


def test_a_slot_takes_one_technique() -> None:
    part = tuple(kind(method=kind.methods()[0]) for kind in techniques())

    with pytest.raises(ValueError, match="a slot is filled twice"):
        Trial(model=Model.model_validate({"name": "reference"}), techniques=(*part, part[0]))


def prove(settings: Point, make: Make, run: Run) -> None:
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


@pytest.mark.parametrize("settings", DRAWN, ids=name)
def test_a_legal_combination_trains_and_proves_itself(
    settings: Point, tiny_trial: Make, run_trial: Run
) -> None:
    prove(settings, tiny_trial, run_trial)


def large(settings: Point) -> Trial:
    """Two steps on one layer as wide as those of Llama 3.3 70B."""
    shape = {"name": "llama-3.3-70b", "config": "llama-3.3-70b", "weights": "random", "layers": 1}
    budget = {"steps": 2, "warmup": 0, "batch": 1, "sequence": 64, "data": "random"}
    return Trial.from_payload(
        {"model": shape, "budget": budget, "evaluate": {}, "settings": settings}
    )


@pytest.fixture(scope="module")
def materials() -> Materials:
    """What all of these trials share."""
    return reach(large({})).materials


@pytest.mark.parametrize("settings", PLAIN, ids=name)
@pytest.mark.usefixtures("quick_collections")
def test_every_legal_pair_trains_in_the_fake_world(settings: Point, materials: Materials) -> None:
    train_in_the_fake_world(settings, materials)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SWITCHED, ids=name)
@pytest.mark.usefixtures("quick_collections")
def test_every_legal_pair_of_switches_trains_in_the_fake_world(
    settings: Point, materials: Materials
) -> None:
    train_in_the_fake_world(settings, materials)


def train_in_the_fake_world(settings: Point, materials: Materials) -> None:
    """Two steps of three parts each, none of which needs more than training does as a whole."""
    meter = MemoryMeter("cpu", fake=True)
    perform_fake(large(settings), materials, meter, Outcome())

    assert meter.parts.keys() == {"forward", "backward", "optimizer"}
    assert 0 < min(meter.parts.values()) <= max(meter.parts.values()) <= meter.peaks["train"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", FURTHER, ids=name)
def test_every_legal_pair_trains_and_proves_itself(
    settings: Point, tiny_trial: Make, run_trial: Run
) -> None:
    prove(settings, tiny_trial, run_trial)
