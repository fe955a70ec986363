"""One page that needs nothing else: no network, no other file, drawings and styles inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from tradebench import __version__
from tradebench.errors import NothingToCompareError
from tradebench.report import (
    content,
    doubles,
    explorer,
    figures,
    findings,
    latex,
    markdown,
    predictions,
    rungs,
)
from tradebench.report.answers import Adviser, Answers
from tradebench.report.claims import Comparison, comparison, first
from tradebench.report.fronts import Group, groups
from tradebench.report.ladder import Ladder, ladder
from tradebench.report.style import Folder, Picture
from tradebench.report.tables import frame, write_parquet
from tradebench.report.units import count

if TYPE_CHECKING:
    from tradebench.store import Run

HERE = Path(__file__).parent
FITS_NOTES = {
    "measured": "Memory as it was measured here; a GPU's libraries and allocator take more.",
    "predicted": (
        "Memory is predicted with an interval: it fits if the upper end does, and is tight if only "
        "the lower end does. Step time is predicted for the device that the plan was made for; "
        "another card has its own."
    ),
    "published": "Memory as others published it, under their own conditions.",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """Everything about one group of comparable points, ready to be laid out."""

    group: Group
    findings: tuple[str, ...]
    pictures: tuple[Picture, ...]
    columns: tuple[content.Column, ...]
    rows: tuple[content.Row, ...]
    endings: tuple[content.Ending, ...]
    directory: Path
    ladder: Ladder | None = None
    answers: Answers | None = None

    @property
    def kind_note(self) -> str:
        """What kind of evidence this is, in a sentence."""
        return content.KIND_NOTES[self.group.kind]

    @property
    def data(self) -> Markup:
        """Every point for the page's script."""
        return Markup(explorer.payload(self.group, self.columns, self.directory))

    @property
    def fits_note(self) -> str:
        """What the answer to what fits rests on."""
        return FITS_NOTES[self.group.kind]

    @property
    def accuracy_note(self) -> str:
        """What belongs beside every accuracy; empty where there is none."""
        return " ".join(self.group.accuracy_notes) if self.group.tasks else ""


def write(
    run: Run,
    out: Path,
    beside: Run | None = None,
    *,
    pdf: bool = False,
    parquet: bool = False,
    advise: Adviser | None = None,
) -> list[Path]:
    """Do what `tradebench.report.write` says; the page is the first of the paths."""
    if not run.results:
        raise NothingToCompareError(f"{run.directory} holds no result yet: nothing to report")
    compared = comparison(run, beside)
    out.mkdir(parents=True, exist_ok=True)
    predicted = None if beside is None else first(beside, "predicted")
    found = sections(run, Folder(out, pdf), predicted, advise)
    page, text, table = out / "index.html", out / "report.md", out / "trials.csv"
    paper = out / "table.tex"
    page.write_text(_html(run, found, compared), encoding="utf-8")
    text.write_text(markdown.text(run, found, compared), encoding="utf-8")
    shown = [each for point in predicted.points for each in point.results] if predicted else []
    numbers = frame((*run.results, *shown))
    numbers.to_csv(table, index=False, lineterminator="\n")
    written = [page, text, table]
    if tabular := latex.text(found):
        paper.write_text(tabular, encoding="utf-8")
        written.append(paper)
    if parquet:
        written.append(out / "trials.parquet")
        write_parquet(numbers, written[-1])
    drawn = [path for section in found for each in section.pictures for path in each.paths]
    return [*written, *drawn]


def sections(
    run: Run, out: Folder, beside: Group | None = None, advise: Adviser | None = None
) -> list[Section]:
    """Return every group with its figures drawn into `out`, and what to run where.

    What `beside` predicts stands in the figures of what was measured.
    """
    found = []
    for number, group in enumerate(predictions.apart(groups(run))):
        shown = content.columns(group)
        climbed = ladder(run, group)
        # The first group has the plain names; kinds and models never share a figure.
        suffix = f"-{group.kind}-{number}" if number else ""
        pictures = figures.draw(group, out, suffix, beside if group.kind == "measured" else None)
        if climbed is not None and climbed.columns:
            pictures = [rungs.ladder_figure(group, climbed, f"ladder{suffix}", out), *pictures]
        section = Section(
            group=group,
            findings=tuple(findings.findings(group)),
            pictures=tuple(pictures),
            columns=shown,
            rows=content.rows(group, shown),
            endings=content.endings(group),
            directory=run.directory,
            ladder=climbed,
            answers=None if advise is None else advise(group),
        )
        found.append(section)
    return found


def _html(run: Run, found: Sequence[Section], compared: Comparison | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = [section.group for section in found]
    errors = predictions.prediction_errors(groups(run))
    return environment.get_template("page.html.j2").render(
        title=content.heading(run),
        question=content.question(run),
        remarks=content.remarks(run),
        sections=found,
        gpus=explorer.gpu_sizes(),
        counts=explorer.COUNTS,
        compared=compared,
        kinds=list(dict.fromkeys(group.kind for group in shown)),
        errors=errors,
        errors_heading=predictions.HEADING,
        errors_summary=" ".join(predictions.summary(errors)),
        doubles=doubles.doubles(run, groups(run)),
        doubles_heading=doubles.HEADING,
        doubles_note=doubles.NOTE,
        places=content.places(run),
        cautions=content.cautions(run, shown),
        command=content.command(run),
        suite_text=str(run.header.get("suite_text") or ""),
        header=run.header,
        total=count(len(run.results), "result"),
        version=__version__,
        # Our own files and drawings, whose texts matplotlib has escaped.
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        svg=Markup,
    )
