"""A recommendation in words, as a table, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tradebench.published.accuracies import LABEL, Span
from tradebench.recommend.answer import PUBLISHED_TITLE, Answer, evidence
from tradebench.recommend.candidates import Figure
from tradebench.recommend.choice import Choice, Goal, Judged
from tradebench.recommend.requirements import SHARES, TITLES, Requirement, amount, spoken
from tradebench.report.markdown import escape
from tradebench.report.tables import MEMORY, model_title
from tradebench.report.units import count, listed, scale, significant, title

MAX_ALIKE = 3
HEADS = {"hours": "hours"}
PARTS = {
    "best": "run this",
    "nearest": "nearest miss",
    "same": "cannot be told apart",
    "maybe": "better, if it keeps to it",
    "next": "next best",
}


def sentence(made: Answer) -> str:
    """The answer in one sentence: what to run, its figures, their kind, and how sure it is."""
    choice = made.choice
    if choice.best is None:
        return _nothing(choice)
    best = choice.best
    ends = interval(best.goal)
    figure = f"{_of(best.goal)}{f' ({ends})' if ends else ''}"
    if choice.alike and choice.kind != "measured":
        # One of those may be better by what is rounded away; it takes no fewer GPUs.
        share = "shares" if len(choice.alike) == 1 else "share"
        figure += f", which {count(len(choice.alike), 'other')} {share}"
    needs = _needs(choice, best)
    pool = count(len(choice.pool), "point")
    if best.verdict == "possibly":
        head = (
            f"Possibly {best.candidate.name}: nothing certainly keeps to {needs}, and of the "
            f"{pool} that may, it has {_superlative(choice.goal)}, {figure}"
        )
    else:
        among = f" of the {pool} that {_keep(choice)} to {needs}" if needs else f" of {pool}"
        head = f"Run {best.candidate.name}: {_superlative(choice.goal)}, {figure},{among}"
    return f"{head}; {_evidence(made, best)}{_confidence(choice, best)}."


def lines(made: Answer) -> list[str]:
    """What is said beside the table, a line each."""
    choice, found = made.choice, []
    if choice.alike:
        names = [each.candidate.name for each in choice.alike[:MAX_ALIKE]]
        more = len(choice.alike) - MAX_ALIKE
        why = "by their noise" if choice.kind == "measured" else "as far as predictions go"
        told = listed([*names, f"{more} more"] if more > 0 else names)
        found.append(f"Cannot be told apart from it by {spoken(choice.goal.name)}, {why}: {told}.")
    for each in choice.maybe:
        crossed = listed(_condition(each, need) for need in each.crossed)
        found.append(
            f"{each.candidate.name} would be better and possibly keeps to it: its interval crosses "
            f"{crossed}."
        )
    return [*found, *made.notes]


def draw(made: Answer, width: int) -> RenderableType:
    """The answer for a terminal of so many columns: a table, or lines where it has no room."""
    heads, rows = _table(made)
    parts: list[RenderableType] = [Text(sentence(made), style="bold"), Text("")]
    needed = sum(max(map(len, column)) + 2 for column in zip(heads, *rows, strict=True))
    parts += [_wide(heads, rows)] if needed <= width else _narrow(heads, rows)
    parts += [Text(""), *(Text(line) for line in lines(made))]
    if made.published:
        told = (Text(f"- {line}") for line in span_lines(made.published))
        parts += [Text(""), Text(f"{PUBLISHED_TITLE}:"), *told]
    return Stack(*parts)


def _wide(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _narrow(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[RenderableType]:
    """A line with the part a point plays and its name, and one with its figures."""
    found: list[RenderableType] = []
    for part, name, *cells in rows:
        found.append(Text.assemble((f"{part}: ", "dim"), (name, "bold")))
        figures = []
        for head, cell in zip(heads[2:], cells, strict=True):
            word, _, unit = head.partition(" (")
            figures.append(f"{word} {cell} {unit.rstrip(')')}".strip())
        found.append(Text(f"  {' · '.join(figures)}"))
    return found


def markdown(made: Answer, suite: str | None) -> str:
    """The answer as Markdown, with the suite file in it."""
    heads, rows = _table(made)
    table = ["| " + " | ".join(map(escape, row)) + " |" for row in [heads, *rows]]
    table.insert(1, "| " + " | ".join(["---"] * 2 + ["---:"] * (len(heads) - 2)) + " |")
    blocks = [f"**{escape(sentence(made))}**", "\n".join(table)]
    blocks += ["\n".join(f"- {escape(line)}" for line in lines(made))]
    if made.published:
        told = "\n".join(f"- {escape(line)}" for line in span_lines(made.published))
        blocks += [f"{PUBLISHED_TITLE}:", told]
    if suite is not None:
        blocks.append(f"```yaml\n{suite.rstrip()}\n```")
    return "\n\n".join(block for block in blocks if block)


def payload(made: Answer, suite: str | None) -> dict[str, Any]:
    """The answer for programs."""
    choice = made.choice
    every = {"answer": choice.best, "nearest": choice.nearest}
    return {
        "sentence": sentence(made),
        "met": made.met,
        "goal": {"name": choice.goal.name, "wish": choice.goal.wish, "asked": made.asked},
        "requirements": [
            {"name": need.name, "sign": need.sign, "bound": need.bound, "asked": need.asked}
            for need in choice.requirements
        ],
        **{
            name: None if each is None else _point(made, each, choice)
            for name, each in every.items()
        },
        "alike": [_point(made, each, choice) for each in choice.alike],
        "maybe": [_point(made, each, choice) for each in choice.maybe],
        "runners_up": [_point(made, each, choice) for each in choice.runners],
        "considered": len(choice.pool),
        "left_out": dict(choice.out),
        "notes": list(made.notes),
        "published": [
            {"techniques": name, "label": LABEL, **_span(span)}
            for name, found in made.published
            for span in found
        ],
        "suite": suite,
    }


def _span(span: Span) -> dict[str, Any]:
    return {
        "model": span.model,
        "task": span.task,
        "protocol": span.protocol,
        "settings": list(span.settings),
        "trained_on": list(span.trained_on),
        "low": span.low,
        "high": span.high,
        "sources": list(span.sources),
    }


def _point(made: Answer, each: Judged, choice: Choice) -> dict[str, Any]:
    candidate = each.candidate
    figures = {name: candidate.figure(name) for name in made.shown}
    return {
        "trial": candidate.trial,
        "label": candidate.name,
        "settings": {slot: dict(fields) for slot, fields in candidate.settings.items()},
        "evidence": list(candidate.kinds),
        "verdict": each.verdict,
        "probability_of_best": choice.chances.get(candidate.trial),
        "figures": {
            name: {
                "value": figure.value,
                "interval": [figure.low, figure.high],
                "unit": figure.unit,
                "kind": figure.kind,
            }
            for name, figure in figures.items()
            if figure is not None
        },
        "missed": [
            {"name": need.name, "bound": need.bound, "value": figure.value}
            for need, figure in each.missed
        ],
    }


def _nothing(choice: Choice) -> str:
    """What to say where nothing keeps to the requirements: the nearest miss, and by how much."""
    near = choice.nearest
    assert near is not None, "a question without candidates is refused"
    needs = listed(_condition(near, need) for need in choice.requirements)
    gaps = listed(_gap(near, need, figure) for need, figure in near.missed)
    return f"Nothing keeps to {needs}. Nearest is {near.candidate.name}: {gaps}."


def _gap(near: Judged, need: Requirement, figure: Figure) -> str:
    """By how much a requirement is missed; a device's by the least that a point may need."""
    value = figure.value
    fit = near.candidate.planned.fit if near.candidate.planned is not None else None
    if need.asked == "device" and fit is not None:
        value = float(fit.needed[0])
    gap = abs(value - need.bound)
    more = "over" if need.at_most else "short"
    if need.name.partition(".")[0] in SHARES:
        by = f"{significant(100 * gap)} points {more}"
    elif need.name == "gpus":
        by = f"{gap:g} {more}"
    else:
        share = f" ({100 * gap / abs(need.bound):.2g} %)" if need.bound else ""
        by = f"{amount(need.name, gap, figure.unit)}{share} {more}"
    return f"{spoken(need.name)} {amount(need.name, value, figure.unit)}, {by}"


