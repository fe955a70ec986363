r"""The points of a report as LaTeX tables for papers, in the style of the booktabs package.

A document needs `\usepackage{booktabs}`, and `\input{table.tex}` where the tables are to stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tradebench.report import content
from tradebench.report.units import clean, count, shorten

if TYPE_CHECKING:
    from tradebench.report.fronts import Group
    from tradebench.report.page import Section

MAX_ROWS = 40
MAX_NAME = 90
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
    '"': r"\textquotedbl{}",
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
    return "".join(SPECIAL.get(char) or _plain(char) for char in clean(value))


def _plain(char: str) -> str:
    return char if char.isascii() or char in _LATIN else f"[U+{ord(char):04X}]"


_LATIN = frozenset(map(chr, (*range(0xC0, 0xD7), *range(0xD8, 0xF7), *range(0xF8, 0x100))))


def _table(group: Group) -> str:
    """Return the table of the points that ended well, the front first."""
    shown = content.headline(group)
    every = [row for row in content.rows(group, shown) if row.status == "ok"]
    rows = every[:MAX_ROWS]
    more = (
        f" {count(len(every) - len(rows), 'more point')} left out."
        if len(rows) < len(every)
        else ""
    )
    notes = " ".join(group.accuracy_notes) if group.tasks else ""
    caption = f"{group.title[:1].upper()}{group.title[1:]}. {notes}".strip()
    marks = (
        r" $\bullet$: on the Pareto front with $P \geq 0.9$; $\circ$: with $0.1 \leq P < 0.9$."
        r" $\pm$: half of the 95\,\% interval."
    )
    lines = [
        r"\begin{table}",
        rf"\caption{{{escape(caption)}{marks}{escape(more)}}}",
        rf"\begin{{tabular}}{{@{{}}cl{'r' * len(shown)}@{{}}}}",
        r"\toprule",
        _line(["", "Point", *(escape(column.head) for column in shown)]),
        r"\midrule",
        *(_line(_cells(row)) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _cells(row: content.Row) -> Iterable[str]:
    yield MARKS[row.label]
    yield escape(shorten(clean(row.name), MAX_NAME))
    for cell in row.cells:
        yield escape(f"{cell.text} {cell.margin}".strip())


def _line(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \\"
