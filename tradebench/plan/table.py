"""The table of a plan: what fits, what it takes, how long a step is, and what a run would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tradebench.devices import GIB
from tradebench.plan.fit import fits
from tradebench.plan.price import Price, Range, of_suite, of_tokens, step
from tradebench.report.tables import TRAINING, training_note
from tradebench.report.units import count, listed, significant
from tradebench.result import Result, Verdict
from tradebench.trial import Trial

MAX_ROWS = 60
ORDER: tuple[Verdict, ...] = ("fits", "tight", "does not fit")
NAME = 48  # columns of a terminal in which a point's name is readable, if need be on several lines
STYLES = {"fits": "green", "tight": "yellow", "does not fit": "red"}
SHOWN = ("weights", "gradients", "optimizer", "activations", "temporaries", "communication")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What was asked: tokens to train on, the price of a GPU for an hour, repeats by trial."""

    tokens: int | None = None
    price: float | None = None
    repeats: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One point, ready to print; `verdict` is its word, `note` what to do about it."""

    verdict: str
    cells: tuple[str, ...]
    note: str


def heads(results: Sequence[Result], question: Question, *, categories: bool = True) -> list[str]:
    """The titles of the columns, with their units."""
    found = ["point", "verdict", "needs (GiB)"]
    found += [f"{name} (GiB)" for name in _categories(results) if categories]
    if any(step(result) for result in results):
        found.append("step (s)")
        if _unequal(results):
            found.append("throughput (tokens/s)")
        if question.tokens is not None:
            found += ["hours", "GPU-hours"]
            if question.price is not None:
                found.append("money")
    return found


def rows(results: Sequence[Result], question: Question, *, categories: bool = True) -> list[Row]:
    """Every predicted point: those that fit by step time, then the rest by what they need.

    Where they train on different amounts, by throughput instead of step time.
    """
    predicted = [result for result in results if result.status == "ok"]
    shown = _categories(results) if categories else []
    timed, unequal = any(step(result) for result in results), _unequal(results)
    return [
        _row(result, shown, timed=timed, unequal=unequal, question=question)
        for result in sorted(predicted, key=lambda result: _rank(result, unequal=unequal))
    ]


def summary(results: Sequence[Result], question: Question) -> list[str]:
    """What the plan says in a few sentences."""
    fits = [result.fit for result in results if result.fit is not None]
    found = []
    if fits:
        low, high = (end / GIB for end in fits[0].capacity)
        verdicts = Counter(each.verdict for each in fits)
        parts = listed(f"{verdicts[word]} {_plural(word, verdicts[word])}" for word in ORDER)
        found.append(
            f"{count(len(fits), 'point')} on {fits[0].device} "
            f"({_span(low, high)} GiB of it usable): {parts}."
        )
    skipped = sum(result.status == "skipped" for result in results)
    if skipped:
        found.append(f"{count(skipped, 'point')} skipped, with the reason in the report.")
    failed = Counter(result.reason or "" for result in results if result.status == "failed")
    for reason, number in failed.items():
        found.append(f"{count(number, 'point')} could not be predicted: {reason.rstrip('.')}.")
    if _unequal(results):
        found.append(f"{training_note(result.budget for result in results)} {TRAINING}")
    read = [result.environment.hardware.get("overheads") for result in results]
    if any(read):
        found.append("What a process holds beside its tensors was measured on this device.")
    whole = of_suite(results, question.price, question.repeats)
    if whole is not None:
        found.append(
            f"Training every point that may fit {_times(question.repeats)}: {_price(whole)}, "
            "loading and evaluation not counted."
        )
    return found


def all_fit(results: Sequence[Result]) -> bool:
    """Whether every legal point is certain to fit; one that could not be predicted is not."""
    return all(fits(result) for result in results if result.status != "skipped")


def over_budget(
    results: Sequence[Result], budget: float | None, repeats: Mapping[str, int]
) -> str | None:
    """A sentence where the suite may take more GPU-hours than there are."""
    whole = of_suite(results, None, repeats)
    if budget is None or whole is None or whole.gpu_hours.high <= budget:
        return None
    return (
        f"the suite takes {_range(whole.gpu_hours)} GPU-hours, more than the budget of "
        f"{significant(budget)}: leave points out, or take fewer steps or repeats"
    )


def draw(results: Sequence[Result], question: Question, width: int) -> RenderableType:
    """The plan for a terminal of this many columns: a table, or lines where it has no room."""
    found = rows(results, question)
    titles = heads(results, question)
    table = _table(found, titles) if found and _width(found, titles) <= width else None
    lines = []
    if table is None:
        lines = _lines(
            rows(results, question, categories=False), heads(results, question, categories=False)
        )
    if len(found) > MAX_ROWS:
        lines.append(Text(f"and {len(found) - MAX_ROWS} more, all of them in the report"))
    lines += [Text(line) for line in summary(results, question)]
    return Group(*([table] if table else []), *lines)


def _width(found: Sequence[Row], titles: Sequence[str]) -> int:
    """The columns of a terminal that the table takes at least."""
    columns = list(zip(titles, *(row.cells for row in found), strict=True))
    return NAME + 2 * len(columns) + sum(max(map(len, column)) for column in columns[1:])


def _table(found: Sequence[Row], titles: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for head in titles:
        name, _, unit = head.partition(" (")
        left = name in ("point", "verdict")
        table.add_column(
            f"{name}\n({unit}" if unit else name,
            justify="left" if left else "right",
            no_wrap=name != "point",
            min_width=NAME if name == "point" else None,
        )
    for row in found[:MAX_ROWS]:
        name, verdict, *numbers = row.cells
        text = Text(name)
        if row.note:
            text.append(f"\n  {row.note}", style="dim")
        table.add_row(text, Text(verdict, style=STYLES.get(row.verdict, "")), *numbers)
    return table


def _lines(found: Sequence[Row], titles: Sequence[str]) -> list[Text]:
    """A line with each point's name, one with its numbers, and one with what to do about it."""
    lines = []
    for row in found[:MAX_ROWS]:
        name, verdict, *numbers = row.cells
        lines.append(Text(name, style="bold"))
        line = Text("  ")
        line.append(verdict, style=STYLES.get(row.verdict, ""))
        for title, number in zip(titles[2:], numbers, strict=True):
            word, _, unit = title.partition(" (")
            line.append(
                f"{' · ' if len(line) > 2 else ''}{word} {number} {unit.rstrip(')')}".rstrip()
            )
        lines.append(line)
        if row.note:
            lines.append(Text(f"  {row.note}", style="dim"))
    return lines


