"""The page in a real browser; without Chromium or playwright these tests are skipped."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tradebench import report, store
from tradebench.commands import reporting
from tradebench.result import CATEGORIES

pytestmark = pytest.mark.slow
RESULTS = Path(__file__).parents[2] / "results"
MARKS = ".plot .mark-symbol.role-mark path"
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
    moments = [
        {"at": at, **dict.fromkeys(CATEGORIES, size)}
        for at, size in ((0.0, 0), (0.3, 2**20), (0.8, 2**19))
    ]
    parts = [{"name": "forward", "start": 0.0}, {"name": "backward", "start": 0.5}]
    step = gzip.compress(json.dumps({"moments": moments, "parts": parts}).encode())
    for trial in trials[::2]:
        (folder / "timelines" / f"{trial}.json.gz").write_bytes(step)
    report.write(replace(run, results=found, directory=folder), folder)
    return Path(folder / "index.html").as_uri()


@pytest.fixture(params=["light", "dark"])
def opened(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """The page, which must end without a word on the console, or a request for anything else."""
    context = browser.new_context(offline=True, color_scheme=request.param)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda each: None if each.url == address else wrong.append(each.url))
    page.goto(address)
    page.locator(MARKS).first.wait_for()
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
    drag(opened)

    assert 0 < rows(opened) < before
    assert opened.locator(".kept").first.inner_text().startswith(f"{rows(opened)} of ")
    opened.locator(".clear").first.click()
    assert rows(opened) == before


def test_other_axes_have_no_box(opened: Any) -> None:
    before = rows(opened)
    drag(opened)
    assert rows(opened) < before
    opened.locator(".across").first.select_option(label="Step time (ms)")

    assert rows(opened) == before
    opened.locator(".plot .role-axis-title text", has_text="Step time").wait_for()
    shown = opened.locator(MARKS).evaluate_all("all => all.map(e => e.getAttribute('opacity'))")
    assert set(shown) == {"1"}


def test_whoever_cannot_choose_devices_is_told_of_none(opened: Any) -> None:
    assert not opened.locator(".gpus").first.is_visible()
    opened.locator(".memory").first.focus()
    opened.keyboard.press("PageDown")

    answer = opened.locator(".answer").first.inner_text()
    assert re.match(
        r"On [\d.]+ MiB, \d+ points fit \(measured\)\.\s+"
        r"The most accurate, or not to be told from it and quicker: No\. ",
        answer,
    )
    assert "device" not in answer.replace("on one device", "")


def test_a_click_on_a_heading_sorts_what_has_a_value_and_once_more_turns_it(opened: Any) -> None:
    head = opened.locator(".points th").nth(4)

    def values() -> list[float | None]:
        texts = opened.locator(".points tbody tr").evaluate_all(
            "rows => rows.map(row => row.cells[4].dataset.value ?? null)"
        )
        return [None if text is None else float(text) for text in texts]

    for direction in ("ascending", "descending"):
        head.locator("button").click()
        found = [each for each in values() if each is not None]
        assert head.get_attribute("aria-sort") == direction
        assert found == sorted(found, reverse=direction == "descending")
        assert values() == found + [None] * (len(values()) - len(found))


def drag(page: Any) -> None:
    """Draw a box over the left upper part of the drawing."""
    plot = page.locator(".plot svg").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 75, box["y"] + 16)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    page.wait_for_timeout(100)


def test_any_two_quantities_can_be_drawn_against_each_other(opened: Any) -> None:
    def titles() -> list[str]:
        return [each.text_content() for each in opened.locator(".plot .role-axis-title text").all()]

    assert titles() == [
        "Peak tensor memory (MiB), less is better",
        "Accuracy on guilds (%), more is better",
    ]
    opened.locator(".across").first.select_option(label="Step time (ms)")
    opened.locator(".plot .role-axis-title text", has_text="Step time").wait_for()
    assert titles()[0] == "Step time (ms), less is better"


def test_pointing_at_a_mark_tells_its_whole_configuration(opened: Any) -> None:
    opened.locator(".filter").first.fill("bf16 nf4")
    marks = opened.locator(MARKS)
    solid = [each for each in marks.all() if each.get_attribute("opacity") == "1"]
    assert len(solid) == rows(opened) < marks.count()
    solid[0].hover()

    told = opened.locator("#vg-tooltip-element").inner_text()
    assert "bf16 + nf4 + lora r16 + checkpointing 1" in told
    assert re.search(r"Peak tensor memory \(MiB\): [\d.]+", told)
    solid[0].click()
    assert opened.locator("dialog[open]").count() == 1


def test_a_name_that_smuggles_in_a_script_stays_text_in_the_tooltip(opened: Any) -> None:
    name = HOSTILE[1]
    opened.locator(".filter").first.fill("onerror")
    marks = opened.locator(MARKS)
    next(each for each in marks.all() if each.get_attribute("opacity") == "1").hover()

    tip = opened.locator("#vg-tooltip-element")
    assert name in tip.inner_text()
    assert tip.locator("img").count() == 0


def test_the_keyboard_reaches_a_point_and_opens_its_card(opened: Any) -> None:
    def thick() -> int:
        widths = opened.locator(MARKS).evaluate_all(
            "marks => marks.map(each => Number(each.getAttribute('stroke-width')))"
        )
        return sum(width > 4 for width in widths)

    assert thick() == 0
    opened.locator("tr[data-number]").nth(2).focus()
    assert thick() == 1
    opened.keyboard.press("Enter")
    card = opened.locator("dialog[open]")
    assert card.count() == 1
    assert "grid:" in card.inner_text()
    assert "it is not the accuracy of a larger model" in card.inner_text()
    opened.keyboard.press("Escape")
    assert opened.locator("dialog[open]").count() == 0


def test_a_click_on_a_row_opens_its_card(opened: Any) -> None:
    row = opened.locator("tr[data-number]").nth(1)
    row.locator("td").nth(1).click()

    number = row.get_attribute("data-number")
    assert f"No. {number}:" in opened.locator("dialog[open] h3").inner_text()


def test_a_card_draws_what_memory_is_for(opened: Any) -> None:
    seen = set()
    for at in range(rows(opened)):
        opened.locator("tr[data-number]").nth(at).focus()
        opened.keyboard.press("Enter")
        card = opened.locator("dialog[open]")
        assert "Memory by category" in card.inner_text()
        assert re.search(r"At the peak: weights [\d.,]+ MiB", card.inner_text())
        step = (
            "One step from start to end, predicted; the highest moment is 7.00 MiB."
            in card.inner_text()
        )
        card.locator(".plot .mark-area path" if step else ".plot .mark-rect path").first.wait_for()
        assert step == ("backward" in card.locator(".plot").inner_text())
        seen.add(step)
        opened.keyboard.press("Escape")

    assert seen == {True, False}


@pytest.mark.parametrize("lends", [True, False], ids=["clipboard", "no clipboard"])
def test_what_a_card_holds_can_be_copied(opened: Any, lends: bool) -> None:
    """A browser that does not lend its clipboard leaves the text selected."""
    opened.evaluate(
        """lends => Object.defineProperty(navigator, "clipboard", {value: {
            writeText: text => (window.held = text, lends ? Promise.resolve() : Promise.reject()),
        }})""",
        lends,
    )
    opened.locator("tr[data-number]").nth(1).focus()
    opened.keyboard.press("Enter")
    card = opened.locator("dialog[open]")
    for at in range(2):
        button, block = card.locator("h4 + button").nth(at), card.locator("pre").nth(at)
        assert button.inner_text() == "Copy"
        button.click()
        opened.wait_for_timeout(50)

        assert opened.evaluate("window.held") == block.text_content()
        assert opened.evaluate("getSelection().toString()").strip() == block.inner_text().strip()
        assert button.inner_text() == ("Copied" if lends else "Copy")


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_nothing_overflows(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 900})

    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_three_hundred_points_stay_below_two_megabytes(tmp_path: Path) -> None:
    run = store.load(RESULTS / "llama-3.3-70b.plan" / "example")
    report.write(replace(run, results=run.results[:300]), tmp_path)

    assert (tmp_path / "index.html").stat().st_size < 2_000_000


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a large plan, which opens with what to run where."""
    folder = tmp_path_factory.mktemp("plan")
    reporting.write(store.load(RESULTS / "llama-3.3-70b.plan" / "example"), folder)
    return Path(folder / "index.html").as_uri()


