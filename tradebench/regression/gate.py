"""The gate: a verdict for every point and metric of a baseline, and one for the whole check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from tradebench.regression import comparability
from tradebench.regression.baseline import Baseline
from tradebench.regression.comparability import Family
from tradebench.regression.evidence import (
    FAMILY,
    Evidence,
    decide,
    exact,
    holm,
    items,
    joined,
    pairs,
    runs,
)
from tradebench.regression.outcomes import Outcomes
from tradebench.regression.policy import Rule
from tradebench.regression.sample import Key, Point, Sample, Series, Value
from tradebench.result import CATEGORIES, Kind, Status

Outcome = Literal["ok", "improved", "regressed", "inconclusive", "incomparable", "new", "missing"]

REGRESSED, NOTHING_TO_COMPARE, INCONCLUSIVE = 1, 3, 4
STATUS = "status"  # the metric whose verdict is about how a point ended
# An ending that says that the code got worse; any other says that nothing was measured.
WORSE: frozenset[Status] = frozenset({"oom", "diverged", "timeout", "failed"})
WORDS: Mapping[Status, str] = {
    "ok": "ok",
    "oom": "out of memory",
    "diverged": "diverged",
    "timeout": "timed out",
    "failed": "failed",
    "killed": "killed",
    "skipped": "skipped",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is said of one metric of one point.

    `base` and `new` are means over runs in `unit`. `change`, `interval` (99 %), `margin` and
    `detectable` are in `unit` too and count positive where worse. `p` is one-sided, `adjusted` for
    the number of tests in the check. `why` says what a reader needs beside the numbers, and `rule`
    how it was decided. What is not `gate`d is advice.
    """

    kind: Kind
    trial: str
    point: str
    metric: str
    outcome: Outcome
    unit: str = "1"
    better: str = "less"
    base: float | None = None
    new: float | None = None
    change: float | None = None
    interval: tuple[float, float] | None = None
    margin: float | None = None
    detectable: float | None = None
    p: float | None = None
    adjusted: float | None = None
    baseline_runs: int = 0
    new_runs: int = 0
    rule: str = ""
    why: str = ""
    gate: bool = True

    @property
    def key(self) -> Key:
        """The point it is about."""
        return (self.kind, self.trial)

    @property
    def stops(self) -> bool:
        """Whether it ends a check with 1."""
        return self.gate and self.outcome == "regressed"


@dataclass(frozen=True, kw_only=True)
class Check:
    """All verdicts, and what else differs between the two sides.

    `confirmations` is how often regressed points were run again before they were called so.
    """

    verdicts: tuple[Verdict, ...]
    causes: tuple[str, ...]
    baseline_runs: tuple[str, ...]
    new_runs: tuple[str, ...]
    confirmations: int = 0

    def of(self, *outcomes: Outcome) -> tuple[Verdict, ...]:
        """The verdicts of these outcomes."""
        return tuple(each for each in self.verdicts if each.outcome in outcomes)

    @property
    def compared(self) -> int:
        """How many verdicts rest on two values."""
        return len(self.of("ok", "improved", "regressed", "inconclusive"))

    def exit_code(self, *, strict: bool = False, allow_missing: bool = False) -> int:
        """0, or 1 for a regression, 3 where a comparison is lacking, 4 (strict) where unsure.

        A single metric that another machine cannot be held to is no lack as long as its point is
        compared by others; a point or metric that is gone is one, because a gate that measures
        less and less stays green.
        """
        if any(verdict.stops for verdict in self.verdicts):
            return REGRESSED
        gone = [
            verdict
            for verdict in self.verdicts
            if verdict.outcome == "missing"
            or (verdict.outcome == "incomparable" and verdict.metric == STATUS)
        ]
        if not self.compared or (gone and not allow_missing):
            return NOTHING_TO_COMPARE
        unsure = [each for each in self.of("inconclusive", "incomparable") if each.gate]
        return INCONCLUSIVE if strict and unsure else 0


