"""Single changes that a suite may lack, tried where none within it makes a point fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tradebench.plan.fit import apart, fits
from tradebench.result import Result
from tradebench.trial import Trial, sequences

# Predictions that a plan may make beyond its suite: those of the points that are nearest to
# fitting, since a plan of a thousand points may have hundreds that no single change makes fit.
MOST = 24

# The changes, each by itself: what it puts into a slot, and whether it replaces what is there.
CHANGES: tuple[tuple[str, Mapping[str, Any], bool], ...] = (
    ("checkpointing", {"method": "full", "ratio": 1.0}, True),
    ("loss", {"method": "chunked"}, False),
    ("quantization", {"method": "nf4"}, True),
    ("adapters", {"method": "lora"}, False),
)
# And twice as many GPUs to shard over, up to a node of eight.
SHARDING, LARGEST = "sharding", 8
# Micro-batches that a step is taken apart into, at most: a prediction goes through all of them.
PARTS = 8
# What is left where no technique helps: to train on less. Halves of the sequence, down to a length
# that still holds a question and its answer.
SHORTEST = 128


def alternatives(results: Sequence[Result], refused: Callable[[Trial], bool]) -> list[Trial]:
    """The trials to predict beside a suite's own results, at most `MOST` and each once."""
    known = {result.trial for result in results}
    found: dict[str, Trial] = {}
    for result in sorted(filter(_in_need, results), key=_needed):
        if any(fits(other) and apart(result, other) == (False, 1) for other in results):
            continue
        trials = map(Trial.from_payload, _changed_payloads(result.payload()))
        found |= {
            trial.id: trial for trial in trials if trial.id not in known and not refused(trial)
        }
        if len(found) >= MOST:
            break
    return list(found.values())[:MOST]


def shorter(results: Sequence[Result], refused: Callable[[Trial], bool]) -> list[Trial]:
    """The trials to predict where no change of techniques was found: with shorter sequences."""
    found: dict[str, Trial] = {}
    known = {result.trial for result in results}
    for result in sorted(filter(_in_need, results), key=_needed):
        if result.fit is None or result.fit.advice is not None:
            continue
        given = result.payload()
        length = int(given["budget"]["sequence"]) // 2
        while length >= SHORTEST:
            budget = {**given["budget"], "sequence": length}
            trial = Trial.from_payload({**given, "budget": budget})
            if trial.id not in known and not refused(trial):
                found[trial.id] = trial.model_copy(update={"varied": ("sequence",)})
            length //= 2
        if len(found) >= MOST:
            break
    return list(found.values())[:MOST]


def _in_need(result: Result) -> bool:
    return result.fit is not None and not fits(result)


def _needed(result: Result) -> int:
    return result.fit.needed[1] if result.fit is not None else 0


def _changed_payloads(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a trial is made of, with each of the changes that it has not made already."""
    settings: Mapping[str, Mapping[str, Any]] = given["settings"]
    for slot, fields, replaces in CHANGES:
        there = settings.get(slot)
        if there is None or (replaces and not fields.items() <= there.items()):
            yield {**given, "settings": {**settings, slot: fields}}
    shards = settings.get(SHARDING, {"method": "fsdp2", "degree": 1})
    budget: Mapping[str, Any] = given["budget"]
    every = sequences(budget)
    if budget["batch"] > 1 and every <= PARTS:
        # The same sequences in a step, one at a time.
        yield {**given, "budget": {**budget, "batch": 1, "accumulation": every}}
    degree = 2 * int(shards.get("degree", LARGEST))
    if degree <= LARGEST:
        yield {**given, "settings": {**settings, SHARDING: {**shards, "degree": degree}}}
