"""One page that needs nothing else: no network, no other file, drawings and styles inside."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from tradebench import __version__
from tradebench.errors import NothingToCompareError
from tradebench.published.held import sharded_error
from tradebench.report import (
    charts,
    content,
    doubles,
    explorer,
    figures,
    findings,
    latex,
    markdown,
    predictions,
    rungs,
    script,
)
from tradebench.report.answers import Adviser, Answers
from tradebench.report.claims import Comparison, comparison, first
from tradebench.report.fronts import Group, groups
from tradebench.report.ladder import Ladder, ladder
from tradebench.report.style import Folder, Picture, variables
from tradebench.report.tables import frame, write_parquet
from tradebench.report.units import MEMORIES, count, listed, show, title

if TYPE_CHECKING:
    from tradebench.store import Run

HERE = Path(__file__).parent
FITS_NOTES = {
    "measured": "Memory as it was measured here; a GPU's libraries and allocator take more.",
    "predicted": (
        "A point needs what its whole process takes of a device in its worst phase, given as an "
        "interval: it fits if every card of the size holds the upper end, and is tight if some "
        "hold the lower end."
    ),
    "published": "Memory as others published it, under their own conditions.",
}
MARGINS = {
    "measured": (
        "± is the half-width of the 95 % interval, from the spread between repeats (pooled over "
        "all points) and the sampling within a run together."
    ),
    "predicted": (
        "Below a number: the ends of its interval, which is what cannot be known without the "
        "device; it moves all points the same way."
    ),
    "published": "",
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
    unfit: tuple[content.Ending, ...] = ()
    ladder: Ladder | None = None
    answers: Answers | None = None

    @property
    def figures(self) -> tuple[Picture, ...]:
        """The figures that the page shows as they are: all but the front, which it draws itself."""
        return tuple(each for each in self.pictures if not each.name.startswith(figures.FRONT))

    @property
    def objectives(self) -> str:
        """What the front is of, in words."""
        return listed(title(each.name).lower() for each in self.group.objectives)

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
        fit = self.group.fit
        note = FITS_NOTES[self.group.kind]
        if fit is None:
            return note
        low, high = (show("needed_bytes", each, "B") for each in fit.capacity)
        if any(point.devices > 1 for point in self.group.points):
            off = f"{100 * sharded_error():.1f} %"
            note += (
                f" Of several devices it is tight as well where it leaves less than the {off} of a "
                "card by which sharded memory was off elsewhere."
            )
        return (
            f"{note} The plan is for {fit.device}, which gives {low} to {high}, and step times and "
            "costs are those of it: another device has its own."
        )

    @property
    def device(self) -> str:
        """The device of a plan, which its verdicts are about; empty without one."""
        return "" if self.group.fit is None else self.group.fit.device

    @property
    def table_note(self) -> str:
        """How to read the table of every point."""
        sure = "with a probability of at least 90 %; ◐ of 10 to 90 %; ○ less"
        if self.group.kind == "predicted":
            sure = "nothing beats it in all of these; ○ something does"
        repeats = {len(point.results) for point in self.group.points}
        ran = f" Each point ran {min(repeats)} times." if max(repeats) > 1 == len(repeats) else ""
        return (
            f"● and tinted: on the Pareto front of {self.objectives}, {sure}; · not "
            f"comparable, because it did not end well or an objective is missing. "
            f"{MARGINS[self.group.kind]}{ran} {self._memories}".rstrip()
        )

    @property
    def _memories(self) -> str:
        """What tells the columns of memory apart, where there are several."""
        names = {column.name for column in self.columns}
        told = [meaning for name, meaning in MEMORIES.items() if name in names]
        text = "; ".join(told)
        return f"{text[0].upper()}{text[1:]}." if len(told) > 1 else ""

    @property
    def unfit_note(self) -> str:
        """How many points of a plan do not fit; the table says what would."""
        counts = Counter(each.status for each in self.unfit for _ in each.names)
        if not counts:
            return ""
        told = listed(f"{number} {verdict}" for verdict, number in counts.items())
        return (
            f"Of {len(self.group.points)} points on the plan's device: {told}. The nearest change "
            "that fits stands beside each in the table."
        )

    @property
    def bars(self) -> str:
        """What the bars of the page's drawing are."""
        if self.group.kind == "predicted":
            return "what cannot be known without the device; of many points, on the front only"
        return "95 % intervals"

    @property
    def workload(self) -> str:
        """What a step is."""
        return content.workload(self.group)

    @property
    def glossary(self) -> tuple[content.Term, ...]:
        """What the names of points speak of."""
        return content.glossary(self.group)

    @property
    def accuracy_note(self) -> str:
        """What belongs beside every accuracy; empty where there is none."""
        return " ".join(self.group.accuracy_notes) if self.group.tasks else ""


@dataclass(frozen=True)
class Script:
    """A script of the page, and what its policy knows it by."""

    source: str

    @property
    def text(self) -> Markup:
        """The script as it stands in its element, which nothing in it may end."""
        return Markup(self.source.replace("</script", "<\\/script"))

    @property
    def digest(self) -> str:
        """The SHA-256 of its text, as a content security policy takes it."""
        return base64.b64encode(hashlib.sha256(self.text.encode()).digest()).decode()


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
            unfit=content.unfit(group),
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
    shown = [section.group for section in found]
    errors = predictions.prediction_errors(groups(run))
    return environment.get_template("page.html.j2").render(
        title=content.heading(run),
        question=content.question(run),
        remarks=content.remarks(run),
        sections=found,
        gpus=explorer.gpu_sizes(),
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
        style=Markup(_themes() + (HERE / "page.css").read_text(encoding="utf-8")),
        scripts=(Script(charts.javascript()), Script(script.javascript())),
        svg=Markup,
    )


def _themes() -> str:
    """Return the rules that give drawings their colours, in the light and in the dark."""
    light, dark = (
        f":root {{ {' '.join(f'{name}: {colour};' for name, colour in variables(theme).items())} }}"
        for theme in ("light", "dark")
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n"
