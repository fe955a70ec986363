"""A check as people and programs read it: text, Markdown, JUnit and JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from tradebench.regression.gate import NOTHING_TO_COMPARE, Check, Outcome, Verdict
from tradebench.report.units import clean, count, scale, show, significant, title

# What a reader must see first.
ORDER: tuple[Outcome, ...] = (
    "regressed",
    "missing",
    "incomparable",
    "inconclusive",
    "improved",
    "new",
    "ok",
)
IN_FULL, IN_SHORT = ORDER[:3], ORDER[3:6]
ROWS = 8  # of each outcome on one screen
CAUSES = 8
WIDTH = 80  # columns of a screen
GROUPS = {
    "accuracy": "Accuracy",
    "accuracy_before": "Accuracy before training",
    "answer_nll": "Answer loss",
    "answer_nll_before": "Answer loss before training",
}
LONGEST = 60_000  # characters that a comment or step summary takes, with room to spare


def headline(check: Check, code: int) -> str:
    """One sentence: what came out, of how much, against what."""
    found = Counter(each.outcome for each in check.verdicts)
    stopping = sum(each.stops for each in check.verdicts)
    word = {0: "no regression", 1: "regressed", NOTHING_TO_COMPARE: "not all could be compared"}
    counted = ", ".join(f"{found[name]} {name}" for name in ORDER if found[name])
    advice = found["regressed"] - stopping
    tail = f" ({advice} regressed as advice only)" if advice else ""
    return f"{word.get(code, 'inconclusive')}: {counted}{tail}"


def text(check: Check, code: int, *, baseline: bool = True) -> str:
    """One screen: what is not ok, what would have been found, possible causes and the next step.

    The next step is told where there is a `baseline` to take it with.
    """
    lines = [_against(check)]
    for outcome in IN_FULL:
        rows = check.of(outcome)
        lines += ["", f"{outcome}:"] if rows else []
        for verdict, before in zip(rows[:ROWS], [None, *rows], strict=False):
            if before is None or before.key != verdict.key:
                lines.append(f"  {verdict.point}")
            lines += [f"    {line}" for line in _sentences(verdict)]
        if len(rows) > ROWS:
            lines.append(f"  and {len(rows) - ROWS} more; --format json has all")
    for outcome in IN_SHORT:
        rows = check.of(outcome)
        lines += ["", f"{outcome}:"] if rows else []
        lines += [f"  {name}: {_range(group)}" for name, group in _by_metric(rows).items()]
    # Side by side, and without what was said above: all of it is to share one screen.
    least = detectable(check.of("ok"))
    lines += ["", "found nine times in ten:", f"  {'; '.join(least)}"] if least else []
    if check.causes:
        lines += ["", "also changed:", f"  {'; '.join(_few(check.causes))}"]
    advice = next_step(check) if baseline else ""
    lines += ["", f"next: {advice}"] if advice else [""]
    return "\n".join(_wrapped([*lines, headline(check, code)]))


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Lines as a screen holds them; what does not fit goes on below, further in."""
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        yield from textwrap.wrap(
            line,
            WIDTH,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]


def next_step(check: Check) -> str:
    """What to do about the gravest thing that was found; empty where there is nothing to do."""
    if any(verdict.stops for verdict in check.verdicts):
        if not check.confirmations:
            return "run what regressed again, to be sure: check --confirm 1"
        return "mend it or, if it is meant: baseline set RUN ... --reason WHY, and commit"
    if check.of("missing"):
        return "find out why it is missing; if it is meant, --allow-missing or a new baseline"
    if check.of("incomparable"):
        return "to compare these, make a baseline of runs that are like this one"
    if check.of("inconclusive"):
        return "to tell smaller changes, add runs (baseline add RUN) or quieten the machine"
    return ""