def _needs(choice: Choice, best: Judged) -> str:
    """The requirements, each with what the answer has of it."""
    figures = {need.name: figure for need, figure, _ in best.verdicts}
    return listed(
        f"{_condition(best, need)} (here {_of(figures[need.name])})"
        if need.name != choice.goal.name
        else _condition(best, need)
        for need in choice.requirements
    )


def _condition(each: Judged, need: Requirement) -> str:
    """A requirement in words; a device's names the device."""
    text = need.text(_unit(each, need))
    planned = each.candidate.planned
    if need.asked == "device" and planned is not None and planned.fit is not None:
        return f"{text} of {planned.fit.device}"
    return text


def _unit(each: Judged, need: Requirement) -> str:
    return next(figure.unit for one, figure, _ in each.verdicts if one == need)


def _keep(choice: Choice) -> str:
    return "keeps" if len(choice.pool) == 1 else "keep"


def _superlative(goal: Goal) -> str:
    """`the shortest step time`, `the best accuracy on sort`."""
    stem = goal.name.partition(".")[0]
    if stem in ("accuracy", "accuracy_before"):
        word = "best" if goal.wish == "maximize" else "worst"
    elif stem.endswith("_seconds"):
        word = "shortest" if goal.wish == "minimize" else "longest"
    elif goal.name in ("hours", "gpu_hours"):
        word = "fewest" if goal.wish == "minimize" else "most"
    else:
        word = "lowest" if goal.wish == "minimize" else "highest"
    return f"the {word} {spoken(goal.name)}"