def judge(
    baseline: Baseline,
    new: Sample,
    new_items: Outcomes,
    *,
    confirmations: int = 0,
    in_turn: bool = False,
) -> Check:
    """Hold the runs of `new` against a baseline.

    With several new runs a change counts only if every one of them shows it: they are one run and
    its `confirmations`. Without any, p-values are adjusted for their number. `in_turn` says that
    the runs of both sides were made in turn on one machine, and are pairs.
    """
    comparison = _Comparison(baseline=baseline, new=new, new_items=new_items, paired=in_turn)
    verdicts = list(comparison.verdicts())
    if not confirmations and not in_turn:
        verdicts = _adjusted(verdicts)
    return Check(
        verdicts=tuple(verdicts),
        causes=tuple(comparison.causes()),
        baseline_runs=tuple(run.run for run in baseline.sample.runs),
        new_runs=tuple(run.run for run in new.runs),
        confirmations=confirmations,
    )


def confirmed(first: Check, second: Check) -> Check:
    """The first check with its regressions judged again, from more runs, by the second."""
    again = {(each.key, each.metric): each for each in second.verdicts}
    return replace(
        first,
        verdicts=tuple(
            again.get((each.key, each.metric), each) if each.stops else each
            for each in first.verdicts
        ),
        new_runs=second.new_runs,
        confirmations=second.confirmations,
    )


