"""What a run found, in sentences, each computed from its numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from tradebench.report.cover import cover
from tradebench.report.fronts import Z95, Group
from tradebench.report.series import bits
from tradebench.report.tables import SEVERITY, STATUS_WORDS, TRAINING, Point
from tradebench.report.units import count, listed, scale, show, significant, title
from tradebench.result import Status
from tradebench.trial import reshaped

MAX_TWINS = 2
MAX_PAIRS = 8


def findings(group: Group) -> list[str]:
    """Return the group's findings, the plainest first."""
    sentences = [_coverage(group), _training(group), _front(group), _smallest(group)]
    goals = [each.name for each in group.objectives if each.name.startswith("accuracy.")]
    goals = goals or [f"accuracy.{task}" for task in group.tasks[:1]] or ["step_seconds"]
    sentences += [_best(group, goal) for goal in goals]
    sentences += [_alike(group), _cover(group)]
    if group.absent:
        names = listed(title(name).lower() for name in group.absent)
        predicted = group.kind == "predicted"
        why = "; accuracy is measured and never predicted" if predicted else ""
        sentences.append(f"No point of this run has a value for {names}{why}.")
    return [sentence for sentence in sentences if sentence]


def _coverage(group: Group) -> str:
    ended = Counter(point.status for point in group.points)
    parts = listed(f"{ended[each]} {STATUS_WORDS[each]}" for each in _order() if ended[each])
    return f"{count(len(group.points), 'point')}, {group.title}: {parts}."


def _training(group: Group) -> str:
    """Say what differs beside techniques: a point that trains on less is no cheaper for it."""
    return f"{group.training_note} {TRAINING}" if group.training_note else ""


def _order() -> list[Status]:
    return ["ok", *(status for status in SEVERITY if status != "ok")]


def _front(group: Group) -> str:
    if len(group.objectives) < 2:
        return ""
    names = listed(title(each.name).lower() for each in group.objectives)
    sure, possible = group.labelled("front"), group.labelled("possible")
    text = f"The Pareto front over {names} has {count(len(sure), 'point')}{_within(group, sure)}"
    if possible:
        text += (
            f", and the noise of the measurements does not rule out {len(possible)} more"
            f"{_within(group, possible)}"
        )
    return f"{text}."


def _within(group: Group, found: Sequence[Point]) -> str:
    told = group.within(found)
    return f" ({told})" if told else ""


def _cover(group: Group) -> str:
    found = cover(group)
    return "" if found is None else found.text


def _alike(group: Group) -> str:
    """Name the points on the front that no objective tells apart, by their numbers."""
    numbers, pairs = group.numbers, []
    near = {point.trial: point for point in group.labelled("front", "possible")}
    for trial in near:
        others = [other for other in group.alike.get(trial, ()) if other in near]
        pairs += [(numbers[trial], numbers[o]) for o in others if numbers[trial] < numbers[o]]
    if not pairs:
        return ""
    told = [f"{one} and {other}" for one, other in sorted(pairs)]
    more = len(told) - MAX_PAIRS
    words = "; ".join(told[:MAX_PAIRS]) + (f"; and {more} more pairs" if more > 0 else "")
    return f"No objective tells these points of the front apart (numbers of the table): {words}."


def _smallest(group: Group) -> str:
    """Name the smallest point, and how far below the untouched model it is."""
    name = group.memory
    found = [point for point in group.ok if name in point.estimates and point.status == "ok"]
    if name is None or not found:
        return ""
    best = min(found, key=lambda point: point.estimates[name].value)
    estimate = best.estimates[name]
    text = (
        f"Smallest {title(name).lower()}: {best.name} with "
        f"{show(name, estimate.value, estimate.unit)}"
    )
    budget = best.results[0].budget
    start = baseline([p for p in found if not reshaped(budget, p.results[0].budget)])
    if start is not None and start is not best and start.estimates[name].value > 0:
        share = 1 - estimate.value / start.estimates[name].value
        text += f", {100 * share:.0f} % less than {start.name}"
    return f"{text}."


def baseline(found: Sequence[Point]) -> Point | None:
    """Return the point without techniques, other than the precision of its weights."""
    plain = [point for point in found if set(point.settings) <= {"precision"}]
    return max(plain, key=lambda point: bits(point) or 0.0, default=None)


def _best(group: Group, goal: str) -> str:
    """Name the best point that meets every limit, and smaller ones that cannot be told from it."""
    found = [point for point in group.ok if goal in point.estimates and point.status == "ok"]
    if not found:
        return ""
    within = listed(f"{title(each.name).lower()} {each.limit_text}" for each in group.limits)
    allowed = [point for point in found if group.meets_limits(point)]
    if not allowed:
        return f"No point meets {within}."
    best = min(allowed, key=lambda point: (point.estimates[goal].cost, _memory(group, point)))
    verb = "Fastest step" if goal == "step_seconds" else f"Best {title(goal).lower()}"
    text = (
        f"{verb}{f' within {within}' if within else ''}: {best.name} ({_facts(group, best, goal)})."
    )
    twins = [point for point in allowed if _smaller_twin(group, point, best, goal)]
    if twins:
        twins.sort(key=lambda point: _memory(group, point))
        named = listed(f"{each.name} ({_facts(group, each, goal)})" for each in twins[:MAX_TWINS])
        text += f" Smaller and not distinguishable from it: {named}"
        text += f", and {len(twins) - MAX_TWINS} more." if len(twins) > MAX_TWINS else "."
    return text


def _memory(group: Group, point: Point) -> float:
    value = point.value(group.memory) if group.memory else None
    return math.inf if value is None else value


def _smaller_twin(group: Group, point: Point, best: Point, goal: str) -> bool:
    error = math.hypot(group.noise(point, goal), group.noise(best, goal))
    gap = abs(point.estimates[goal].value - best.estimates[goal].value)
    return _memory(group, point) < _memory(group, best) and gap <= Z95 * error


def _facts(group: Group, point: Point, goal: str) -> str:
    """Return the goal with its interval, then memory and step time."""
    estimate = point.estimates[goal]
    unit = scale(goal, [estimate.value], estimate.unit)
    ends = [each / unit.factor for each in group.interval(point, goal) or ()]
    number = significant(estimate.value / unit.factor)
    if estimate.predicted:
        between = f", between {' and '.join(map(significant, ends))}" if ends else ""
        facts = [f"{number} {unit.unit}".strip() + between]
    else:
        spread = f" ± {significant(ends[1] - estimate.value / unit.factor, 2)}" if ends else ""
        facts = [f"{number}{spread} {unit.unit}".strip()]
    for name in dict.fromkeys([group.memory, "step_seconds"]):
        if name and name != goal and name in point.estimates:
            facts.append(show(name, point.estimates[name].value, point.estimates[name].unit))
    return ", ".join(facts)
