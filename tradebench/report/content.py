"""What page, Markdown and terminal show alike: the table, the endings, the environments."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from tradebench.report.fronts import MARKS, Group, Label
from tradebench.report.tables import MEMORY, SEVERITY, STATUS_WORDS, Point
from tradebench.report.units import Scale, clean, count, listed, scale, show, title
from tradebench.result import Environment, Kind, Phase, Status, canonical_json
from tradebench.suite.source import paragraphs
from tradebench.trial import SHAPE

if TYPE_CHECKING:
    from tradebench.store import Run
    from tradebench.techniques import Technique

FED = ("tokens_per_step", "padding_share")
MAX_COLUMNS = 12
MAX_HEADLINES = 5
MAX_ALIKE = 3
DOING: Mapping[Phase, str] = {
    "load": "loading",
    "compress": "compressing",
    "evaluate_before": "evaluating",
    "train": "training",
    "evaluate_after": "evaluating",
}
KIND_NOTES = {
    "measured": "Every number here was measured on the hardware named under Environment.",
    "predicted": "Every number here is a prediction; nothing was run on the hardware it is for.",
    "published": "Every number here was published by others, under their own conditions.",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measurement of the table, with one unit for all its cells."""

    name: str
    title: str
    scale: Scale

    @property
    def head(self) -> str:
        """Title and unit."""
        return f"{self.title}{self.scale.axis}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number as text, with its uncertainty, and the plain value to sort by.

    `margin` is the half-width of a measurement's 95 % interval, or both ends of a prediction's.
    """

    text: str = ""
    margin: str = ""
    value: float | None = None

    @property
    def full(self) -> str:
        """The number with its uncertainty on one line: `2.46 ± 0.1`, or `2.46 (2.06 to 3.77)`."""
        if not self.margin:
            return self.text
        return f"{self.text} {self.margin if self.margin.startswith('±') else f'({self.margin})'}"


Mood = Literal["good", "bad", "unsure", "quiet"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point: what happened, where it stands, and its numbers."""

    number: int
    name: str
    status: Status
    status_text: str
    mood: Mood
    reasons: tuple[str, ...]
    advice: str
    label: Label
    mark: str
    standing: str
    cells: tuple[Cell, ...]
    worst_phase: str = ""

    @property
    def outcome(self) -> str:
        """The status, and the phase that does not fit: a table shows the numbers of training."""
        return (
            f"{self.status_text} while {self.worst_phase}" if self.worst_phase else self.status_text
        )


def columns(group: Group) -> tuple[Column, ...]:
    """Return the objectives first, then memory, step time, throughput and accuracies.

    What a step trains on has a column where that is not the same for all points.
    """
    names = [each.name for each in group.objectives]
    # What a device must give decides about a plan; its other memories are in the CSV.
    if any(point.fit is not None for point in group.ok):
        names = ["needed_bytes", *names, "device_seconds_per_token", MEMORY[0]]
    else:
        names += MEMORY
    names += ["step_seconds", "tokens_per_second"]
    names += [name for name in FED if len({point.value(name) for point in group.ok}) > 1]
    for task in group.tasks:
        names += [f"accuracy_before.{task}", f"accuracy.{task}"]
    names.append("train_loss")
    found = []
    for name in dict.fromkeys(names):
        values = [p.estimates[name] for p in group.ok if name in p.estimates]
        if values:
            unit = scale(name, (each.value for each in values), values[0].unit)
            found.append(Column(name=name, title=title(name), scale=unit))
    return tuple(found[:MAX_COLUMNS])


def headline(group: Group) -> tuple[Column, ...]:
    """Return the few columns that a short table has room for.

    These are the objectives, one memory, the step time and accuracies after training.
    """
    wanted = {each.name for each in group.objectives} | {group.memory, "step_seconds"}
    kept = [
        each for each in columns(group) if each.name in wanted or each.name.startswith("accuracy.")
    ]
    return tuple(kept[:MAX_HEADLINES])


def rows(group: Group, shown: Iterable[Column]) -> tuple[Row, ...]:
    """Return one row per point, in the group's order."""
    wanted = tuple(shown)
    return tuple(_row(group, point, wanted) for point in group.ordered)


def _row(group: Group, point: Point, shown: tuple[Column, ...]) -> Row:
    found = group.standing(point)
    return Row(
        number=group.numbers[point.trial],
        name=point.name,
        status=point.status,
        status_text=point.status_text,
        mood=_mood(point),
        reasons=point.reasons,
        advice=advice(point),
        label=found.label,
        mark=MARKS[found.label],
        standing=standing(group, point),
        cells=tuple(cell(group, point, column) for column in shown),
        worst_phase=_worst_phase(point),
    )


def _worst_phase(point: Point) -> str:
    fit = point.fit
    if fit is None or point.verdict == "fits" or fit.phase == "train":
        return ""
    return DOING[fit.phase]


