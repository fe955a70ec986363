"""How every figure looks, and how it becomes the same bytes each time it is drawn."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import findfont, get_font
from matplotlib.transforms import Transform

from tradebench.report.inlining import inline
from tradebench.report.tables import Estimate
from tradebench.report.units import Scale, clean, shorten

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is too pale for lines.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#767676"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
SHAPES = ("o", "s", "^", "D", "v", "P", "X")
WHITE, LABEL, LINE, STRIPE, FAINT = "#FFFFFF", "#444444", "#E4E4E4", "#F4F4F4", "#8C8C8C"
CATEGORY_COLOURS: Mapping[str, str] = {
    "weights": BLUE,
    "gradients": VERMILLION,
    "optimizer": ORANGE,
    "activations": GREEN,
    "communication": PURPLE,
    "temporaries": SKY,
    "other": FAINT,
}
# What each colour of a drawing is for. On a page it is the CSS variable `--figure-NAME`.
ROLES: Mapping[str, str] = {
    WHITE: "ground",
    BLACK: "ink",
    LABEL: "label",
    GREY: "quiet",
    FAINT: "faint",
    LINE: "line",
    STRIPE: "stripe",
    BLUE: "blue",
    VERMILLION: "vermillion",
    GREEN: "green",
    PURPLE: "purple",
    ORANGE: "orange",
    SKY: "sky",
}
TEXTS, MARKS = ("ink", "label", "quiet"), ("faint", *(ROLES[each] for each in COLOURS))
PALE = 0.35  # as much of the colour as the fill of a point that is perhaps on the front has
# What a page sets the variables to. Each text has a contrast of at least 4.5 to the ground and each
# mark of at least 3, which Okabe and Ito's orange and sky blue have on black only, and their blue
# on white only; in both themes the marks are as far apart for colour-blind readers as theirs are.
THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "ground": "#ffffff",
        "ink": "#000000",
        "label": "#444444",
        "quiet": "#6a6a6a",
        "faint": "#8c8c8c",
        "line": "#e4e4e4",
        "stripe": "#f7f7f7",
        "blue": "#00558f",
        "vermillion": "#b03a00",
        "green": "#007a5a",
        "purple": "#c46a9c",
        "orange": "#c07e00",
        "sky": "#2f90d2",
    },
    "dark": {
        "ground": "#1b1e22",
        "ink": "#e8e9ea",
        "label": "#c3c8cd",
        "quiet": "#a0a7ae",
        "faint": "#808890",
        "line": "#383d43",
        "stripe": "#23272c",
        "blue": "#2f7fd6",
        "vermillion": "#d9600f",
        "green": "#0fa87c",
        "purple": "#d68fb8",
        "orange": "#f0b429",
        "sky": "#6cc3f5",
    },
}
MAX_NAME = 46
_CLIP = re.compile(r"\bp[0-9a-f]{10}\b")
STYLE: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LABEL,
    "ytick.color": LABEL,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    # A name may hold a dollar sign, and it means a dollar sign.
    "text.parse_math": False,
    # Text stays text: it can be searched, selected and read aloud.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # TrueType, as journals ask for
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One finished figure: its files, its drawing for a page, and what it says in words."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Folder:
    """Where figures go; with `pdf`, each as PDF as well."""

    path: Path
    pdf: bool = False


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Draw with the style of the reports, whatever style the user's own matplotlibrc asks for."""
    with matplotlib.style.context(["default", {**STYLE, "svg.hashsalt": name}]):
        yield


def save(figure: Figure, name: str, out: Folder, title: str, caption: str, alt: str) -> Picture:
    """Write the figure as SVG and PNG, and as PDF where it is wanted, without dates or versions.

    The title is one message; the files carry it among their metadata.
    """
    # The layout is found once: it takes longer than the drawing, and all files get the same one.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    said = {"Title": clean(title)}
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, **said})
    svg = _with_plain_clips(buffer.getvalue())
    paths = [out.path / f"{name}.svg", out.path / f"{name}.png"]
    paths[0].write_text(svg, encoding="utf-8")
    figure.savefig(paths[1], format="png", metadata={"Software": None, **said})
    if out.pdf:
        paths.append(out.path / f"{name}.pdf")
        undated = dict.fromkeys(("CreationDate", "Creator", "Producer"))
        figure.savefig(paths[2], format="pdf", metadata={**undated, **said})
    return Picture(
        name=name,
        title=title,
        caption=caption,
        alt=alt,
        svg=inline(svg, name, _variable_roles()),
        paths=tuple(paths),
    )


