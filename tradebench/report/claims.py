"""One technique at a time: what it changes here, how complex it is, and what is said about it.

Measured and predicted changes stand in columns of their own, and a claim is judged by one kind of
evidence alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tradebench.errors import UserError
from tradebench.published.claims import Claim, claims_about
from tradebench.report import predictions
from tradebench.report.changes import Change, change, label, step
from tradebench.report.complexity import DEFINITION, complexity
from tradebench.report.fronts import Group, groups
from tradebench.report.series import context
from tradebench.report.tables import Point
from tradebench.report.units import title
from tradebench.result import CATEGORIES
from tradebench.techniques import catalogue

if TYPE_CHECKING:
    from tradebench.store import Run

Word = Literal["supported", "not supported", "cannot be said here"]
Key = tuple[str, str, frozenset[str]]

SLACK = 0.10
LEAST_SHARE = 0.10
RULE = (
    f"A claim about a number is supported where the change here comes within {100 * SLACK:.0f} "
    "percentage points of it (a saving may be larger, a cost smaller) with the whole of its "
    "95 % interval, and not supported where the whole interval misses it. It is judged in the "
    "plainest company in which it can be: a part of the memory only where it is at least "
    f"{100 * LEAST_SHARE:.0f} % of the peak."
)
NOTE = (
    "Each technique against the same point without it, all else equal. Changes of memory and time "
    "are shares, those of accuracy percentage points; ± is the half-width of the 95 % interval."
)
ELSEWHERE = "accuracy on the reference model says nothing about the models that it is about"
NO_PREDICTION = "it depends on the size of the model, and no plan of a larger one was given"
NO_PAIR = "this run has no two points that it alone tells apart"
# What a technique is compared with in a slot that every model has something in.
PLAIN = {"precision": "fp32"}
CANNOT: Word = "cannot be said here"


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """A point with a technique and the same without it; `changes` maps a measurement to a change.

    `refusal` says why the two are not compared, where they are not.
    """

    group: Group
    slot: str
    before: Point
    after: Point
    refusal: str
    changes: Mapping[str, Change]

    @property
    def name(self) -> str:
        """The technique's label."""
        return label(self.slot, self.after.settings[self.slot])

    @property
    def key(self) -> tuple[str, str, frozenset[str]]:
        """What pairs of either kind must share to stand in one row: technique and company."""
        company = self.after.settings.keys() - {self.slot, *PLAIN}
        return self.slot, str(self.after.settings[self.slot]["method"]), frozenset(company)

    def text(self, name: str) -> str:
        """A change as text; empty where there is none."""
        found = self.changes.get(name)
        return "" if found is None else found.text


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a claim here, and why; `name` is the technique's."""

    name: str
    claim: Claim
    word: Word
    reason: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One technique in one company: its pairs of either kind, and its complexity."""

    complexity: str
    measured: Pairing | None
    predicted: Pairing | None

    @property
    def pairings(self) -> tuple[Pairing, ...]:
        """The pairs that there are, the measured one first."""
        return tuple(each for each in (self.measured, self.predicted) if each is not None)

    @property
    def name(self) -> str:
        """The technique's label, and that of the other kind where it has other settings."""
        return " / ".join(dict.fromkeys(each.name for each in self.pairings))

    @property
    def without(self) -> str:
        """What it was added to."""
        return " / ".join(dict.fromkeys(each.before.name for each in self.pairings))

    @property
    def remarks(self) -> tuple[str, ...]:
        """Why changes are missing, where they are."""
        return tuple(each.refusal for each in self.pairings if each.refusal)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every technique that was tried alone, and what is said about it.

    `shown` holds, for either kind, the group and the measurements whose changes are shown.
    """

    entries: tuple[Entry, ...]
    verdicts: tuple[Verdict, ...]
    shown: tuple[tuple[Group, tuple[str, ...]], ...]
    notes: tuple[str, ...]

    @property
    def heads(self) -> tuple[str, ...]:
        """A heading for every change, with its kind and its model."""
        return tuple(
            f"{title(name)}, {group.title}" for group, names in self.shown for name in names
        )

    def cells(self, entry: Entry) -> tuple[str, ...]:
        """A technique's changes in the order of the headings."""
        by_kind = {pairing.group.kind: pairing for pairing in entry.pairings}
        return tuple(
            by_kind[group.kind].text(name) if group.kind in by_kind else ""
            for group, names in self.shown
            for name in names
        )


def comparison(run: Run, beside: Run | None = None) -> Comparison | None:
    """Return what a run of one technique at a time found; None where it was none.

    `beside` is a run whose predictions are set beside the measurements: a plan at another size.

    Raises:
        UserError: The run beside this one predicts nothing.
    """
    if run.header.get("design") != "each" and beside is None:
        return None
    source = run if beside is None else beside
    measured, predicted = first(run, "measured"), first(source, "predicted")
    if beside is not None and predicted is None:
        raise UserError(f"{beside.directory} holds no prediction; make it by tradebench plan")
    ours = _pairings(run, measured) if measured else {}
    theirs = _pairings(source, predicted) if predicted else {}
    if not ours and not theirs:
        return None
    entries = [_entry(ours.get(key), theirs.get(key)) for key in _ordered({**ours, **theirs})]
    notes = [NOTE, DEFINITION, RULE]
    if measured is not None and measured.tasks:
        notes += measured.accuracy_notes
    return Comparison(
        entries=tuple(entries),
        verdicts=tuple(_verdicts(entries)),
        shown=tuple((group, _names(group)) for group in (measured, predicted) if group is not None),
        notes=tuple(notes),
    )