@pytest.fixture
def planned(browser: Any, plan: str) -> Iterator[Any]:
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(plan)
    page.locator(MARKS).first.wait_for()
    yield page
    context.close()


def choose(page: Any, gpus: str, size: str) -> str:
    """Choose a machine, and return what the page says of it."""
    page.locator(".gpus").select_option(gpus)
    page.get_by_role("button", name=size, exact=True).click()
    return str(page.locator(".answer").inner_text())


def test_a_machine_that_is_chosen_is_what_the_table_speaks_of(planned: Any) -> None:
    answer = choose(planned, "2", "80 GB")

    found = re.match("On 2 \u00d7 80 GB, (\\d+) points fit and (\\d+) may, just", answer)
    assert found is not None, answer
    told = planned.locator("tr[data-number]:visible .status").all_inner_texts()
    assert told.count("fits 2 \u00d7 80 GB") == int(found[1])
    assert told.count("is tight on 2 \u00d7 80 GB") == int(found[2])
    assert len(told) == int(found[1]) + int(found[2])
    planned.locator("tr[data-number]:visible").first.click()
    assert "fits 2 \u00d7 80 GB" in planned.locator("dialog[open]").inner_text()


@pytest.mark.parametrize(
    ("gpus", "size"),
    [
        ("1", "48 GB"),
        ("1", "80 GB"),
        ("2", "24 GB"),
        ("2", "80 GB"),
        ("8", "24 GB"),
        ("8", "80 GB"),
    ],
)
def test_the_page_and_its_table_give_one_answer(planned: Any, gpus: str, size: str) -> None:
    """The table is worked out in Python, the answer by the page: neither knows the other."""
    row = planned.locator(".answers tr", has=planned.get_by_text(f"{gpus} x {size}", exact=True))
    number = re.match(r"No\. (\d+):", row.locator("td").first.inner_text())
    assert number is not None

    assert f": No. {number[1]}, " in choose(planned, gpus, size)


