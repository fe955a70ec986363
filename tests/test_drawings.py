"""What all drawings of a report share: colours that can be seen, and an SVG fit for a page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tradebench.report import inlining, page, style

# One of everything that matplotlib writes, and a name that would like to be a tag.
FILE = """<?xml version="1.0" encoding="utf-8" standalone="no"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN"
  "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="300.256pt" height="200pt"
  viewBox="0 0 300.256 200" xmlns="http://www.w3.org/2000/svg" version="1.1">
 <title>A title</title>
 <metadata>nothing that is drawn</metadata>
 <defs><style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style></defs>
 <g id="figure_1">
  <g id="patch_1">
   <path d="M 0 200 
L 300.256 200 
L 300.256 0 
L 0 0 
z
" style="fill: #ffffff"/>
  </g>
  <g id="line2d_1">
   <path d="M 12.345678 20 
" clip-path="url(#pabc)" style="fill: none; stroke: #0072b2; stroke-linecap: square"/>
   <defs><path id="m1" d="M 0 2.5 C 0.663008 2.5 1.29895 2.23 1.76 1.76 z"
     style="stroke: #0072b2"/></defs>
   <g clip-path="url(#pabc)">
    <use xlink:href="#m1" x="12.345678" y="20" style="fill: #0072b2; stroke: #0072b2"/>
   </g>
  </g>
  <g id="line2d_2">
   <g clip-path="url(#pabc)">
    <use xlink:href="#m1" x="22.345678" y="20.004" style="fill: #0072b2; stroke: #0072b2"/>
   </g>
  </g>
  <g id="text_1">
   <text style="font-size: 9px; font-family: 'DejaVu Sans'; text-anchor: start; fill: #444444"
    x="1.5" y="2" transform="rotate(-0 1.5 2)">a #0072b2 &lt;/script&gt; / &gt; 1.23456</text>
   <text style="font-size: 9px; font-family: 'DejaVu Sans'; text-anchor: middle"
    x="1.5" y="2" transform="rotate(-90 1.5 2.000001)">up</text>
  </g>
 </g>
 <defs><clipPath id="pabc"><rect x="0" y="0" width="300" height="199.999"/></clipPath></defs>
</svg>
"""
ROLES = {"#ffffff": "ground", "#000000": "ink", "#444444": "label", "#0072b2": "blue"}


def inlined() -> str:
    return inlining.inline(FILE, "one", ROLES)


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2, of sRGB `#rrggbb`."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_what_the_guidelines_say_it_is() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", style.THEMES)
def test_every_text_and_mark_can_be_seen(theme: str) -> None:
    colours = style.THEMES[theme]
    grounds = (colours["ground"], colours["stripe"])  # names and marks lie on stripes as well

    for role in style.TEXTS:
        assert min(contrast(colours[role], ground) for ground in grounds) >= 4.5, role
    for role in style.MARKS:
        assert min(contrast(colours[role], ground) for ground in grounds) >= 3.0, role


# What eyes without one of three kinds of cones see (Machado, Oliveira and Fernandes 2009).
EYES: Mapping[str, list[list[float]]] = {
    "all": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no long": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no middle": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}
# From linear sRGB to the perceptual colour space OKLab (Ottosson 2020).
CONES = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
LAB = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]


def nearest(colours: Sequence[str]) -> float:
    """How far apart the two most alike colours are, for the eyes that see the least."""
    parts = np.array([[int(each[at : at + 2], 16) / 255 for at in (1, 3, 5)] for each in colours])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    found = []
    for eye in EYES.values():
        seen = np.clip(linear @ np.array(eye).T, 0, 1)
        places = np.cbrt(seen @ np.array(CONES).T) @ np.array(LAB).T
        found += [np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2)]
    return float(min(found))


@pytest.mark.parametrize("theme", style.THEMES)
def test_marks_are_as_far_apart_as_those_made_for_colour_blind_readers(theme: str) -> None:
    marks = [style.THEMES[theme][style.ROLES[each]] for each in style.COLOURS]

    assert 0.07 < nearest(style.COLOURS) < nearest(marks)


def test_every_colour_of_a_drawing_has_a_value_in_both_themes() -> None:
    roles = set(style.ROLES.values())

    assert all(set(colours) == roles for colours in style.THEMES.values())
    assert {*style.CATEGORY_COLOURS.values(), *style.COLOURS} <= set(style.ROLES)
    assert set(style.variables("light")) == set(style.variables("dark"))
    assert style.variables("dark")["--figure-ground"] == style.THEMES["dark"]["ground"]
    assert "--figure-orange-pale" in style.variables("dark")


def test_a_pale_colour_lies_between_colour_and_ground() -> None:
    assert style.pale("#000000") == "#a6a6a6"
    assert style.pale("#ffffff", "#000000") == "#595959"


def test_colours_become_variables_that_are_the_same_without_a_theme() -> None:
    svg = inlined()

    assert re.findall(r"#[0-9a-f]{6}", re.sub(r"var\(--figure-\w+,#[0-9a-f]{6}\)", "", svg)) == [
        "#0072b2"  # the one in a name, which is text
    ]
    assert "var(--figure-blue,#0072b2)" in svg
    assert 'style="fill:var(--figure-ink,#000000)' in svg  # text without a fill is ink


def test_an_inlined_drawing_is_xml_and_keeps_its_texts() -> None:
    texts = [each.text for each in ElementTree.fromstring(inlined()).iter() if each.text]

    assert texts[1:] == ["a #0072b2 </script> / > 1.23456", "up"]


def test_what_is_not_drawn_is_dropped() -> None:
    svg = inlined()

    assert "A title" not in svg
    assert "metadata" not in svg
    assert "*{" not in svg  # would style the page around it
    assert "rotate(-0" not in svg
    assert "rotate(-90 1.5 2)" in svg
    assert svg.count("<path") == 2  # the ground and the marker; the line of one place is none
    assert svg.count("<g") == 1  # two groups with the same frame are one
    assert len(svg) < len(FILE) / 1.5


def test_ids_are_those_that_are_used_and_belong_to_the_drawing() -> None:
    svg = inlined()
    ids = re.findall(r'\bid="([^"]*)"', svg)
    used = re.findall(r'(?:href="|url\()#([\w-]+)', svg)

    assert sorted(ids) == ["one-0", "one-1", "one-drawing"]
    assert set(used) == {"one-0", "one-1"}


def test_paths_keep_their_shape() -> None:
    svg = inlined()

    assert 'd="M0 200H300.26V0H0z"' in svg
    assert 'd="M0 2.5C0.66 2.5 1.3 2.23 1.76 1.76z"' in svg


def test_a_path_of_other_commands_is_only_rounded() -> None:
    other = FILE.replace("M 0 200 \nL", "M 0 200 \nA 1.23456 2 0 0 1 4 5 L")

    assert "A 1.23 2 0 0 1 4 5 L" in inlining.inline(other, "one", ROLES)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_of_the_page_can_be_read(theme: str) -> None:
    sheet = (Path(page.__file__).parent / "page.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{([^}]*)\}", sheet)[:2]
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", light if theme == "light" else dark))

    assert set(colours) == {"page", "text", "quiet", "line", "panel", "link", "good", "bad"}
    for ground in ("page", "panel"):
        for text in ("text", "quiet", "link", "good", "bad"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def test_what_all_names_share_is_said_once() -> None:
    assert style.told_apart(["bf16 + lora r4", "bf16 + nf4 + lora r4"]) == (
        "bf16 + lora r4",
        ["nothing else", "nf4"],
    )
    assert style.told_apart(["fp32", "bf16"]) == ("", ["fp32", "bf16"])
    assert style.told_apart(["fp32", "fp32 + lora"], least=3) == ("", ["fp32", "fp32 + lora"])
    assert style.told_apart([]) == ("", [])


def test_long_names_break_between_techniques() -> None:
    name = "bf16 + nf4 double + lora r4 + checkpointing 1 + fsdp2 x8"

    assert style.wrapped(name, 34) == "bf16 + nf4 double + lora r4\n+ checkpointing 1 + fsdp2 x8"
    assert style.wrapped("fp32", 34) == "fp32"
    assert max(map(len, style.wrapped("nf4 " * 300, 34).splitlines())) <= 34
    assert len(style.wrapped(" + ".join(["lora r4"] * 40), 34).splitlines()) == 2