def first(run: Run, kind: str) -> Group | None:
    """Return the first group of a kind that has values."""
    found = predictions.apart(groups(run))
    return next((group for group in found if group.kind == kind and group.ok), None)


def _names(group: Group) -> tuple[str, ...]:
    """Return the measurements whose changes are shown: memory, time, accuracies sought."""
    wanted = [each.name for each in group.objectives if each.name.startswith("accuracy.")]
    names = [group.memory, "step_seconds", *wanted]
    return tuple(name for name in names if name and any(name in p.estimates for p in group.ok))


def _ordered(keys: Iterable[Key]) -> list[Key]:
    """Return the keys in the order of the catalogue, the plainest company of each first."""
    methods = [(slot, method) for slot, methods in catalogue().items() for method in methods]
    known = [key for key in keys if key[:2] in methods]
    return sorted(known, key=lambda key: (methods.index(key[:2]), len(key[2])))


def _entry(measured: Pairing | None, predicted: Pairing | None) -> Entry:
    slot, method, _ = next(each.key for each in (measured, predicted) if each is not None)
    return Entry(complexity=complexity(slot, method).text, measured=measured, predicted=predicted)


def _pairings(run: Run, group: Group) -> dict[Key, Pairing]:
    """Return every technique with each company that it was tried in, the first pair of each."""
    found: dict[Key, Pairing] = {}
    for slot, before, after in _pairs(group.ok):
        refusal = step(before, after).refusal
        changes = {} if refusal else _changes(run, group, before, after)
        pairing = Pairing(
            group=group, slot=slot, before=before, after=after, refusal=refusal, changes=changes
        )
        found.setdefault(pairing.key, pairing)
    return found


def _changes(run: Run, group: Group, before: Point, after: Point) -> dict[str, Change]:
    every = {name: change(group, run.directory, before, after, name) for name in after.estimates}
    return {name: found for name, found in every.items() if found is not None}


def _pairs(points: Sequence[Point]) -> Iterator[tuple[str, Point, Point]]:
    """Return every slot with a point that has it and the same point without it."""
    by_context = {context(point): point for point in points}
    plain = {
        (slot, context(point, slot)): point
        for point in points
        for slot, method in PLAIN.items()
        if point.settings.get(slot, {}).get("method") == method
    }
    for after in points:
        for slot in after.settings:
            rest = context(after, slot)
            before = plain.get((slot, rest)) or by_context.get(rest)
            if before is not None and before is not after:
                yield slot, before, after


def _verdicts(entries: Sequence[Entry]) -> Iterator[Verdict]:
    """Return every claim about a technique that was tried, with what becomes of it."""
    by_technique: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        by_technique.setdefault(entry.pairings[0].key[:2], []).append(entry)
    for (slot, method), members in by_technique.items():
        for claim in claims_about(slot, method):
            pairings = [
                pairing
                for entry in members
                for pairing in entry.pairings
                if pairing.group.kind == claim.evidence
            ]
            yield judge(members[0].name, claim, pairings)


def judge(name: str, claim: Claim, pairings: Sequence[Pairing]) -> Verdict:
    """Return what becomes of a claim by these pairs, all of the kind that can decide it.

    The first that can decide it does; where another decides otherwise, its reason is told as well.
    """
    if claim.cannot is not None or claim.change is None:
        reason = claim.cannot or ELSEWHERE
    elif not pairings:
        reason = NO_PAIR if claim.evidence == "measured" else NO_PREDICTION
    else:
        judged = [_judged(claim, claim.change, pairing) for pairing in pairings]
        decided = [each for each in judged if each[0] != CANNOT]
        word, reason = next(iter(decided), judged[0])
        other = next((each for each in decided if each[0] != word), None)
        if other is not None:
            reason = f"{reason}. Elsewhere {other[0]}: {other[1]}"
        return Verdict(name=name, claim=claim, word=word, reason=reason)
    return Verdict(name=name, claim=claim, word=CANNOT, reason=reason)


def _judged(claim: Claim, claimed: float, pairing: Pairing) -> tuple[Word, str]:
    """Return what one pair says about a number that is claimed, and why."""
    group, name = pairing.group, _measurement(claim, pairing.group)
    where = f"added to {pairing.before.name}, {group.title}"
    found = pairing.changes.get(name)
    if pairing.refusal or found is None:
        return (
            CANNOT,
            pairing.refusal or f"no change of {title(name).lower()} is known when {where}",
        )
    if claim.quantity in CATEGORIES:
        whole = sum(pairing.before.value(f"peak_{each}_bytes") or 0.0 for each in CATEGORIES)
        share = (pairing.before.value(name) or 0.0) / whole
        if share < LEAST_SHARE:
            return (
                CANNOT,
                f"{claim.quantity} are {100 * share:.1f} % of the peak where it is {where}",
            )
    mark = claimed + SLACK
    low, high = found.bounds
    reason = f"{title(name).lower()} {found.text} when {where}; claimed {100 * claimed:+.0f} %"
    if low <= mark < high:
        return CANNOT, f"the interval is too wide: {reason}"
    return "supported" if high <= mark else "not supported", reason


def _measurement(claim: Claim, group: Group) -> str:
    """Return the name of what a claim is about."""
    if claim.quantity == "memory":
        return group.memory or "peak_tensor_bytes"
    return "step_seconds" if claim.quantity == "time" else f"peak_{claim.quantity}_bytes"