def test_advice_for_the_planned_card_is_not_given_to_another_machine(planned: Any) -> None:
    row = planned.locator("tr[data-number]", has=planned.locator(".advice")).first
    number = row.get_attribute("data-number")
    advice = row.locator(".advice").inner_text()

    def card() -> str:
        planned.locator(f"tr[data-number='{number}']").press("Enter")
        text = str(planned.locator("dialog[open]").inner_text())
        planned.keyboard.press("Escape")
        return text

    assert advice in card()
    assert "does not fit on h100-80gb" in card()
    choose(planned, "8", "256 GB")
    assert not row.locator(".advice").is_visible()
    assert advice not in card()


def test_a_row_of_a_machine_on_which_nothing_fits_opens_what_is_nearest(planned: Any) -> None:
    row = planned.locator(".answers tr.nothing-fits").first
    row.press("Enter")

    card = planned.locator("dialog[open]").inner_text()
    (number,) = re.findall(r"nearest is No\. (\d+)", row.inner_text())
    assert card.count(f"No. {number}: ") == 1
    assert "does not fit 1 x 24 GB" in card


def test_the_answers_edge_tells_whether_something_fits(planned: Any) -> None:
    for gpus, size, verdict in (
        ("1", "24 GB", "no"),
        ("1", "48 GB", "tight"),
        ("1", "80 GB", "fits"),
    ):
        answer = choose(planned, gpus, size)

        assert planned.locator(".answer").get_attribute("data-verdict") == verdict
        assert ("Nearest: No. " in answer) == (verdict == "no")


