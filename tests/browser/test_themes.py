"""Drawings as a page holds them look like their files, and follow its theme."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tradebench import store
from tradebench.report import bars, curves, fronts, scatter, series, style

pytestmark = pytest.mark.slow
RESULTS = Path(__file__).parents[2] / "results"
PAGE = "<!doctype html><style>body{margin:0}svg{display:block}%s</style>%s"
# A line may lie a hundredth of a point elsewhere, and its edge be another grey by so much.
NEAR, FEW = 48, 0.001


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[style.Picture]:
    """One of each kind, of a measured run: lines, bars, points and long lists of names."""
    folder = style.Folder(tmp_path_factory.mktemp("drawings"))
    (group, *_) = fronts.groups(store.load(RESULTS / "ladder" / "example"))
    axis, lines = next(iter(series.series(group).items()))
    found = [
        scatter.pareto_figure(group, "pareto", folder),
        curves.series_figure([curves.Part(group=group, axis=axis, lines=lines)], "series", folder),
        bars.memory_figure(group, "memory", folder),
        *bars.accuracy_figures(group, "accuracy", folder),
    ]
    return [each for each in found if each is not None]


def seen(browser: Any, body: str, rules: str = "") -> Any:
    """What the browser shows of the first drawing of a page: height, width and three colours."""
    from PIL import Image

    page = browser.new_page(viewport={"width": 1500, "height": 1200}, device_scale_factor=2)
    page.set_content(PAGE % (rules, body))
    shot = page.locator("svg").first.screenshot()
    page.close()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def apart(one: Any, other: Any) -> float:
    """The share of pixels that differ by more than the edge of a line may."""
    assert one.shape == other.shape
    return float((np.abs(one - other).max(axis=2) > NEAR).mean())


def inked(image: Any) -> float:
    """The share of pixels that are not the ground, which is what lies in the corner."""
    return float((np.abs(image - image[2, 2]).max(axis=2) > 4).mean())


def test_a_drawing_on_a_page_looks_like_its_file(
    browser: Any, pictures: list[style.Picture]
) -> None:
    assert len(pictures) == 4
    for picture in pictures:
        file = picture.paths[0].read_text(encoding="utf-8")
        drawn = seen(browser, file[file.index("<svg") :])

        assert inked(drawn) > 0.02
        assert apart(drawn, seen(browser, picture.svg)) < FEW, picture.name


def test_in_the_dark_the_ground_is_dark_and_nothing_is_lost(
    browser: Any, pictures: list[style.Picture]
) -> None:
    dark = ";".join(f"{name}:{value}" for name, value in style.variables("dark").items())
    for picture in pictures:
        light = seen(browser, picture.svg)
        image = seen(
            browser, picture.svg, f":root{{{dark}}}body{{background:var(--figure-ground)}}"
        )

        assert image[2, 2].tolist() == list(bytes.fromhex(style.THEMES["dark"]["ground"][1:]))
        assert inked(image) == pytest.approx(inked(light), rel=0.1)
        assert not (image == 255).all(axis=2).any()


def test_drawings_on_one_page_leave_each_other_alone(
    browser: Any, pictures: list[style.Picture]
) -> None:
    for at in range(len(pictures)):
        ahead = [pictures[at], *pictures[:at], *pictures[at + 1 :]]
        alone = seen(browser, pictures[at].svg)

        assert apart(alone, seen(browser, "".join(each.svg for each in ahead))) == 0