def markdown(check: Check, code: int, *, baseline: bool = True) -> str:
    """A summary for a pull request: the rows that matter, the rest folded away."""
    shown = [each for outcome in ORDER[:-1] for each in check.of(outcome)]
    head = [f"### tradebench: {headline(check, code)}", "", _against(check), ""]
    foot = [
        "",
        "Found nine times in ten:",
        "",
        *(f"- {line}" for line in detectable(check.verdicts)),
    ]
    if check.causes:
        foot += ["", "Also changed:", "", *(f"- `{_cell(each)}`" for each in _few(check.causes))]
    if baseline and (advice := next_step(check)):
        foot += ["", f"Next: {advice}."]
    budget = LONGEST - sum(len(line) + 1 for line in (*head, *foot))
    rows: list[str] = []
    for outcome in ORDER:
        for verdict in check.of(outcome):
            row = _row(verdict)
            if budget < len(row) + 500:
                break
            rows.append(row)
            budget -= len(row) + 1
    first, folded = rows[: len(shown)], rows[len(shown) :]
    body = [*HEAD, *first] if first else []
    if folded:
        name = count(len(folded), "metric")
        body += [
            "",
            f"<details><summary>{name} ok</summary>",
            "",
            *HEAD,
            *folded,
            "",
            "</details>",
        ]
    left_out = len(check.verdicts) - len(rows)
    if left_out:
        body += ["", f"{count(left_out, 'row')} left out for their length."]
    return "\n".join([*head, *body, *foot]) + "\n"


HEAD = (
    "| verdict | point | metric | baseline | now | change | found from | because |",
    "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
)


def junit(check: Check, suite: str) -> str:
    """JUnit XML: a test case per verdict, a failure for what stops the check."""
    root = ElementTree.Element("testsuites")
    cases = ElementTree.SubElement(
        root,
        "testsuite",
        name=f"tradebench {suite}",
        tests=str(len(check.verdicts)),
        failures=str(sum(each.stops for each in check.verdicts)),
        errors=str(len(check.of("missing"))),
        skipped=str(sum(_skipped(each) for each in check.verdicts)),
    )
    for verdict in check.verdicts:
        case = ElementTree.SubElement(
            cases, "testcase", classname=clean(verdict.point), name=title(verdict.metric)
        )
        said = clean("; ".join(_sentences(verdict)))
        if verdict.stops:
            ElementTree.SubElement(case, "failure", message=said, type="regressed")
        elif verdict.outcome == "missing":
            ElementTree.SubElement(case, "error", message=said, type="missing")
        elif _skipped(verdict):
            ElementTree.SubElement(case, "skipped", message=said)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def payload(check: Check, code: int) -> dict[str, Any]:
    """All of a check as JSON."""
    return {
        "exit_code": code,
        "outcomes": dict(Counter(each.outcome for each in check.verdicts)),
        **{name: value for name, value in asdict(check).items() if name != "verdicts"},
        "verdicts": [asdict(verdict) for verdict in check.verdicts],
    }


def table(verdicts: Iterable[Verdict]) -> str:
    """Verdicts as a Markdown table."""
    return "\n".join([*HEAD, *map(_row, verdicts)])


def change(verdict: Verdict) -> str:
    """The change as it is seen, not as harm: `+4.1 %`, or `-2.3 pt` of an accuracy."""
    if verdict.base is None or verdict.new is None:
        return ""
    return _relative(verdict, verdict.new - verdict.base)


def _sentences(verdict: Verdict) -> list[str]:
    """What is said below the point's name."""
    if verdict.base is None:
        return [f"{title(verdict.metric)}: {verdict.why}"]
    lines = [
        f"{title(verdict.metric)}: {_value(verdict, verdict.base)} -> "
        f"{_value(verdict, verdict.new)} ({change(verdict)})",
        f"margin {_relative(verdict, verdict.margin, sign='')}; found from "
        f"{_relative(verdict, verdict.detectable, sign='')} on; {verdict.rule}",
    ]
    return [*lines, *([verdict.why] if verdict.why else [])]


