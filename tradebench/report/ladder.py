"""The rows of a ladder: what each technique changes against the row before and the baseline."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tradebench.report.changes import Change, change, step
from tradebench.report.content import Cell, Column, cell, headline
from tradebench.report.fronts import Group
from tradebench.report.tables import TRAINING, Point

if TYPE_CHECKING:
    from tradebench.store import Run

NOTE = (
    "Each row keeps what is above it and adds one technique, or changes one setting. Changes of "
    "memory and time are shares, those of accuracy percentage points; ± is the half-width of the "
    "95 % interval."
)
PAIRED_NOTE = "Accuracies of two rows are compared item by item."
PREDICTED_NOTE = (
    "What is not known about a predicted device moves all rows alike, so that changes have no "
    "interval."
)


@dataclass(frozen=True, kw_only=True)
class Rise:
    """One measurement of a row: its value, and how it changed, as far as that can be said."""

    cell: Cell
    before: Change | None = None
    baseline: Change | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: what it adds, and the points that it may be compared with."""

    number: int
    point: Point
    added: str
    refusal: str = ""
    before: Point | None = None
    baseline: Point | None = None

    @property
    def remark(self) -> str:
        """Why there are no changes, where there are none."""
        if self.refusal or not self.point.estimates:
            return self.refusal or " ".join(self.point.reasons)
        if self.before is not None and not self.before.estimates:
            return "the row before has no values to compare with."
        return ""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One row and its measurements, one per column."""

    row: Row
    rises: tuple[Rise, ...]


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The rows in the order of the suite, row 0 being the baseline."""

    columns: tuple[Column, ...]
    rungs: tuple[Rung, ...]
    note: str


def ladder(run: Run, group: Group) -> Ladder | None:
    """Return the ladder that a run climbed; None where its suite is none.

    A row that differs from the one before in more than one thing has no changes, and says what
    else differs; with it end the changes against the baseline.
    """
    # A run that went on with another design still has the order of the one before.
    if run.header.get("design") != "ladder":
        return None
    order = [str(trial) for trial in run.header.get("ladder") or ()]
    by_trial = {point.trial: point for point in group.points}
    points = [by_trial[trial] for trial in order if trial in by_trial]
    if len(points) < 2:
        return None
    columns = headline(group)
    start = points[0]
    rungs = [_rung(run, group, columns, Row(number=0, point=start, added="the baseline"))]
    sound = True
    for number, (before, after) in enumerate(itertools.pairwise(points), start=1):
        taken = step(before, after)
        sound = sound and not taken.refusal
        row = Row(
            number=number,
            point=after,
            added=taken.added,
            refusal=taken.refusal,
            before=None if taken.refusal else before,
            baseline=start if sound else None,
        )
        rungs.append(_rung(run, group, columns, row))
    return Ladder(columns=columns, rungs=tuple(rungs), note=_note(group, rungs))


def _rung(run: Run, group: Group, columns: Sequence[Column], row: Row) -> Rung:
    def against(other: Point | None, column: Column) -> Change | None:
        if other is None:
            return None
        return change(group, run.directory, other, row.point, column.name)

    return Rung(
        row=row,
        rises=tuple(
            Rise(
                cell=cell(group, row.point, column),
                before=against(row.before, column),
                baseline=against(row.baseline, column),
            )
            for column in columns
        ),
    )


def _note(group: Group, rungs: Sequence[Rung]) -> str:
    changes = [rise.before for rung in rungs for rise in rung.rises if rise.before is not None]
    parts = [NOTE]
    if any(each.paired for each in changes):
        parts.append(PAIRED_NOTE)
    if group.kind == "predicted":
        parts.append(PREDICTED_NOTE)
    if group.training_note:
        parts.append(f"{group.training_note} {TRAINING}")
    return " ".join(parts)