def test_a_card_says_where_else_than_in_training_most_memory_is_needed(opened: Any) -> None:
    opened.locator("tr[data-number]").nth(1).press("Enter")
    card = opened.locator("dialog[open]").inner_text()
    (needed,) = re.findall(r"([\d.]+) MiB on one device, most of all while (?!training)", card)
    (trained,) = re.findall(r"Peak tensor memory \(MiB\)\s+([\d.]+)", card)

    assert float(needed) > float(trained)
    assert "which is not drawn." in card


def test_a_machine_of_gpus_that_no_point_was_made_for_is_not_offered(planned: Any) -> None:
    assert planned.locator(".gpus option").all_text_contents() == ["1", "2", "8"]


def test_tokens_and_a_price_become_hours_and_money(planned: Any) -> None:
    planned.locator(".tokens").fill("100")
    planned.locator(".price").fill("2.5")
    answer = choose(planned, "8", "80 GB")

    hours, devices, money = (
        float(each)
        for each in re.search(
            r"take ([\d.]+) \([^)]*\) hours = ([\d.]+) \([^)]*\) device-hours, \$([\d.]+) \(",
            answer,
        ).groups()  # type: ignore[union-attr]
    )
    assert devices == pytest.approx(8 * hours, rel=0.01)
    assert money == pytest.approx(2.5 * devices, rel=0.01)


def test_without_a_price_there_is_no_money_and_without_tokens_no_time(planned: Any) -> None:
    answer = choose(planned, "8", "80 GB")
    assert "1 million tokens take" in answer
    assert "$" not in answer
    planned.locator(".price").fill("2.5")
    assert ", $" in planned.locator(".answer").inner_text()
    planned.locator(".tokens").fill("")

    answer = planned.locator(".answer").inner_text()
    assert re.search(r"a step takes [^;]*\)\.", answer)
    assert "tokens take" not in answer
    assert "$" not in answer


def test_no_limit_brings_back_every_point_and_the_verdicts_of_the_plan(planned: Any) -> None:
    def told() -> list[str]:
        return list(planned.locator("tr[data-number]:visible .status").all_inner_texts())

    before, size = told(), planned.locator(".size").inner_text()
    choose(planned, "1", "80 GB")
    assert len(told()) < len(before)
    planned.get_by_role("button", name="no limit").click()

    assert told() == before
    assert planned.locator(".size").inner_text() == size == "any memory"
    assert planned.locator(".answer").inner_text().startswith("Choose how many GPUs you have")


def test_a_row_of_the_answers_opens_its_point(planned: Any) -> None:
    row = planned.locator(".answers tr[data-point]").first
    number = row.get_attribute("data-point")
    row.locator("td").first.click()
    assert f"No. {number}:" in planned.locator("dialog[open] h3").inner_text()
    planned.keyboard.press("Escape")
    row.focus()
    planned.keyboard.press("Enter")
    assert f"No. {number}:" in planned.locator("dialog[open] h3").inner_text()


def test_the_card_of_an_answer_is_judged_on_the_machine_of_its_row(planned: Any) -> None:
    """Not on the plan's device, nor on what was chosen below."""
    row = planned.locator(".answers tr", has=planned.get_by_text("2 x 24 GB", exact=True))
    assert "Tight" in row.inner_text()
    choose(planned, "8", "80 GB")
    row.locator("td").first.click()
    dialog = planned.locator("dialog[open]")

    assert "is tight on 2 x 24 GB." in dialog.inner_text()
    assert "fits" not in dialog.locator("p").first.inner_text()