def _with_plain_clips(svg: str) -> str:
    """Name clips by their order: matplotlib's names tell bits that no file has of a coordinate.

    The layout is solved to about 1e-12 of a point, by a solver whose last bits differ between runs.
    """
    names: dict[str, str] = {}
    return _CLIP.sub(lambda found: names.setdefault(found[0], f"clip{len(names) + 1}"), svg)


def pale(colour: str, ground: str = WHITE) -> str:
    """Return the colour thinned with the ground, `#rrggbb` as both are."""
    parts = [(int(colour[at : at + 2], 16), int(ground[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(under + (over - under) * PALE):02x}" for over, under in parts)


def variables(theme: str) -> Mapping[str, str]:
    """Return the CSS variables of drawings in a theme of `THEMES`, with the pale ones."""
    colours = THEMES[theme]
    thin = {
        f"{ROLES[each]}-pale": pale(colours[ROLES[each]], colours["ground"]) for each in COLOURS
    }
    return {f"--figure-{role}": colour for role, colour in {**colours, **thin}.items()}


def _variable_roles() -> dict[str, str]:
    """Map each colour as matplotlib writes it to its role."""
    thin = {pale(each): f"{ROLES[each]}-pale" for each in COLOURS}
    return {**thin, **{colour.lower(): role for colour, role in ROLES.items()}}


def note(figure: Figure | SubFigure, *sentences: str) -> None:
    """Set sentences above the figure that must go wherever the figure goes, each on a line."""
    text = "\n".join(drawable(each, 140) for each in sentences)
    figure.suptitle(text, fontsize=8, color=GREY, x=0.01, ha="left")


def intervals(estimates: Iterable[Estimate]) -> str:
    """Return the sentences that say what the bars of `whiskers` are, as far as there are any."""
    drawn = list(estimates)
    parts = []
    if repeats := max((len(each.values) for each in drawn if each.spread), default=0):
        parts.append(
            f"Thick bar: lowest to highest of up to {repeats} repeats; a point is their mean."
        )
    if any(each.interval and each.predicted for each in drawn):
        parts.append(
            "Thin bar: what is not known without the device; it moves all points the same way."
        )
    if any(each.interval and not each.predicted for each in drawn):
        parts.append("Thin bar: 95 % interval within one run, from its steps or test items.")
    return " ".join(parts)


def wrapped(text: str, width: int, lines: int = 2) -> str:
    """Return the text on at most so many lines, broken between techniques where it can be."""
    parts = drawable(text, width * lines).split(" + ")
    # Only the space before a plus is one to break at.
    whole = " +\N{NO-BREAK SPACE}".join(each.replace(" ", "\N{NO-BREAK SPACE}") for each in parts)
    rows = textwrap.wrap(whole, width, break_on_hyphens=False, max_lines=lines, placeholder="…")
    return "\n".join(rows).replace("\N{NO-BREAK SPACE}", " ")


def told_apart(names: Sequence[str], least: int = 2) -> tuple[str, list[str]]:
    """Return the techniques that all names have, and what each has beside them.

    Of fewer than `least` names all stay as they are.
    """
    parts = [name.split(" + ") for name in names]
    common = [each for each in parts[0] if all(each in other for other in parts)] if parts else []
    if len(names) < least or not common:
        return "", list(names)
    own = [" + ".join(each for each in name if each not in common) for name in parts]
    return " + ".join(common), [name or "nothing else" for name in own]


def drawable(text: str, length: int = MAX_NAME) -> str:
    """Return the text on one short line, with a box for every character that the font lacks."""
    known = _characters()
    return shorten("".join(c if ord(c) in known else "□" for c in clean(text)), length)


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(str(STYLE["font.family"]))).get_charmap())


def whiskers(
    axes: Axes,
    at: float,
    estimate: Estimate,
    scale: Scale,
    colour: str,
    upright: bool,
    transform: Transform | None = None,
) -> None:
    """Draw a quantity's uncertainty: a thin bar within one run, a thick one over its repeats."""
    placed: dict[str, Any] = {} if transform is None else {"transform": transform}
    draw = axes.vlines if upright else axes.hlines
    for bounds, width in ((estimate.interval, 1.0), (estimate.spread, 3.2)):
        if bounds is not None:
            low, high = (bound / scale.factor for bound in bounds)
            draw(at, low, high, colors=colour, linewidth=width, zorder=2.5, alpha=0.75, **placed)
