"""Which candidate it is: the best that keeps to every requirement, and what stands beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tradebench import pareto
from tradebench.recommend.candidates import Candidate, Figure, finite
from tradebench.recommend.requirements import Requirement, Verdict, amount
from tradebench.report.fronts import Z95
from tradebench.report.tables import MEMORY, STATUS_WORDS
from tradebench.result import Kind

WAITING: tuple[Verdict, ...] = ("no", "possibly", "yes")
RUNNERS = 3
CAPACITY = "peak_process_bytes"
DIGITS = 3  # significant ones, as many as are shown


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is to be as large or as small as it gets."""

    name: str
    wish: Literal["maximize", "minimize"]

    def cost(self, figure: Figure) -> float:
        """What is to be small."""
        return -figure.value if self.wish == "maximize" else figure.value


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A candidate, its value of the goal, and how it stands to each requirement."""

    candidate: Candidate
    goal: Figure
    verdicts: tuple[tuple[Requirement, Figure, Verdict], ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of them; yes where nothing is required."""
        return min((each for _, _, each in self.verdicts), key=WAITING.index, default="yes")

    @property
    def crossed(self) -> tuple[Requirement, ...]:
        """The requirements whose bound lies within the interval."""
        return tuple(need for need, _, each in self.verdicts if each == "possibly")

    @property
    def missed(self) -> tuple[tuple[Requirement, Figure], ...]:
        """The requirements that it does not keep to, with what it has instead."""
        return tuple((need, figure) for need, figure, each in self.verdicts if each == "no")

    @property
    def distance(self) -> float:
        """How far it is from keeping to all of them, as a share of the bound missed most."""
        return max((need.over(figure) for need, figure in self.missed), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is recommended, and everything that a reader must see beside it.

    Attributes:
        goal: What was asked for.
        requirements: What every candidate was held against.
        best: The answer; None where nothing keeps to the requirements.
        pool: Everything that the answer was chosen from, the best first.
        chances: For each of the pool, how probable it is that it is the best of them; empty where
            the figures are predictions, or nothing is known of their noise.
        alike: Those of the pool that the goal cannot tell from the answer: fewest GPUs first, then
            least memory.
        runners: The next ones after it that can.
        maybe: Better ones that may keep to the requirements: the bound lies in their interval.
        nearest: Where there is no answer, the one that misses the requirements by least.
        unmeasured: Candidates whose goal is only predicted, where others' was measured.
        out: Why others were no candidates at all, in a few words, and how many.
    """

    goal: Goal
    requirements: tuple[Requirement, ...]
    best: Judged | None
    pool: tuple[Judged, ...]
    chances: Mapping[str, float]
    alike: tuple[Judged, ...]
    runners: tuple[Judged, ...]
    maybe: tuple[Judged, ...]
    nearest: Judged | None
    unmeasured: int
    out: Mapping[str, int]

    @cached_property
    def kind(self) -> Kind | None:
        """What kind of evidence the goal's figures are."""
        found = self.best or self.nearest
        return None if found is None else found.goal.kind


def choose(found: Iterable[Candidate], goal: Goal, requirements: Sequence[Requirement]) -> Choice:
    """The best candidate that keeps to all requirements.

    What certainly keeps to them comes before what possibly does. Candidates are held against
    others of the same kind of evidence only: where the goal was measured of any, those compete.
    """
    judged, out = _judge(found, goal, requirements)
    measured = [each for each in judged if each.goal.kind == "measured"]
    rivals = measured or judged
    by_verdict = {word: [e for e in rivals if e.verdict == word] for word in WAITING}
    pool = sorted(by_verdict["yes"] or by_verdict["possibly"], key=lambda each: _place(each, goal))
    best = pool[0] if pool else None
    chances = _chances(pool, goal)
    alike = [each for each in pool[1:] if best is not None and _alike(best, each)]
    others = [each for each in pool[1:] if each not in alike]
    maybe = [
        each
        for each in sorted(by_verdict["possibly"], key=lambda each: _place(each, goal))
        if best is not None
        and best.verdict == "yes"
        and goal.cost(each.goal) < goal.cost(best.goal)
    ]
    missing = min(by_verdict["no"], key=lambda e: (e.distance, _place(e, goal)), default=None)
    return Choice(
        goal=goal,
        requirements=tuple(requirements),
        best=best,
        pool=tuple(pool),
        chances=chances,
        alike=tuple(sorted(alike, key=_needs)),
        runners=tuple(others[:RUNNERS]),
        maybe=tuple(maybe[:RUNNERS]),
        nearest=None if best is not None else missing,
        unmeasured=len(judged) - len(rivals),
        out=out,
    )


def _judge(
    found: Iterable[Candidate], goal: Goal, requirements: Sequence[Requirement]
) -> tuple[list[Judged], Counter[str]]:
    judged: list[Judged] = []
    out: Counter[str] = Counter()
    for each in found:
        if not each.ok:
            statuses = [point.status for _, point in each.evidence if point.status != "ok"]
            out[STATUS_WORDS[statuses[0]]] += 1
            continue
        figures = {name: each.figure(name) for name in (goal.name, *(r.name for r in requirements))}
        missing = [name for name, figure in figures.items() if not finite(figure)]
        if missing:
            out[f"without {missing[0]}"] += 1
            continue
        known = {name: figure for name, figure in figures.items() if figure is not None}
        judged.append(
            Judged(
                candidate=each,
                goal=known[goal.name],
                verdicts=tuple(
                    (need, known[need.name], _verdict(each, need, known[need.name]))
                    for need in requirements
                ),
            )
        )
    return judged, out


def _verdict(candidate: Candidate, need: Requirement, figure: Figure) -> Verdict:
    """How a candidate stands to a requirement: a plan has answered what its device asks."""
    planned = candidate.planned
    if need.asked == "device" and planned is not None and planned.fit is not None:
        return {"fits": "yes", "tight": "possibly", "does not fit": "no"}[planned.fit.verdict]  # type: ignore[return-value]
    return need.judge(figure)


def _place(each: Judged, goal: Goal) -> tuple[float, int, float, str]:
    """Where it comes in the order of the goal; of equals, what takes fewer GPUs and less memory.

    Predictions are equal where they read the same: no one should rent a thousand GPUs for what is
    rounded away.
    """
    cost = goal.cost(each.goal)
    if each.goal.kind == "predicted":
        cost = float(f"{cost:.{DIGITS}g}")
    return cost, *_needs(each), each.candidate.name


def _needs(each: Judged) -> tuple[int, float]:
    """The GPUs and the memory it takes."""
    return each.candidate.ranks, _size(each)


def _size(each: Judged) -> float:
    """The memory it takes, in whatever counter it has."""
    figures = (each.candidate.figure(name) for name in reversed(MEMORY))
    return next((figure.value for figure in figures if figure is not None), math.inf)


def _chances(pool: Sequence[Judged], goal: Goal) -> dict[str, float]:
    """How probable each one is to be the best of the pool, given the noise of measurements."""
    if not any(each.goal.error for each in pool):
        return {}
    found = pareto.probability(
        [[goal.cost(each.goal)] for each in pool], [[each.goal.error] for each in pool]
    )
    return {each.candidate.trial: chance for each, chance in zip(pool, found, strict=True)}


def _alike(one: Judged, other: Judged) -> bool:
    """Whether the goal cannot tell two candidates apart.

    Measurements by their noise; predictions, whose errors move all alike, where they read the same.
    """
    ours, theirs = one.goal, other.goal
    if ours.kind == "measured":
        return abs(ours.value - theirs.value) <= Z95 * math.hypot(ours.error, theirs.error)
    return amount(ours.name, ours.value, ours.unit) == amount(
        theirs.name, theirs.value, theirs.unit
    )
