"""Predictions beside measurements of the same point, and how far they are off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tradebench.report.fronts import Group
from tradebench.report.units import count, show, title

HEADING = "Predicted and measured"


@dataclass(frozen=True, kw_only=True)
class PredictionError:
    """A quantity of a point that was both predicted and measured; `error` is a signed share."""

    name: str
    measurement: str
    predicted: str
    measured: str
    error: float

    @property
    def error_text(self) -> str:
        """The error in percent; one that rounds to nothing has no sign."""
        text = f"{self.error:+.2%}"
        return text if text.strip("+-0.%") else text[1:]


def prediction_errors(groups: Sequence[Group]) -> list[PredictionError]:
    """Return how far predictions are from measurements of the same point, worst first."""
    measured = {p.trial: p for group in groups if group.kind == "measured" for p in group.ok}
    found = []
    for group in groups:
        for point in group.ok if group.kind == "predicted" else ():
            twin = measured.get(point.trial)
            shared = [name for name in (group.memory, "step_seconds") if name]
            for name in shared if twin is not None else ():
                ours, theirs = point.estimates.get(name), twin and twin.estimates.get(name)
                if ours and theirs and theirs.value:
                    found.append(
                        PredictionError(
                            name=point.name,
                            measurement=title(name),
                            predicted=show(name, ours.value, ours.unit),
                            measured=show(name, theirs.value, theirs.unit),
                            error=ours.value / theirs.value - 1,
                        )
                    )
    return sorted(found, key=lambda each: -abs(each.error))


def summary(errors: Sequence[PredictionError]) -> list[str]:
    """Return a sentence for each quantity: its median and its largest error."""
    by_name: dict[str, list[PredictionError]] = {}
    for each in errors:
        by_name.setdefault(each.measurement, []).append(each)
    return [
        f"{name} of {count(len(found), 'point')}: median error "
        f"{median(abs(each.error) for each in found):.2%}, largest {found[0].error_text} "
        f"({found[0].name})."
        for name, found in by_name.items()
    ]


def apart(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Return the groups that have a front, figures and a table of their own.

    A rehearsal has none: memory that was predicted for no device, of points that were all measured
    as well, has nothing to tell but how far it is off.
    """
    measured = {p.trial for group in groups if group.kind == "measured" for p in group.ok}
    return tuple(group for group in groups if not _rehearses(group, measured))


def _rehearses(group: Group, measured: set[str]) -> bool:
    return group.kind == "predicted" and all(
        point.trial in measured and point.fit is None and "step_seconds" not in point.estimates
        for point in group.points
    )
