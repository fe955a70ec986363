"""Points that several machines made: what they agree on, and what they do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tradebench.report.fronts import Z95, Group, standard_error
from tradebench.report.tables import MEMORY, STATUS_WORDS, pool
from tradebench.report.units import clean, count, listed, shorten, show, title
from tradebench.result import Kind, Result
from tradebench.store import UNMADE, last

if TYPE_CHECKING:
    from tradebench.store import Run

HEADING = "Made by several machines"
NOTE = (
    "None of these is averaged with its twin: the tables hold the Result that is said to stand. A "
    "difference is beyond noise where 19 of 20 pairs of runs would lie closer, by the spread "
    "between this run's repeats and the test items."
)

# Counted, not timed: where nothing else differs these are equal.
_EXACT = frozenset({"peak_tensor_bytes", "trainable_parameters"})
_MAX_NAMES = 8


def doubles(run: Run, groups: Sequence[Group]) -> tuple[str, ...]:
    """Return a sentence for each point that several writers have measured, disagreements first.

    Predictions are left out: they are computed, and two machines compute the same.
    """
    twins = _twins(run)
    stands = {(each.kind, each.trial, each.repeat): each for each in run.results}
    found, alike = [], []
    for group in groups if twins else ():
        for point in group.points:
            for (kind, trial, repeat), versions in twins.items():
                if (kind, trial) != (point.kind, point.trial):
                    continue
                ours = stands.get((kind, trial, repeat))
                name = point.name if repeat == 0 else f"{point.name}, repeat {repeat}"
                sentence = _sentence(name, versions, ours, group)
                if sentence:
                    found.append(sentence)
                else:
                    alike.append(f"{name} ({listed(versions)})")
    if alike:
        more = len(alike) - _MAX_NAMES
        also = f" and {count(more, 'other')}" if more > 0 else ""
        found.append(f"No disagreement: {'; '.join(alike[:_MAX_NAMES])}{also}.")
    return tuple(map(clean, found))


def _twins(run: Run) -> dict[tuple[Kind, str, int], dict[str, Result]]:
    """By point and repeat, the Results of more than one writer, or of one that does not stand."""
    made: dict[tuple[Kind, str, int], dict[str, Result]] = {}
    for writer, attempts in run.writers.items():
        for key, result in last(attempts).items():
            if result.kind == "measured" and result.status not in UNMADE:
                made.setdefault(key, {})[writer] = result
    stands = {(each.kind, each.trial, each.repeat) for each in run.results}
    return {
        key: versions for key, versions in made.items() if len(versions) > 1 or key not in stands
    }


def _sentence(
    name: str, versions: Mapping[str, Result], ours: Result | None, group: Group
) -> str | None:
    """Return what the machines disagree on, and whose Result stands; None where they agree."""
    writer = next((each for each, result in versions.items() if result == ours), None)
    if ours is None or writer is None:
        return (
            f"{shorten(name, 120)}: made by {listed(versions)} alone, in an environment that the "
            "other repeats were not made in, and left out."
        )
    said = []
    for other, theirs in versions.items():
        if other != writer:
            said += _differences(writer, ours, other, theirs, group)
    if not said:
        return None
    return f"{shorten(name, 120)}: that of {writer} stands. {' '.join(said)}"


def _differences(writer: str, ours: Result, other: str, theirs: Result, group: Group) -> list[str]:
    said = []
    if changed := ours.environment.differences(theirs.environment):
        said.append(f"{other} differs in {listed(changed)}.")
    if ours.status != theirs.status:
        mine, twin = STATUS_WORDS[ours.status], STATUS_WORDS[theirs.status]
        said.append(f"It ended as {mine} ({writer}) and as {twin} ({other}).")
    for name in _compared(ours):
        if name in theirs.measurements:
            said += _difference(name, writer, ours, other, theirs, group)
    return said


def _compared(result: Result) -> list[str]:
    """Return what people read first."""
    wanted = {*MEMORY, "step_seconds", "tokens_per_second", "train_loss", "trainable_parameters"}
    return [
        name
        for name in result.measurements
        if name in wanted or (name.startswith("accuracy.") and name.count(".") == 1)
    ]


def _difference(
    name: str, writer: str, ours: Result, other: str, theirs: Result, group: Group
) -> list[str]:
    mine, twin = (pool([each.measurements[name]]) for each in (ours, theirs))
    if mine.value == twin.value:
        return []
    relative = group.relative.get(name, 0.0)
    noise = Z95 * math.hypot(*(standard_error(each, relative) for each in (mine, twin)))
    if name not in _EXACT and noise and abs(mine.value - twin.value) <= noise:
        return []
    pair = (
        f"{title(name)} is {show(name, mine.value, mine.unit)} ({writer}) and "
        f"{show(name, twin.value, twin.unit)} ({other})"
    )
    if name in _EXACT:
        return [f"{pair}, which should be equal."]
    return [f"{pair}, beyond noise."] if noise else [f"{pair}; how much is noise is not known."]
