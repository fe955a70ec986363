"""Which of two points takes less from the model, where that can be said without measuring.

A prediction knows what a point costs and not how good its model becomes. Where two cost the same,
the cheapest by a hair is no answer to what to run: a step that is 0.1 % shorter is no reason to
train a quarter of the rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tradebench.published.accuracies import SLOTS
from tradebench.recommend.candidates import Candidate
from tradebench.recommend.choice import Goal, Judged
from tradebench.report.series import bits
from tradebench.report.tables import TAKING
from tradebench.report.units import listed

# What a reader pays without a second thought; far less than a prediction of a step may be off by.
MARGIN = 0.05

Fields = Mapping[str, Any]


def keeps_weights(each: Judged) -> bool:
    """Whether the model keeps all its weights."""
    return not any(slot in each.candidate.settings for slot in TAKING)


def gentlest(best: Judged, pool: Sequence[Judged], goal: Goal) -> Judged:
    """Of those that cost at most `MARGIN` more than the best, the one that takes least.

    It takes no more than the best in any slot: what cannot be weighed stays out. The best itself
    where there is none, and where its goal was measured: then that says which is better.
    """
    if best.goal.kind != "predicted":
        return best
    found = [each for each in pool if near(best, each, goal) and _gentler(best, each)]

    def place(each: Judged) -> tuple[float, ...]:
        # What a weight is left with comes before the size of an adapter, as in SLOTS.
        behind = (
            sum((_weigh(slot, each.candidate, other.candidate) or 0) > 0 for other in found)
            for slot in SLOTS
        )
        return *behind, goal.cost(each.goal)

    return min(found, key=place, default=best)


def near(best: Judged, each: Judged, goal: Goal) -> bool:
    """Whether the other's cost is at most `MARGIN` above the best's."""
    low, high = sorted((best.goal.value, each.goal.value))
    return goal.cost(each.goal) <= goal.cost(best.goal) or high <= low * (1 + MARGIN)


def reason(one: Candidate, other: Candidate) -> str:
    """What the other has in the slots in which it takes less: `rank 64 rather than 4`."""
    return listed(_said(slot, one, other) for slot in SLOTS if (_weigh(slot, one, other) or 0) > 0)


def _gentler(best: Judged, each: Judged) -> bool:
    """Whether it takes less in some slot and more in none, and learns from the same data alike."""
    one, other = best.candidate, each.candidate
    signs = [_weigh(slot, one, other) for slot in SLOTS]
    return (
        any(signs)
        and all(sign is not None and sign >= 0 for sign in signs)
        and one.settings.get("optimizer") == other.settings.get("optimizer")
        and _budget(one) == _budget(other)
    )


def _budget(each: Candidate) -> Fields:
    return each.evidence[0][1].results[0].budget


def _weigh(slot: str, one: Candidate, other: Candidate) -> int | None:
    """1 where the other takes less from the model, -1 where more, None where no one can say."""
    first, second = one.settings.get(slot), other.settings.get(slot)
    if slot == "quantization":
        return _by_bits(one, other)
    if first == second:
        return 0
    if slot == "adapters":
        # Some parameters or all of them: neither is known to give the better model.
        return _by_field("rank", first, second, sign=1) if first and second else None
    if first is None or second is None:
        return 1 if second is None else -1
    return _by_field("sparsity", first, second, sign=-1)


def _by_bits(one: Candidate, other: Candidate) -> int | None:
    """More bits take less from a weight; of equal ones, those whose scales are not quantized."""
    ours, theirs = (bits(each.evidence[0][1]) for each in (one, other))
    if ours is None or theirs is None:
        return None
    if ours != theirs:
        return 1 if theirs > ours else -1
    slot = "quantization" if "quantization" in one.settings else "precision"
    first, second = one.settings.get(slot), other.settings.get(slot)
    if first == second:
        return 0
    return _by_field("double", first, second, sign=-1) if first and second else None


def _by_field(field: str, first: Fields, second: Fields, *, sign: int) -> int | None:
    """How they compare where nothing but this field differs; more of it counts as `sign`."""
    rest = [{name: each[name] for name in each if name != field} for each in (first, second)]
    if rest[0] != rest[1]:
        return None
    return sign if float(second.get(field) or 0) > float(first.get(field) or 0) else -sign


def _said(slot: str, one: Candidate, other: Candidate) -> str:
    """What the other has in a slot instead of the first."""
    first, second = one.settings.get(slot), other.settings.get(slot)
    if slot == "quantization":
        ours, theirs = (bits(each.evidence[0][1]) for each in (one, other))
        if ours == theirs:
            return "scales that are not quantized themselves"
        return f"{theirs:g} bits for a weight rather than {ours:g}"
    if slot == "adapters" and first and second:
        return f"rank {second['rank']} rather than {first['rank']}"
    noun = slot.replace("_", " ")
    if first and second:
        return f"{second['sparsity']:.0%} {noun} rather than {first['sparsity']:.0%}"
    return f"no {noun}"