def markdown(results: Sequence[Result], question: Question) -> str:
    """The table and its summary as Markdown."""
    titles = [*heads(results, question), "nearest change that fits"]
    lines = [_line(titles), _line(["---"] * len(titles))]
    lines += [_line([*row.cells, row.note]) for row in rows(results, question)]
    return "\n".join([*lines, "", *summary(results, question)])


def _unequal(results: Sequence[Result]) -> bool:
    """Whether points train on different amounts, so that their step times do not compare."""
    return bool(training_note(result.budget for result in results))


def _row(
    result: Result, shown: Sequence[str], *, timed: bool, unequal: bool, question: Question
) -> Row:
    fit = result.fit
    if fit is None:
        needed = significant((result.value("peak_tensor_bytes") or 0) / GIB)
    else:
        needed = _span(*(end / GIB for end in fit.needed))
    cells = [result.label, fit.verdict if fit else "", needed]
    for name in shown:
        cells.append(significant((result.value(f"peak_{name}_bytes") or 0) / GIB))
    if timed:
        seconds = step(result)
        cells.append("" if seconds is None else _range(seconds))
        if unequal:
            rate = result.value("tokens_per_second")
            cells.append("" if rate is None else significant(rate))
        if question.tokens is not None:
            cells += _cost(result, question)
    return Row(fit.verdict if fit else "", tuple(cells), (fit.advice or "") if fit else "")


def _cost(result: Result, question: Question) -> list[str]:
    assert question.tokens is not None, "asked only where tokens are given"
    ranks = Trial.from_payload(result.payload()).ranks
    price = of_tokens(result, ranks, question.tokens, question.price)
    if price is None:
        return [""] * (2 + (question.price is not None))
    found = [_range(price.hours), _range(price.gpu_hours)]
    return found + ([_range(price.money)] if price.money is not None else [])


def _rank(result: Result, *, unequal: bool) -> tuple[int, float]:
    seconds, rate = step(result), result.value("tokens_per_second")
    needed = result.fit.needed[1] if result.fit else result.value("peak_tensor_bytes") or 0
    verdict = ORDER.index(result.fit.verdict) if result.fit else 0
    if seconds is None or verdict != 0:
        return verdict, needed
    return verdict, 1 / rate if unequal and rate else seconds.value


def _categories(results: Sequence[Result]) -> list[str]:
    """The categories that any point has bytes of at its peak."""
    return [
        name
        for name in SHOWN
        if any((result.value(f"peak_{name}_bytes") or 0) > 0 for result in results)
    ]


def _times(repeats: Mapping[str, int]) -> str:
    """How often points run, in words."""
    least, most = min(repeats.values(), default=1), max(repeats.values(), default=1)
    if most == 1:
        return "once"
    often = f"{most}" if least == most else f"{least}-{most}"
    return f"{often} times, as the suite repeats it"


def _price(price: Price) -> str:
    text = f"{_range(price.gpu_hours)} GPU-hours"
    return text if price.money is None else f"{text}, {_range(price.money)} in money"


def _range(found: Range) -> str:
    return f"{significant(found.value)} ({_span(found.low, found.high)})"


def _span(low: float, high: float) -> str:
    one, other = significant(low), significant(high)
    return one if one == other else f"{one}-{other}"


def _plural(verdict: str, number: int) -> str:
    if verdict == "tight":
        return "are tight" if number != 1 else "is tight"
    return {"fits": "fit", "does not fit": "do not fit"}[verdict] if number != 1 else verdict


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