def _adjusted(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Keep what is called regressed by tests to one false alarm in a hundred whole checks."""
    tested = [index for index, each in enumerate(verdicts) if each.p is not None]
    found = list(verdicts)
    values = [float(verdicts[index].p or 0.0) for index in tested]
    for index, adjusted in zip(tested, holm(values), strict=True):
        verdict = replace(verdicts[index], adjusted=adjusted)
        if verdict.outcome == "regressed" and adjusted > FAMILY:
            verdict = replace(
                verdict,
                outcome="inconclusive",
                why=f"as one of {len(tested)} tests it may be chance (p {adjusted:.2g} of "
                f"{FAMILY}): run again with --confirm",
            )
        found[index] = verdict
    return found


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """Both sides of a check, while it is made."""

    baseline: Baseline
    new: Sample
    new_items: Outcomes
    paired: bool

    def verdicts(self) -> Iterator[Verdict]:
        """Every point of the baseline in its order, then what is new."""
        used: set[Key] = set()
        for point in self.baseline.sample.points:
            now = self.new.find(point.key)
            if now is not None:
                used.add(point.key)
                yield from self._point(point, now)
                continue
            twin = self._twin(point, used)
            if twin is not None:
                used.add(twin.key)
            yield _absent(point, twin)
        for point in self.new.points:
            if point.key not in used:
                yield _verdict(point, STATUS, "new", why="it is not in the baseline")

    def causes(self) -> list[str]:
        """What differs between the newest baseline run and the new one, point by point joined."""
        found: dict[str, None] = {}
        for point in self.baseline.sample.points:
            now = self.new.find(point.key)
            if now is not None and point.kind == "measured":
                before = [_facts(self.baseline.sample, point, at) for at in _present(point)]
                after = [_facts(self.new, now, at) for at in _present(now)]
                if before and after:
                    # A technique's version matters to the points that use it.
                    ours = {f"code.{slot}.{each['method']}" for slot, each in now.settings.items()}
                    found |= dict.fromkeys(
                        cause
                        for cause in comparability.causes(before[-1], after[0])
                        if cause.count(".") < 2
                        or not cause.startswith("code.")
                        or cause.partition(":")[0] in ours
                    )
        return list(found)

    def _twin(self, point: Point, used: set[Key]) -> Point | None:
        """A new point of the same techniques: the baseline's with something else changed."""
        known = {each.key for each in self.baseline.sample.points} | used
        alike = [
            each
            for each in self.new.points
            if each.kind == point.kind and each.label == point.label and each.key not in known
        ]
        return alike[0] if len(alike) == 1 else None

    def _point(self, base: Point, new: Point) -> Iterator[Verdict]:
        ended = _ended(base, new)
        if ended is not None:
            yield ended
            return
        if base.device != new.device:
            why = f"device: {base.device} -> {new.device}"
            yield _verdict(base, STATUS, "incomparable", why=why)
            return
        for metric in dict.fromkeys([*base.metrics, *new.metrics]):
            rule = self.baseline.policy.rule(metric, base.settings, base.kind)
            if rule is not None:
                yield self._metric(metric, base, new, rule)

    def _metric(self, metric: str, base: Point, new: Point, rule: Rule) -> Verdict:
        before, after = base.metrics.get(metric), new.metrics.get(metric)
        if before is None or after is None:
            outcome: Outcome = "new" if before is None else "missing"
            why = f"only {'this run' if before is None else 'the baseline'} has it"
            return _verdict(base, metric, outcome, gate=rule.gate, why=why)
        if before.unit != after.unit:
            why = f"unit: {before.unit} -> {after.unit}"
            return _verdict(base, metric, "incomparable", gate=rule.gate, why=why)
        family = comparability.family(metric, before.unit)
        now = [at for at, value in enumerate(after.values) if value is not None]
        alike, barriers = self._alike(family, before, base, new, now)
        if not alike:
            why = "; ".join(barriers)
            return _verdict(base, metric, "incomparable", gate=rule.gate, why=why)
        held, seen = _chosen(before.values, alike), _chosen(after.values, now)
        margin = rule.least(fmean(held))
        try:
            evidence = self._evidence(metric, base, new, rule, alike, now)
        except ValueError as error:
            return _verdict(base, metric, "incomparable", gate=rule.gate, why=str(error))
        outcome = decide(evidence, margin)
        details = [_why(metric, base, new, alike, now)] if outcome == "regressed" else []
        if min(evidence.each) <= margin < max(evidence.each):
            count = sum(change > margin for change in evidence.each)
            details.append(f"{count} of {len(evidence.each)} runs show it")
        if len(alike) < len(_chosen(before.values, range(len(before.values)))):
            details.append(f"{len(alike)} of {len(before.values)} baseline runs are comparable")
        return Verdict(
            kind=base.kind,
            trial=base.trial,
            point=base.title,
            metric=metric,
            outcome=outcome,
            unit=before.unit,
            better=before.better,
            base=fmean(held),
            new=fmean(seen),
            change=evidence.change,
            interval=(evidence.low, evidence.high),
            margin=margin,
            detectable=evidence.detectable,
            p=evidence.worse if evidence.tested else None,
            baseline_runs=len(held),
            new_runs=len(seen),
            rule=evidence.rule,
            why="; ".join(detail for detail in details if detail),
            gate=rule.gate,
        )

    def _alike(
        self, family: Family, before: Series, base: Point, new: Point, now: Sequence[int]
    ) -> tuple[list[int], list[str]]:
        """The baseline runs that may be compared, and what stands between the newest and now."""
        alike, barriers = [], ["no run has a value"]
        for at, value in enumerate(before.values):
            if value is None or not now:
                continue
            barriers = []
            if base.kind == "measured":
                barriers = comparability.barriers(
                    family,
                    _facts(self.baseline.sample, base, at),
                    _facts(self.new, new, now[0]),
                )
            if family == "quality" and base.repeats[at] != new.repeats[now[0]]:
                counts = [len(each or ()) for each in (base.repeats[at], new.repeats[now[0]])]
                barriers.append(f"repeats: {counts[0]} -> {counts[1]}")
            if not barriers:
                alike.append(at)
        return alike, barriers

    def _evidence(
        self,
        metric: str,
        base: Point,
        new: Point,
        rule: Rule,
        alike: Sequence[int],
        now: Sequence[int],
    ) -> Evidence:
        before, after = base.metrics[metric], new.metrics[metric]
        held, seen = _chosen(before.values, alike), _chosen(after.values, now)
        more = before.better == "more"
        margin, noise = rule.least(fmean(held)), rule.expected_noise(fmean(held))
        if rule.test == "exact":
            return exact(held, seen, margin, more=more)
        if self.paired and len(held) == len(seen) > 1 and rule.test == "runs":
            return pairs(held, seen, margin, noise, more=more)
        of_runs = runs(held, seen, margin, noise, more=more)
        if rule.test == "runs":
            return of_runs
        old = self._answers(self.baseline.items, self.baseline.sample, base, metric, alike)
        fresh = self._answers(self.new_items, self.new, new, metric, now)
        if old is None or fresh is None:
            if len({*held, *seen}) == 1:
                unchanged = exact(held, seen, margin, more=more)
                return replace(unchanged, detectable=of_runs.detectable)
            return replace(of_runs, rule=f"{of_runs.rule}, for want of per-item outcomes")
        if old[0] != fresh[0]:
            raise ValueError("the test items are others")
        of_items = items(old[1], fresh[1], margin, more=more)
        # Runs that agree to the last digit are deterministic: their spread is none.
        if len(set(held)) > 1:
            return joined(of_items, of_runs)
        return replace(of_items, each=of_runs.each) if len(seen) > 1 else of_items

    def _answers(
        self, known: Outcomes, sample: Sample, point: Point, metric: str, indices: Sequence[int]
    ) -> tuple[str, list[float]] | None:
        """Which items, and the mean of every one over these runs; None where a run kept none."""
        rows = [known.get((sample.runs[at].run, point.trial, metric)) for at in indices]
        found = [row for row in rows if row is not None]
        if len(found) < len(rows):
            return None
        if len({row.items for row in found}) > 1:
            raise ValueError("the test items differ between runs")
        values = zip(*(row.values for row in found), strict=True)
        return found[0].items, [fmean(each) for each in values]


def _absent(point: Point, twin: Point | None) -> Verdict:
    if twin is None:
        return _verdict(point, STATUS, "missing", why="this run does not have it")
    parts = ("model", "budget", "evaluate", "settings")
    differences = comparability.differing(
        {part: getattr(point, part) for part in parts},
        {part: getattr(twin, part) for part in parts},
    )
    return _verdict(point, STATUS, "incomparable", why="; ".join(differences))


def _ended(base: Point, new: Point) -> Verdict | None:
    """The verdict on how a point ended; None where both sides have numbers to compare."""
    before = [status for status in base.statuses if status is not None]
    after = [status for status in new.statuses if status is not None]
    told = next((reason for reason in new.reasons if reason), None)
    now, expected = after[-1], before[-1]
    said = WORDS[now] if told is None else f"{WORDS[now]}: {told}"
    if "ok" in before:
        if "ok" in after and len(set(after)) == 1:
            return None
        if not WORSE.isdisjoint(after):
            unsure = "ok" in after or now in before
            count = sum(status == now for status in before)
            seen = f", as in {count} of {len(before)} baseline runs" if count else ""
            again = f" ({after.count(now)} of {len(after)} runs)" if "ok" in after else ""
            outcome: Outcome = "inconclusive" if unsure else "regressed"
            return _verdict(base, STATUS, outcome, why=f"it was ok; now {said}{seen}{again}")
        return _verdict(base, STATUS, "missing", why=f"it was ok; now {said}")
    if now == "ok":
        return _verdict(base, STATUS, "improved", why=f"it was {WORDS[expected]}; now ok")
    if now in ("killed", "failed", "timeout"):
        return _verdict(base, STATUS, "missing", why=f"it was {WORDS[expected]}; now {said}")
    return _verdict(base, STATUS, "ok", why=f"{WORDS[now]}, as expected")


def _verdict(
    point: Point, metric: str, outcome: Outcome, *, why: str, gate: bool = True
) -> Verdict:
    return Verdict(
        kind=point.kind,
        trial=point.trial,
        point=point.title,
        metric=metric,
        outcome=outcome,
        why=why,
        gate=gate,
    )


def _why(metric: str, base: Point, new: Point, alike: Sequence[int], now: Sequence[int]) -> str:
    """For a peak of training, which categories moved it."""
    if not metric.startswith("peak_") or "." in metric:
        return ""
    moved = []
    for category in CATEGORIES:
        name = f"peak_{category}_bytes"
        if name in base.metrics and name in new.metrics:
            before = _chosen(base.metrics[name].values, alike)
            after = _chosen(new.metrics[name].values, now)
            if before and after and (change := fmean(after) - fmean(before)):
                moved.append((abs(change), f"{category} {change / 2**20:+.3g} MiB"))
    return ", ".join(words for _, words in sorted(moved, reverse=True))


def _facts(sample: Sample, point: Point, at: int) -> dict[str, Any]:
    name = point.environments[at]
    environment = sample.environments.get(name, {}) if name is not None else {}
    return comparability.facts(environment, sample.runs[at].code)


def _present(point: Point) -> list[int]:
    return [at for at, status in enumerate(point.statuses) if status is not None]


def _chosen(values: Sequence[Value | None], indices: Sequence[int]) -> list[float]:
    return [float(value) for at in indices if (value := values[at]) is not None]
