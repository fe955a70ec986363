"""The report as Markdown, short enough for a pull request's comment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tradebench.report import content, doubles
from tradebench.report.fronts import groups
from tradebench.report.predictions import HEADING, apart, prediction_errors, summary
from tradebench.report.units import count, shorten

if TYPE_CHECKING:
    from tradebench.report.answers import Answers
    from tradebench.report.claims import Comparison
    from tradebench.report.ladder import Ladder
    from tradebench.report.page import Section
    from tradebench.store import Run

# GitHub takes comments of up to 65,536 characters.
MAX_CHARACTERS = 60_000
ROWS = (None, 300, 100, 30, 10)  # of a table or list, until the whole is short enough
MAX_NAME = 120
MAX_REASON = 400
MAX_NAMES = 8
CUT = "\n\nCut here to stay under {} characters; index.html and trials.csv hold everything.\n"


def text(run: Run, sections: Sequence[Section], compared: Comparison | None = None) -> str:
    """Return the whole report, short enough for a comment.

    Tables lose their last rows first, which are the farthest from the front; what is still too long
    is cut with a sentence.
    """
    for most in ROWS:
        whole = _text(run, sections, compared, most)
        if len(whole) < MAX_CHARACTERS:
            return whole
    note = CUT.format(f"{MAX_CHARACTERS:,}")
    kept = whole[: MAX_CHARACTERS - len(note) - 1]
    return kept[: kept.rfind("\n")].rstrip() + note


def _text(
    run: Run, sections: Sequence[Section], compared: Comparison | None, most: int | None
) -> str:
    blocks = [f"# {escape(content.heading(run))}", escape(content.question(run))]
    blocks += [escape(each) for each in content.remarks(run)]
    kinds = list(dict.fromkeys(section.group.kind for section in sections))
    if len(kinds) > 1:
        blocks.append(f"This run holds {' and '.join(kinds)} numbers, each kind on its own.")
    for section in sections:
        blocks += _answers(section.answers) if section.answers is not None else []
    for section in sections:
        blocks += _section(section, most)
    if compared is not None:
        blocks += _comparison(compared)
    blocks += _predictions(run, most)
    blocks += _doubles(run)
    blocks += _rest(run, sections)
    return "\n\n".join(block for block in blocks if block) + "\n"


def table(run: Run) -> str:
    """Return the short table of the terminal, to be pasted into another page."""
    blocks = []
    for group in apart(groups(run)):
        shown = content.headline(group)
        blocks.append(_table(shown, content.rows(group, shown)))
    return "\n\n".join(blocks)


def escape(value: str) -> str:
    """Return the text so that Markdown shows it as it is."""
    plain = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", plain)


def _section(section: Section, most: int | None) -> list[str]:
    blocks = [
        f"## {escape(section.group.title)}",
        escape(" ".join(section.findings)),
        f"*{section.kind_note}* {escape(section.accuracy_note)}".strip(),
    ]
    if section.ladder is not None:
        blocks += ladder_blocks(section.ladder)
    for picture in section.pictures:
        image = next(path.name for path in picture.paths if path.suffix == ".png")
        blocks.append(f"### {escape(picture.title)}")
        blocks.append(f"![{escape(shorten(picture.alt, 300))}]({image})")
        blocks.append(escape(picture.caption))
    blocks.append("### Every point")
    blocks.append(
        "● on the Pareto front with P ≥ 0.9; ◐ P from 0.1 to 0.9; ○ less; · not comparable. "
        "± is the half-width of the 95 % interval."
    )
    blocks.append(_table(section.columns, section.rows[:most]))
    blocks += _left_out(len(section.rows), most, "point")
    if ended := (*section.endings, *section.unfit):
        blocks.append("### Points that did not end well, and why")
        blocks.append("\n".join(_ending(each) for each in ended[:most]))
        blocks += _left_out(len(ended), most, "reason")
    return blocks


def _answers(found: Answers) -> list[str]:
    """Return what to run on which machine: smaller print follows in its cell."""
    lines = [_line(escape(head) for head, _ in found.columns), _line(["---"] * len(found.columns))]
    for each in found.answers:
        lines.append(_line("<br>".join(map(escape, cell)) for cell in found.cells(each)))
    told = [*found.notes]
    if found.published:
        told += [f"{found.published_title}: {line}" for line in found.published]
    notes = "\n".join(f"- {escape(note)}" for note in told)
    return [f"## {escape(found.title)}", escape(found.rule), "\n".join(lines), notes]


def ladder_blocks(ladder: Ladder) -> list[str]:
    """Return the heading, the note and the table of a ladder."""
    heads = ["Row", "Adds", "Status"]
    for column in ladder.columns:
        heads += [column.head, "against the row before", "against row 0"]
    lines = [_line(map(escape, heads)), _line(["---"] * 3 + ["---:"] * (len(heads) - 3))]
    for rung in ladder.rungs:
        row = rung.row
        name = row.point.name if row.number == 0 else f"+ {row.added}"
        cells = [str(row.number), escape(shorten(name, MAX_NAME)), row.point.status_text]
        for rise in rung.rises:
            cells.append(rise.cell.full)
            cells += [each.text if each else "" for each in (rise.before, rise.baseline)]
        lines.append(_line(cells))
    remarks = [
        f"- Row {rung.row.number}, {escape(rung.row.added)}: {escape(rung.row.remark)}"
        for rung in ladder.rungs
        if rung.row.remark
    ]
    blocks = ["### One technique more with every row", ladder.note, "\n".join(lines)]
    return [*blocks, "\n".join(remarks)] if remarks else blocks


def _table(columns: Sequence[content.Column], rows: Iterable[content.Row]) -> str:
    """Return the table as one block, with a row per point."""
    heads = ["No.", "Front", "Point", "Status", *(column.head for column in columns)]
    lines = [_line(map(escape, heads)), _line(["---"] * 4 + ["---:"] * len(columns))]
    for row in rows:
        cells = (cell.full for cell in row.cells)
        name = escape(shorten(row.name, MAX_NAME))
        lines.append(_line([str(row.number), row.mark, name, row.outcome, *cells]))
    return "\n".join(lines)


def _comparison(compared: Comparison) -> list[str]:
    """Return what each technique changes by itself, and what is said about it."""
    heads = ["Technique", "Added to", *compared.heads, "Complexity"]
    aligned = ["---"] * 2 + ["---:"] * len(compared.heads) + ["---"]
    lines = [_line(map(escape, heads)), _line(aligned)]
    said = [_line(["Technique", "Claim", "About", "Source", "Verdict", "Why"]), _line(["---"] * 6)]
    for entry in compared.entries:
        cells = [entry.name, entry.without, *compared.cells(entry), entry.complexity]
        lines.append(_line(map(escape, cells)))
    for verdict in compared.verdicts:
        claim = verdict.claim
        words = (claim.says, claim.about, claim.source, verdict.word, verdict.reason)
        said.append(_line(map(escape, (verdict.name, *words))))
    remarks = [
        f"- {escape(entry.name)}: {escape(remark)}"
        for entry in compared.entries
        for remark in entry.remarks
    ]
    blocks = ["## One technique at a time", escape(" ".join(compared.notes)), "\n".join(lines)]
    blocks.append("\n".join(remarks))
    if len(said) > 2:
        blocks += ["### What is said, and what is found here", "\n".join(said)]
    return blocks


def _left_out(number: int, most: int | None, noun: str) -> list[str]:
    """Say how many rows a table is short of."""
    if most is None or number <= most:
        return []
    return [f"And {count(number - most, noun)} more, in index.html and trials.csv."]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ending(ending: content.Ending) -> str:
    names = ", ".join(escape(shorten(name, MAX_NAME)) for name in ending.names[:MAX_NAMES])
    more = len(ending.names) - MAX_NAMES
    also = f" and {more} more" if more > 0 else ""
    points = count(len(ending.names), "point")
    reason = escape(shorten(ending.reason, MAX_REASON))
    return f"- **{ending.status}** ({points}): {reason}: {names}{also}"


def _predictions(run: Run, most: int | None) -> list[str]:
    errors = prediction_errors(groups(run))
    if not errors:
        return []
    lines = [_line(["Point", "Quantity", "Predicted", "Measured", "Error"])]
    lines.append(_line(["---", "---", "---:", "---:", "---:"]))
    for each in errors[:most]:
        name = escape(shorten(each.name, MAX_NAME))
        numbers = (each.predicted, each.measured, each.error_text)
        lines.append(_line([name, each.measurement, *numbers]))
    blocks = [f"## {HEADING}", escape(" ".join(summary(errors))), "\n".join(lines)]
    return [*blocks, *_left_out(len(errors), most, "prediction")]


def _doubles(run: Run) -> list[str]:
    sentences = doubles.doubles(run, groups(run))
    if not sentences:
        return []
    listed = "\n".join(f"- {escape(shorten(each, MAX_REASON))}" for each in sentences)
    return [f"## {doubles.HEADING}", doubles.NOTE, listed]


def _rest(run: Run, sections: Sequence[Section]) -> list[str]:
    blocks = ["## Environment"]
    for place in content.places(run):
        facts = [
            f"- {part}: " + "; ".join(f"{escape(name)} {escape(fact)}" for name, fact in known)
            for part, known in place.parts
        ]
        blocks.append("\n".join([f"{place.results} made here:", "", *facts]))
    cautions = content.cautions(run, [section.group for section in sections])
    if cautions:
        blocks.append("## Warnings")
        blocks.append("\n".join(f"- {escape(shorten(each, MAX_REASON))}" for each in cautions))
    command = content.command(run)
    if command:
        blocks.append("## How to run it again")
        blocks.append(f"    {command}")
    return blocks