def _mood(point: Point) -> Mood:
    """Return whether the status is good news; that a point does not fit is none."""
    if point.status != "ok":
        return "quiet" if point.status == "skipped" else "bad"
    if point.verdict in (None, "fits"):
        return "good"
    return "unsure" if point.verdict == "tight" else "bad"


def advice(point: Point) -> str:
    """Return the nearest change that fits the device of a plan, where this does not."""
    return clean(point.fit.advice or "") if point.fit is not None else ""


def standing(group: Group, point: Point) -> str:
    """Return the probability of being on the front, and the numbers of points just like this.

    Where the point stands nowhere, say why, unless its status says so already. Between predictions
    nothing is left to chance.
    """
    found = group.standing(point)
    if found.probability is None:
        return found.reason if point.status == "ok" else ""
    if group.kind == "predicted":
        return ""
    like = sorted(group.numbers[trial] for trial in group.alike.get(point.trial, ()))
    if not like:
        return f"P = {found.probability:.2f}"
    more = f" and {len(like) - MAX_ALIKE} more" if len(like) > MAX_ALIKE else ""
    return f"P = {found.probability:.2f}, like {', '.join(map(str, like[:MAX_ALIKE]))}{more}"


def cell(group: Group, point: Point, column: Column) -> Cell:
    """Return one number of the table; empty where the point has none."""
    estimate = point.estimates.get(column.name)
    if estimate is None:
        return Cell()
    unit = Scale(column.scale.factor, "")
    ends = group.interval(point, column.name)
    if ends is None:
        margin = ""
    elif estimate.predicted:
        margin = " to ".join(map(unit.text, ends))
    else:
        margin = f"± {unit.text(ends[1] - estimate.value, 2)}"
    return Cell(text=unit.text(estimate.value), margin=margin, value=estimate.value)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """One reason why points did not end well, and which points those are."""

    status: str
    reason: str
    names: tuple[str, ...]


def endings(group: Group) -> tuple[Ending, ...]:
    """Return every reason why points did not end well, once, with its points, failures first."""
    found: dict[tuple[Status, str], list[str]] = {}
    for point in group.ordered:
        for result in point.results:
            if result.status != "ok":
                reason = clean(result.reason or "no reason was recorded")
                names = found.setdefault((result.status, reason), [])
                if point.name not in names:
                    names.append(point.name)
    ordered = sorted(found.items(), key=lambda item: SEVERITY.index(item[0][0]))
    return tuple(
        Ending(status=STATUS_WORDS[status], reason=reason, names=tuple(names))
        for (status, reason), names in ordered
    )


def unfit(group: Group) -> tuple[Ending, ...]:
    """Return the nearest changes that fit, with the points of a plan that do not."""
    found: dict[tuple[str, str], list[str]] = {}
    for point in group.ordered:
        if point.fit is not None and point.fit.verdict != "fits":
            told = advice(point) or "no other point of the suite fits either"
            found.setdefault((point.fit.verdict, told), []).append(point.name)
    return tuple(
        Ending(status=verdict, reason=told, names=tuple(names))
        for (verdict, told), names in found.items()
    )


@dataclass(frozen=True, kw_only=True)
class Term:
    """What a part of points' names stands for, what its settings are, and its source."""

    name: str
    meaning: str
    settings: tuple[str, ...]
    source: str


def glossary(group: Group) -> tuple[Term, ...]:
    """Return every technique that a point's name speaks of, by slot, with what is set of it."""
    found: dict[str, list[Technique]] = {}
    for point in group.points:
        for part in point.asked.techniques if point.asked is not None else ():
            found.setdefault(f"{part.slot}: {part.method}", []).append(part)
    return tuple(
        Term(
            name=name,
            meaning=parts[0].summary(),
            settings=tuple(_settings(parts)),
            source=parts[0].cite,
        )
        for name, parts in sorted(found.items())
    )


def _settings(parts: Sequence[Technique]) -> Iterator[str]:
    """Describe the fields that some point of a technique sets."""
    named = {name for part in parts for name in part.model_fields_set}
    for name, field in type(parts[0]).model_fields.items():
        if name in named and name != "method" and field.description:
            yield f"{name}: {field.description}"


def workload(group: Group) -> str:
    """Return what one step of one device trains on; empty where points differ in it."""
    budgets = [point.results[0].budget for point in group.points]
    shapes = {tuple(budget.get(name) for name in SHAPE) for budget in budgets}
    if len(shapes) > 1 or any(name not in budgets[0] for name in SHAPE):
        return ""
    shape = {name: int(budgets[0][name]) for name in SHAPE}
    return (
        f"One step trains on {count(shape['batch'], 'sequence')} of at most "
        f"{shape['sequence']:,} tokens"
        + (f", {shape['accumulation']} times over" if shape["accumulation"] > 1 else "")
        + (", on every device." if any(point.devices > 1 for point in group.points) else ".")
    )


