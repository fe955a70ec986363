"""The front as a whole over many runs: one number that says whether all of it got better or worse.

That is the share which the front covers of the space between perfection and a corner, and it
compares only where the corner is the same. The suite's limits are the corner; where it sets none,
that lies a tenth beyond the worst value of the first run that is compared. Compared is what has
the objectives, the limits and the points of the newest run that came to its end; what differs in
these is named and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tradebench.regression import comparability
from tradebench.regression.history import Change, changes, course
from tradebench.report.cover import MAX_POINTS, Cover, cover
from tradebench.report.fronts import Group, groups
from tradebench.report.units import listed, significant, title
from tradebench.result import Kind, canonical_json, digest
from tradebench.store import Run

FEWEST = 2  # runs of which one can be worse
MAX_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run that is not compared, and why."""

    run: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FrontSeries:
    """The share covered by one front over runs, oldest first, with its 95 % intervals.

    `reference` maps each objective to its value at the corner, which is the suite's own where
    `fixed` and otherwise, in part, follows from the worst of the first run. Where nothing compares
    there are no runs.
    """

    kind: Kind
    front: str
    objectives: tuple[str, ...]
    reference: Mapping[str, float]
    corner: str
    fixed: bool
    runs: tuple[str, ...]
    started: tuple[str | None, ...]
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    changes: tuple[Change, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, kw_only=True)
class _Front:
    """What one run has to say of one front."""

    run: Run
    group: Group

    @property
    def name(self) -> str:
        return self.run.directory.resolve().name


def series(
    runs: Sequence[Run], kinds: Sequence[Kind], *, least: float = 0.0, change_points: bool = True
) -> list[FrontSeries]:
    """The history of every front that two or more of these runs, oldest first, may have in common.

    Fronts of different kinds of evidence, models or hardware are series of their own.
    """
    found: dict[str, list[_Front]] = {}
    for run in runs:
        for group in groups(run):
            if group.kind in kinds and len(group.objectives) > 1:
                key = canonical_json({"model": dict(group.model), "where": _where(group)})
                found.setdefault(f"{group.kind} {key}", []).append(_Front(run=run, group=group))
    several = (each for each in found.values() if len(each) >= FEWEST)
    return [_series(each, least, change_points) for each in several]


def _where(group: Group) -> list[str]:
    """What has to be equal for the objectives of two runs to be comparable."""
    if group.kind != "measured":
        return sorted({point.fit.device for point in group.points if point.fit is not None})
    families = {comparability.family(each.name, each.unit) for each in group.objectives}
    seen = set()
    for point in group.ok:
        here = point.results[0].environment
        parts = {
            "software": here.software,
            "hardware": here.hardware,
            "variables": here.variables,
        }
        known = comparability.facts(parts, here.code)
        seen |= {digest(comparability.identity(family, known)) for family in sorted(families)}
    return sorted(seen)


def _series(found: Sequence[_Front], least: float, change_points: bool) -> FrontSeries:
    ended = [each for each in found if each.run.header.get("ended") is not None]
    newest = (ended or found)[-1].group
    left_out = [
        LeftOut(run=each.name, reason=reason)
        for each in found
        if (reason := _difference(each.group, newest))
    ]
    named = {each.run for each in left_out}
    reference: Mapping[str, float] | None = None
    kept: list[tuple[_Front, Cover]] = []
    fixed = True
    for each in found:
        if each.name in named:
            continue
        covered = cover(each.group, reference)
        if covered is None:
            left_out.append(LeftOut(run=each.name, reason=_uncovered(each.group)))
            continue
        if reference is None:
            reference, fixed = covered.reference, covered.fixed
        kept.append((each, covered))
    names = tuple(each.name for each, _ in kept)
    values = tuple(covered.share for _, covered in kept)
    return FrontSeries(
        kind=newest.kind,
        front=newest.title,
        objectives=tuple(each.name for each in newest.objectives),
        reference=reference or {},
        corner=kept[0][1].corner if kept else "",
        fixed=fixed,
        runs=names,
        started=tuple(each.run.header.get("started") for each, _ in kept),
        values=values,
        low=tuple(covered.low for _, covered in kept),
        high=tuple(covered.high for _, covered in kept),
        changes=changes(names, values, least) if change_points else (),
        left_out=tuple(left_out),
    )


def _difference(group: Group, newest: Group) -> str:
    """In what a run differs from the newest one, if that keeps their fronts from comparison."""
    compared: tuple[tuple[str, Callable[[Group], object]], ...] = (
        ("objectives", lambda each: [one.name for one in each.objectives]),
        ("limits", lambda each: {one.name: one.limit for one in each.objectives}),
        ("points", lambda each: {point.trial for point in each.points}),
    )
    names = [name for name, said in compared if said(group) != said(newest)]
    # Without the same objectives their limits are no news.
    return f"other {names[0]}" if names else ""


def _uncovered(group: Group) -> str:
    """Why a front has no share."""
    chances = [group.standing(point).probability for point in group.ok]
    if sum(chance is not None for chance in chances) < FEWEST:
        return "fewer than two points have every objective"
    if sum(bool(chance) for chance in chances) > MAX_POINTS:
        return f"more than {MAX_POINTS} points may be on the front"
    return "a value lies outside of what a share can be counted of"


def text(found: Sequence[FrontSeries]) -> str:
    """Two lines per front, and those of its changes and of the runs that were left out."""
    lines = []
    for each in found:
        names = listed(title(name).lower() for name in each.objectives)
        lines.append(f"The front as a whole, over {names}, {each.front}:")
        lines.append(_course(each) if len(each.runs) >= FEWEST else "  no two runs compare")
        lines += [
            f"    from {change.run} on: {_percent(change.before)} -> {_percent(change.after)} "
            f"({100 * change.share:+.1f} %), advice"
            for change in each.changes
        ]
        lines += _left_out(each)
    return "\n".join(lines)


def _course(found: FrontSeries) -> str:
    """What the front covered from run to run, and what that is a share of."""
    *_, before, now = map(_percent, found.values)
    low, high = _percent(found.low[-1]), _percent(found.high[-1])
    span = "" if low == high else f" ({low} to {high})"
    worst = (
        ""
        if found.fixed
        else f" (where the suite sets no limit, a tenth beyond the worst of {found.runs[0]})"
    )
    return (
        f"  {course(found.values)} hypervolume {now}{span} ({len(found.runs)} runs; {before} in "
        f"the run before): the share of all that is better than {found.corner}{worst} which it "
        "reaches"
    )


def _percent(share: float) -> str:
    return f"{significant(100 * share)} %"


def _left_out(found: FrontSeries) -> list[str]:
    """A line for each reason, with the runs that were left out for it."""
    runs: dict[str, list[str]] = {}
    for each in found.left_out:
        runs.setdefault(each.reason, []).append(each.run)
    lines = []
    for reason, names in runs.items():
        more = len(names) - MAX_NAMES
        told = listed([*names[:MAX_NAMES], *([f"{more} more"] if more > 0 else [])])
        lines.append(f"    not compared, {reason}: {told}")
    return lines
