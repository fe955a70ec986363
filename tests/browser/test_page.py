"""The page in a real browser; without Chromium or playwright these tests are skipped."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tradebench import report, store
from tradebench.result import CATEGORIES

playwright: Any = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed", exc_type=ImportError
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


RESULTS = Path(__file__).parents[2] / "results"
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "nf4 " * 300,
    "\u202eevil\u202c 😀",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a measured run, some points of which have hostile names, as a file."""
    folder = tmp_path_factory.mktemp("page")
    run = store.load(RESULTS / "quickstart-full" / "example")
    trials = list(dict.fromkeys(each.trial for each in run.results))
    names = dict(zip(trials[::4], HOSTILE, strict=False))
    found = tuple(
        each.model_copy(update={"label": names.get(each.trial, each.label)}) for each in run.results
    )
    (folder / "timelines").mkdir()
    moments = [dict.fromkeys(CATEGORIES, size) for size in (0, 2**20, 2**19)]
    step = gzip.compress(json.dumps({"moments": moments}).encode())
    for trial in trials[::2]:
        (folder / "timelines" / f"{trial}.json.gz").write_bytes(step)
    report.write(replace(run, results=found, directory=folder), folder)
    return Path(folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=["light", "dark"])
def opened(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """The page, which must end without an error and without a request for anything else."""
    context = browser.new_context(offline=True, color_scheme=request.param)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda each: None if each.url == address else wrong.append(each.url))
    page.goto(address)
    yield page
    context.close()
    assert wrong == []


def rows(page: Any) -> int:
    return int(page.locator("tr[data-number]:visible").count())


def test_the_filter_changes_the_table(opened: Any) -> None:
    everything_shown = rows(opened)
    opened.locator(".filter").first.fill("nf4")

    assert 0 < rows(opened) < everything_shown


def test_less_memory_leaves_fewer_points_and_another_answer(opened: Any) -> None:
    before, answer = rows(opened), opened.locator(".answer").first.inner_text()
    slider = opened.locator(".memory").first
    slider.focus()
    opened.keyboard.press("Home")

    assert rows(opened) < before
    assert opened.locator(".answer").first.inner_text() != answer
    assert "no point" in opened.locator(".answer").first.inner_text()


def test_dragging_over_the_drawing_filters_the_table(opened: Any) -> None:
    before = rows(opened)
    opened.locator(".plot svg").first.scroll_into_view_if_needed()
    box = opened.locator(".plot svg").first.bounding_box()
    opened.mouse.move(box["x"] + 75, box["y"] + 16)
    opened.mouse.down()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 60, steps=4)
    opened.mouse.up()

    assert 0 < rows(opened) < before


def test_the_keyboard_reaches_a_point_and_opens_its_card(opened: Any) -> None:
    opened.locator("tr[data-number]").nth(2).focus()

    assert opened.locator(".mark.chosen").count() == 1
    opened.keyboard.press("Enter")
    card = opened.locator("dialog[open]")
    assert card.count() == 1
    assert "grid:" in card.inner_text()
    assert "it is not the accuracy of a larger model" in card.inner_text()
    opened.keyboard.press("Escape")
    assert opened.locator("dialog[open]").count() == 0


def test_a_card_draws_what_memory_is_for(opened: Any) -> None:
    seen = set()
    for at in range(rows(opened)):
        opened.locator("tr[data-number]").nth(at).focus()
        opened.keyboard.press("Enter")
        card = opened.locator("dialog[open]")
        assert "Memory by category" in card.inner_text()
        assert re.search(r"weights [\d.,]+ MiB at the peak", card.inner_text())
        step = (
            "One step from start to end, predicted; the highest moment is 7 MiB."
            in card.inner_text()
        )
        assert card.locator("svg path" if step else "svg:not(.sample) rect").count() > 2
        seen.add(step)
        opened.keyboard.press("Escape")

    assert seen == {True, False}


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_nothing_overflows(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 900})

    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_three_hundred_points_stay_below_two_megabytes(tmp_path: Path) -> None:
    run = store.load(RESULTS / "llama-3.3-70b.plan" / "example")
    report.write(replace(run, results=run.results[:300]), tmp_path)

    assert (tmp_path / "index.html").stat().st_size < 2_000_000
