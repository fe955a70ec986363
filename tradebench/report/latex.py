r"""The points of a report as LaTeX tables for papers, in the style of the booktabs package.

A document needs `\usepackage{booktabs}`, and `\input{table.tex}` where the tables are to stand. A
table is as wide as the text and no higher than a page of small print: names fold, and the last
points, which are the farthest from the front, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tradebench.report import content
from tradebench.report.units import clean, count, shorten

if TYPE_CHECKING:
    from tradebench.report.fronts import Group
    from tradebench.report.page import Section

MAX_LINES = 44
MAX_NAME = 90
# Shares of the width of the text: the mark, a verdict, a number, and a letter of its interval.
MARK, VERDICT, NUMBER, LETTER = 0.04, 0.18, 0.1, 0.011
LEAST_NAME, MOST_NAME = 0.2, 0.6
GAP = 0.02  # between columns
LETTERS = 72  # of small print that fill the width, where a line breaks early
SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    "±": r"$\pm$",
    "\u00d7": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "µ": r"$\mu$",
    "…": r"\ldots{}",
}
MARKS = {"front": r"$\bullet$", "possible": r"$\circ$", "dominated": "", "incomplete": ""}


def text(sections: Sequence[Section]) -> str:
    """Return one table for every group in which a point ended well, with its caption."""
    return "\n".join(_table(section.group) for section in sections if section.group.ok)


def escape(value: str) -> str:
    """Return the text so that LaTeX prints it; what its fonts may lack, by its code point."""
    # Two hyphens in a row would be printed as a dash.
    text = "".join(SPECIAL.get(char) or _plain(char) for char in clean(value))
    return text.replace("--", "-{}-").replace("--", "-{}-")


def _plain(char: str) -> str:
    return char if char.isascii() or char in _LATIN else f"[U+{ord(char):04X}]"


# The letters of Latin-1 without eth and thorn, which LaTeX's first fonts lack.
_LATIN = frozenset(map(chr, {*range(0xC0, 0x100)} - {0xD7, 0xF7, 0xD0, 0xF0, 0xDE, 0xFE}))


def _table(group: Group) -> str:
    """Return the table of the points that ended well, the front first."""
    shown = content.headline(group)
    every = [row for row in content.rows(group, shown) if row.status == "ok"]
    # Of a plan it must be said which points fit.
    told = any(row.outcome != "ok" for row in every)
    widths = [
        NUMBER + LETTER * max((len(row.cells[at].margin) for row in every), default=0)
        for at in range(len(shown))
    ]
    name = min(MOST_NAME, max(LEAST_NAME, 1 - MARK - VERDICT * told - sum(widths)))
    rows = _fitting(every, name, told)
    left = len(every) - len(rows)
    more = f" {count(left, 'more point')} left out." if left else ""
    notes = " ".join(group.accuracy_notes) if group.tasks else ""
    caption = f"{group.title[:1].upper()}{group.title[1:]}. {notes}".strip()
    marks = (
        r" $\bullet$: on the Pareto front with $P \geq 0.9$; $\circ$: with $0.1 \leq P < 0.9$."
        r" $\pm$: half of the 95\,\% interval; in brackets: its ends."
    )
    verdict = [rf"p{{{VERDICT - GAP:.2f}\linewidth}}"] if told else []
    columns = ["c", rf"p{{{name:.2f}\linewidth}}", *verdict, "r" * len(shown)]
    heads = ["", "Point", *(["Verdict"] if told else []), *map(_head, shown)]
    lines = [
        r"\begin{table}",
        rf"\caption{{{escape(caption)}{marks}{more}}}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{@{{}}{''.join(columns)}@{{}}}}",
        r"\toprule",
        _line(heads),
        r"\midrule",
        *(_line(_cells(row, told)) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _fitting(rows: Sequence[content.Row], name: float, told: bool) -> list[content.Row]:
    """Return as many rows as a page has lines for, where names have this share of the width."""
    kept, lines = [], 0
    for row in rows:
        folded = [min(len(row.name), MAX_NAME) / name]
        folded += [len(row.outcome) / (VERDICT - GAP)] if told else []
        lines += math.ceil(max(folded) / LETTERS)
        if lines > MAX_LINES:
            break
        kept.append(row)
    return kept


def _head(column: content.Column) -> str:
    """Return the title of a column with a word on each line, and its unit."""
    words = [escape(word) for word in column.title.split()]
    unit = [escape(f"({column.scale.unit})")] if column.scale.unit else []
    return r"\shortstack[r]{" + r" \\ ".join([*words, *unit]) + "}"


def _cells(row: content.Row, told: bool) -> Iterable[str]:
    yield MARKS[row.label]
    yield rf"\raggedright {escape(shorten(clean(row.name), MAX_NAME))}"
    if told:
        yield rf"\raggedright {escape(row.outcome)}"
    for cell in row.cells:
        yield escape(cell.full)


def _line(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \\"