def _relative(verdict: Verdict, value: float | None, *, sign: str | None = None) -> str:
    """A change as a share of the baseline, or in points where the metric is a share itself."""
    if value is None or verdict.base is None:
        return ""
    mark = ("+" if value > 0 else "-" if value < 0 else "") if sign is None else sign
    if verdict.metric.startswith("accuracy"):
        return f"{mark}{significant(abs(value) * 100)} pt"
    if value == 0:
        return "0"
    if verdict.base == 0:
        return f"{mark}{show(verdict.metric, abs(value), verdict.unit)}"
    return f"{mark}{significant(abs(value / verdict.base) * 100)} %"


def _value(verdict: Verdict, value: float | None) -> str:
    if value is None:
        return ""
    values = [each for each in (verdict.base, verdict.new) if each is not None]
    # One unit for both, and digits enough to see them differ.
    return scale(verdict.metric, values, verdict.unit).text(value, 4)


def detectable(verdicts: Iterable[Verdict]) -> list[str]:
    """For every metric, from which change on it is found in nine checks of ten."""
    known = [each for each in verdicts if each.detectable is not None]
    lines = []
    for name, group in _by_metric(known).items():
        ends = _ends(group, [each.detectable or 0.0 for each in group], sign="")
        lines.append(f"{name}: {ends} or more" if ends != "0" else f"{name}: any change")
    return lines


def _range(verdicts: Sequence[Verdict]) -> str:
    """How far some points have changed in one metric, in one line."""
    points = count(len({each.key for each in verdicts}), "point")
    known = [each for each in verdicts if each.base is not None and each.new is not None]
    if not known:
        return f"{points}; {verdicts[0].why}"
    changes = _ends(known, [(each.new or 0.0) - (each.base or 0.0) for each in known])
    least = _ends(known, [each.detectable or 0.0 for each in known], sign="")
    said = "; ".join(dict.fromkeys(each.why for each in known if each.why))
    return f"{points}, {changes}; found from {least} on; {said or known[0].rule}"


def _ends(verdicts: Sequence[Verdict], values: Sequence[float], sign: str | None = None) -> str:
    """The smallest and the largest of these changes, relative to each point's own baseline."""

    def relative(pair: tuple[Verdict, float]) -> float:
        return pair[1] if pair[0].metric.startswith("accuracy") else pair[1] / (pair[0].base or 1.0)

    ordered = sorted(zip(verdicts, values, strict=True), key=relative)
    ends = [_relative(verdict, value, sign=sign) for verdict, value in (ordered[0], ordered[-1])]
    return " to ".join(dict.fromkeys(ends))


def _by_metric(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Verdicts by what they are about, whatever phase or task it is of."""
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        stem = verdict.metric.partition(".")[0]
        found.setdefault(GROUPS.get(stem, title(stem)), []).append(verdict)
    return found


def _against(check: Check) -> str:
    runs = check.new_runs[: len(check.new_runs) - check.confirmations]
    again = count(check.confirmations, "time")
    confirmed = f"; run again {again} to confirm" if check.confirmations else ""
    return f"{', '.join(runs)} against {count(len(check.baseline_runs), 'baseline run')}{confirmed}"


def _few(causes: Sequence[str]) -> list[str]:
    more = [f"and {len(causes) - CAUSES} more"] if len(causes) > CAUSES else []
    return [*causes[:CAUSES], *more]


def _skipped(verdict: Verdict) -> bool:
    return not verdict.stops and verdict.outcome not in ("ok", "improved", "missing")


def _row(verdict: Verdict) -> str:
    cells = (
        verdict.outcome if verdict.gate else f"{verdict.outcome} (advice)",
        verdict.point,
        title(verdict.metric),
        _value(verdict, verdict.base),
        _value(verdict, verdict.new),
        change(verdict),
        _relative(verdict, verdict.detectable, sign="±"),
        "; ".join(part for part in (verdict.why, verdict.rule) if part),
    )
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    """Text that a Markdown table shows as it is."""
    safe = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return safe.replace("`", "'")