def _evidence(made: Answer, best: Judged) -> str:
    """Where the figures come from, and of what model."""
    figures = [best.goal, *(figure for _, figure, _ in best.verdicts)]
    kinds = evidence([figure.kind for figure in figures])
    model = model_title(made.group.model)
    if len(kinds) > 1:
        parts = {
            kind: listed(dict.fromkeys(spoken(each.name) for each in figures if each.kind == kind))
            for kind in kinds
        }
        told = listed(f"{names} {kind}" for kind, names in parts.items())
        return f"{told}, for {model}"
    if "predicted" in kinds:
        planned = best.candidate.planned
        where = f" on {planned.fit.device}" if planned is not None and planned.fit else ""
        return f"predicted for {model}{where}, not measured"
    runs = max(
        (len(p.results) for g, p in best.candidate.evidence if g.kind == "measured"), default=0
    )
    return f"measured on {model} in {count(runs, 'run')}"


def _confidence(choice: Choice, best: Judged) -> str:
    """How sure it is that this is the best of them."""
    if len(choice.pool) < 2:
        return ""
    chance = choice.chances.get(best.candidate.trial)
    if chance is not None:
        return f", and the best of them with a probability of {percent(chance)}"
    if choice.kind == "predicted":
        return ", in an order that holds as far as errors of a prediction move all points alike"
    return ""


def percent(chance: float) -> str:
    """A probability, as exactly as one is known."""
    if chance > 0.99:
        return "over 99 %"
    return f"{100 * chance:.0f} %" if chance >= 0.01 else "under 1 %"


def _of(figure: Figure) -> str:
    return amount(figure.name, figure.value, figure.unit)


def interval(figure: Figure) -> str:
    """Both ends, in the unit of the value; empty where there is no interval."""
    if figure.low == figure.high:
        return ""
    unit = scale(figure.name, [figure.value], figure.unit)
    low, high = (significant(end / unit.factor) for end in (figure.low, figure.high))
    return "" if low == high else f"{low} to {high} {unit.unit}".strip()


def _table(made: Answer) -> tuple[list[str], list[list[str]]]:
    """Heads with units, and a row for every point that the answer names."""
    named = made.named
    heads: list[str] = ["", "point"]
    columns: list[list[str]] = []
    every = [each.candidate.figure(name) for _, each in named for name in made.shown]
    mixed = len(evidence([figure.kind for figure in every if figure is not None])) > 1
    for name in made.shown:
        figures = [each.candidate.figure(name) for _, each in named]
        values = [figure.value for figure in figures if figure is not None]
        units = [figure.unit for figure in figures if figure is not None]
        unit = scale(name, values, units[0] if units else "")
        heads.append(_head(name) if name in TITLES else f"{_head(name)}{unit.axis}")
        columns.append([_cell(figure, unit.factor, mixed=mixed) for figure in figures])
    rows = [
        [PARTS[part], each.candidate.name, *(column[at] for column in columns)]
        for at, (part, each) in enumerate(named)
    ]
    return heads, rows


def _head(name: str) -> str:
    if name in TITLES:
        return HEADS.get(name, TITLES[name])
    said = title(name).replace("Accuracy on ", "accuracy ").lower()
    return said if name not in MEMORY else said.replace(" memory", "")


def _cell(figure: Figure | None, factor: float, *, mixed: bool) -> str:
    """The value with its interval, and its kind where there are several in the table."""
    if figure is None:
        return ""
    low, value, high = (
        significant(each / factor) for each in (figure.low, figure.value, figure.high)
    )
    if figure.name == "gpus":
        return f"{figure.value:g}"
    text = value if low == high else f"{value} ({low}-{high})"
    return f"{text} {figure.kind}" if mixed and figure.kind is not None else text


def span_lines(published: Iterable[tuple[str, Sequence[Span]]]) -> list[str]:
    """What was published for some techniques, a line for all models of one table of one source."""
    found = []
    for name, each in published:
        models: dict[str, list[str]] = {}
        for span in each:
            models.setdefault(span.conditions, []).append(span.told)
        found += [f"{name}: {', '.join(told)} ({said})." for said, told in models.items()]
    return found
