"""What the page's script is given: settings to cross, points as plain values, drawings."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tradebench import store
from tradebench.report import charts, choices, content, explorer, fronts, scatter
from tradebench.result import CATEGORIES

RESULTS = Path(__file__).parents[1] / "results"
PLAN = "llama-3.3-70b-sharding.plan"


def group(name: str) -> fronts.Group:
    """The first group of a committed run."""
    return fronts.groups(store.load(RESULTS / name / "example"))[0]


def unpacked(found: fronts.Group, folder: Path) -> dict[str, Any]:
    shown = content.columns(found)
    text = explorer.payload(found, shown, folder)
    return dict(json.loads(gzip.decompress(base64.b64decode(text))))


def test_every_point_is_given_with_the_numbers_of_the_table(tmp_path: Path) -> None:
    found = group(PLAN)
    data = unpacked(found, tmp_path)
    rows = content.rows(found, content.columns(found))

    assert len(data["points"]) == len(rows) == len(found.points)
    for point, row in zip(data["points"], rows, strict=True):
        assert (point["number"], point["name"]) == (row.number, row.name)
        for value, cell in zip(point["values"], row.cells, strict=True):
            assert (value is None) == (cell.text == "")
            if value is not None:
                assert value[0] == pytest.approx(float(cell.text), rel=6e-3)


def test_a_prediction_s_cost_is_devices_by_time_over_tokens(tmp_path: Path) -> None:
    found = group(PLAN)
    for given, point in zip(unpacked(found, tmp_path)["points"], found.ordered, strict=True):
        if given["cost"] is None:
            continue
        rate, seconds = point.value("tokens_per_second"), point.value("step_seconds")
        tokens = point.value("tokens_per_step")
        assert rate is not None
        assert seconds is not None
        devices = int(point.settings.get("sharding", {}).get("degree", 1))
        assert given["cost"][0] == pytest.approx(devices * 1e6 / rate / 3600, rel=1e-4)
        if tokens is not None:
            assert given["cost"][0] == pytest.approx(
                devices * seconds / tokens * 1e6 / 3600, rel=1e-2
            )
        low, high = point.estimates["step_seconds"].interval or (0.0, 0.0)
        # The shorter the step, the cheaper: the ends keep their order.
        assert given["cost"][1] < given["cost"][0] < given["cost"][2]
        assert given["cost"][2] / given["cost"][1] == pytest.approx(high / low, rel=1e-3)


def test_what_a_device_must_give_is_the_plan_s_own_interval(tmp_path: Path) -> None:
    found = group(PLAN)
    for given, point in zip(unpacked(found, tmp_path)["points"], found.ordered, strict=True):
        assert point.fit is not None
        assert given["needs"] == pytest.approx(
            [each / 2**30 for each in point.fit.needed], rel=1e-4
        )


def test_packing_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    found = group(PLAN)
    shown = content.columns(found)

    assert explorer.payload(found, shown, tmp_path) == explorer.payload(found, shown, tmp_path)


def choice(name: str, count: int, trials: Sequence[tuple[int, ...]], at: int) -> choices.Choice:
    return choices.Choice(
        name=name,
        title=name,
        values=tuple(map(str, range(count))),
        places={str(trial): trial[at] for trial in trials},
    )


def grid(*counts: int) -> list[choices.Choice]:
    """The choices of a full grid."""
    trials = list(product(*map(range, counts)))
    names = ("pruning", "adapters", "quantization", "sharding")
    return [choice(names[at], count, trials, at) for at, count in enumerate(counts)]


def test_bits_and_adapters_are_crossed_before_wider_pairs() -> None:
    found = grid(9, 3, 3)

    assert [each.name for each in choices.crossed(found)][:2] == ["quantization", "adapters"]


def test_a_third_choice_makes_the_maps_while_they_stay_full() -> None:
    assert [each.name for each in choices.crossed(grid(2, 3, 3, 3))] == [
        "quantization",
        "adapters",
        "pruning",
    ]
    assert len(choices.crossed(grid(9, 3, 3))) == 2


def test_one_technique_at_a_time_makes_no_map() -> None:
    """A baseline and single changes: nothing was tried together."""
    trials = [(at, 0) for at in range(4)] + [(0, at) for at in range(1, 4)]
    found = [choice("quantization", 4, trials, 0), choice("adapters", 4, trials, 1)]

    assert choices.crossed(found) == ()
    assert choices.crossed([]) == ()


def test_choices_are_the_settings_that_differ_off_first() -> None:
    found = choices.choices(group("sharding"))

    assert [each.name for each in found if each.name == "sharding"]
    for each in found:
        assert 1 < len(each.values) <= choices.MAX_VALUES
        assert set(each.places.values()) == set(range(len(each.values)))
        assert "off" not in each.values[1:]


def named(specification: object) -> set[str]:
    """The data sets that a specification names."""
    if isinstance(specification, dict):
        own = {specification["name"]} if set(specification) == {"name"} else set()
        return own.union(*map(named, specification.values()), set())
    if isinstance(specification, list):
        return set().union(*map(named, specification), set())
    return set()


def test_drawings_name_the_data_that_the_script_gives_them() -> None:
    look = scatter.Encoding("quantization", {"a": "#0072B2", "b": "#D55E00"}, None, {})

    assert named(charts.scatter(look)) == {
        *("points", "front", "x_bars", "y_bars", "x_limit", "y_limit")
    }
    assert named(charts.maps()) == {"cells"}
    assert named(charts.memory()) == {"moments", "parts"}
    assert named(charts.peak()) == {"parts"}


def test_every_colour_of_a_drawing_is_one_of_the_page_s_variables() -> None:
    """A colour of its own would stay as it is in the dark, and on paper."""
    look = scatter.Encoding("q", {"a": "#0072B2"}, "s", {"b": "o", "c": "X"})
    text = json.dumps([charts.scatter(look), charts.maps(), charts.memory(), charts.peak()])

    assert "#" not in text
    assert text.count("var(--figure-") >= len(CATEGORIES)


def test_the_library_s_script_cannot_end_the_element_that_it_stands_in() -> None:
    script = charts.javascript()

    assert "</script" not in script.lower()
    assert "<!--" not in script
    assert script.endswith(("vegaEmbed", ";"))