def test_a_cost_says_what_it_is_of_in_its_head_and_in_its_cell(planned: Any) -> None:
    cost = planned.locator(".answers tr.fits td[data-head^=Cost]").first
    head = planned.locator(".answers th", has_text="Cost").first
    before = (head.inner_text(), cost.get_attribute("data-head"), cost.inner_text())
    planned.locator(".tokens").fill("100")
    assert head.inner_text() == cost.get_attribute("data-head") == "Cost of these tokens"
    assert "100 million tokens take" in cost.inner_text()

    for nothing in ("0", "", "-5"):
        planned.locator(".tokens").fill(nothing)
        planned.locator(".price").fill("2.5")
        assert (head.inner_text(), cost.get_attribute("data-head"), cost.inner_text()) == before


def test_a_cell_of_a_map_opens_the_point_that_it_shows(planned: Any) -> None:
    cell = planned.locator(".maps .mark-rect path[aria-label*='No. ']").first
    number = re.search(r"No\. \d+:", cell.get_attribute("aria-label"))
    assert number is not None
    cell.click(force=True)

    assert number[0] in planned.locator("dialog[open] h3").inner_text()


def test_maps_keep_the_order_of_their_settings(planned: Any) -> None:
    """Whichever cells are empty: off first, then as the suite has them."""

    def settings() -> tuple[list[str], list[str], list[str]]:
        """Those from left to right, those from top to bottom, and those of the maps."""
        labels = planned.locator(".maps .role-axis-label text").evaluate_all(
            """all => all.map(each => {
                const {right, bottom} = each.getBoundingClientRect();
                const isTilted = each.getAttribute("transform").includes("rotate");
                return [isTilted, Math.round(isTilted ? right : bottom), each.textContent];
            })"""
        )
        along, down = (
            list(dict.fromkeys(text for tilted, _, text in sorted(labels) if tilted == wanted))
            for wanted in (True, False)
        )
        heads = planned.locator(".maps text", has_text=": ").evaluate_all(
            "all => all.map(each => [each.getBoundingClientRect().x, each.textContent])"
        )
        return along, down, [text for _, text in sorted(heads)]

    before = settings()
    assert [each[0].removeprefix("Loss: ") for each in before] == ["off"] * 3
    for size in ("80 GB", "192 GB", "no limit"):
        choose(planned, "1", size)
        planned.wait_for_timeout(300)
        assert settings() == before


def test_more_devices_than_one_may_choose_are_no_limit_of_the_page(
    browser: Any, tmp_path: Path
) -> None:
    run = store.load(RESULTS / "llama-3.3-70b-sharding.plan" / "example")
    page, *_ = report.write(run, tmp_path)
    context = browser.new_context(offline=True)
    shown = context.new_page()
    shown.goto(page.as_uri())
    shown.locator(MARKS).first.wait_for()

    points = shown.locator("tr[data-number]").count()
    answer = shown.locator(".answer").inner_text()
    context.close()
    assert len({each.trial for each in run.results}) == points
    assert f"Without a limit, {points} points have a prediction." in answer


def test_maps_show_the_best_of_what_is_kept(planned: Any) -> None:
    """A second way to the same number: the smallest of the table's rows for that cell."""
    choose(planned, "1", "80 GB")
    planned.wait_for_timeout(300)
    shown = planned.locator(".maps .mark-text.role-mark text").all_text_contents()
    costs = [
        float(each)
        for each in planned.locator("tr[data-number]:visible").evaluate_all(
            "rows => rows.map(row => row.cells[6].dataset.value).filter(each => each)"
        )
    ]
    numbers = [float(each) for each in shown if each != "-"]
    assert numbers
    assert min(numbers) == pytest.approx(min(costs) / 0.0036, rel=5e-3)


def test_paper_has_the_drawing_and_the_front_and_nothing_to_press(opened: Any) -> None:
    opened.emulate_media(media="print")
    opened.wait_for_timeout(200)

    box = opened.locator(".plot svg").first.bounding_box()
    assert box["height"] > 200
    assert opened.locator(".controls:visible, dialog:visible").count() == 0
    shown = set(
        opened.locator(".points tbody tr:visible").evaluate_all(
            "rows => rows.map(r => r.className)"
        )
    )
    assert shown <= {"front", "possible"}
    assert "front" in shown