@dataclass(frozen=True, kw_only=True)
class Place:
    """One set of software and hardware: titled facts, and how many Results were made there."""

    results: str
    parts: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def places(run: Run) -> tuple[Place, ...]:
    """Return every place that Results were made in, the most used first."""
    ordered = sorted(_by_place(run).items(), key=lambda item: -len(item[1]))
    return tuple(
        Place(
            results=count(len(each), f"{kind} result"),
            parts=_parts(each),
        )
        for (kind, _), each in ordered
    )


def _by_place(run: Run) -> dict[tuple[Kind, str], list[Environment]]:
    """Group environments by kind, software and hardware; code and variables go with techniques."""
    found: dict[tuple[Kind, str], list[Environment]] = {}
    for result in run.results:
        here = result.environment
        key = canonical_json({"software": dict(here.software), "hardware": dict(here.hardware)})
        found.setdefault((result.kind, key), []).append(here)
    return found


def _parts(
    environments: Sequence[Environment],
) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    parts = (
        ("Hardware", [each.hardware for each in environments]),
        ("Software", [each.software for each in environments]),
        ("Code", [each.code for each in environments]),
        ("Variables", [each.variables for each in environments]),
        ("Not known", [each.missing for each in environments]),
    )
    merged = ((name, _merged(facts)) for name, facts in parts)
    return tuple(
        (name, tuple((_fact_name(key), " or ".join(values)) for key, values in facts.items()))
        for name, facts in merged
        if facts
    )


def _merged(facts: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return every different value of every fact."""
    found: dict[str, dict[str, None]] = {}
    for each in facts:
        for key, value in each.items():
            found.setdefault(key, {})[_fact(key, value)] = None
    return {key: list(values) for key, values in found.items()}


def _fact_name(key: str) -> str:
    return clean(key.removesuffix("_bytes").replace("_", " "))


def _fact(key: str, value: object) -> str:
    if value is None:
        return "not known"
    if value in ([], {}, ""):
        return "none"
    if key.endswith("_bytes") and isinstance(value, int | float):
        return show(key, value, "B")
    return clean(str(value))


def cautions(run: Run, groups: Iterable[Group]) -> tuple[str, ...]:
    """Return what a reader of the numbers must know, each sentence once, with its points."""
    points: dict[str, set[str]] = {}
    for group in groups:
        for point in group.points:
            for result in point.results:
                for warning in result.warnings:
                    points.setdefault(clean(warning), set()).add(point.name)
    found = [
        f"{text} ({min(names) if len(names) == 1 else count(len(names), 'point')})"
        for text, names in points.items()
    ]
    found += _shared_machines(run)
    # A prediction is for its device, wherever it is made.
    if sum(kind == "measured" for kind, _ in _by_place(run)) > 1:
        found.append(
            "The points come from different environments: memory compares between machines with "
            "the same device, step time does not."
        )
    code = _merged(result.environment.code for result in run.results)
    changed = [_fact_name(key) for key, values in code.items() if len(values) > 1]
    if changed:
        found.append(f"The code changed between points of this run: {listed(changed)}.")
    if any(_never_repeated(group) for group in groups):
        found.append(
            "Every point ran once: how far runs differ from each other is not known, and no "
            "interval here contains it."
        )
    return (*found, *(clean(problem) for problem in run.problems))


def _shared_machines(run: Run) -> list[str]:
    """Return what to say of times that were taken while other trials ran on the same processor."""
    surroundings = [each.environment.variables for each in run.results if each.kind == "measured"]
    # Trials with devices of their own do not wait for each other.
    jobs = [
        int(each["jobs"])
        for each in surroundings
        if "jobs" in each and not each.get("CUDA_VISIBLE_DEVICES")
    ]
    if not jobs:
        return []
    return [
        f"{count(len(jobs), 'result')} came about while up to {max(jobs)} trials ran at once on "
        "one processor and slowed each other: their step times compare only with such."
    ]


def _never_repeated(group: Group) -> bool:
    return (
        group.kind == "measured" and bool(group.ok) and all(len(p.results) == 1 for p in group.ok)
    )


def command(run: Run) -> str:
    """Return the command line that runs this again."""
    argv = [str(word) for word in run.header.get("argv") or ()]
    if argv and PurePath(argv[0]).name in {"tradebench", "__main__.py"}:
        argv = argv[1:]
    return shlex.join(["tradebench", *argv]) if argv else ""


def heading(run: Run) -> str:
    """Return the suite's name."""
    return clean(str(run.header.get("suite") or "tradebench"))


def question(run: Run) -> str:
    """Return the question that the suite asks."""
    return clean(str(run.header.get("question") or ""))


def remarks(run: Run) -> tuple[str, ...]:
    """Return what the suite says about its question, a paragraph each."""
    return tuple(clean(each) for each in paragraphs(str(run.header.get("suite_text") or ""))[1:])
