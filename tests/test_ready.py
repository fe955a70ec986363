"""What a point's card holds: what a reader copies, and how memory moves in a step."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tradebench import store
from tradebench.report import explorer, fronts, ready
from tradebench.report.tables import Point
from tradebench.result import CATEGORIES
from tradebench.suite import Suite

EXAMPLE = Path(__file__).parents[1] / "results" / "llama-3.3-70b.plan" / "example"
NAME = "bf16 + nf4 double + dora r16"
SILENT = [name for name in CATEGORIES if name != "communication"]


@pytest.fixture(scope="module")
def found() -> dict[str, Point]:
    """Points of the committed plan by name."""
    return {p.name: p for group in fronts.groups(store.load(EXAMPLE)) for p in group.points}


@pytest.mark.slow
def test_a_point_s_suite_file_is_that_point(found: dict[str, Point], tmp_path: Path) -> None:
    for point in list(found.values())[::50]:
        path = tmp_path / f"{point.trial}.yaml"
        path.write_text(ready.suite_file(point), encoding="utf-8")

        assert [each.id for each in Suite.load(path).trials()] == [point.trial]


@pytest.mark.slow
def test_a_point_s_settings_are_written_as_the_libraries_take_them(
    found: dict[str, Point],
) -> None:
    code = ready.library_code(found[NAME])

    compile(code, "settings", "exec")
    assert 'bnb_4bit_quant_type="nf4"' in code
    assert "bnb_4bit_use_double_quant=True" in code
    assert "lora_alpha=32" in code
    assert "use_dora=True" in code


def kept(folder: Path, totals: list[int]) -> dict[str, Any]:
    """Lay down a timeline in which all is weights, and return what the page draws of it."""
    (folder / "timelines").mkdir()
    moments = [
        {"at": place / len(totals), **dict.fromkeys(SILENT, 0), "weights": each}
        for place, each in enumerate(totals)
    ]
    parts = [{"name": "forward", "start": 0.0}, {"name": "backward", "start": 0.5}]
    text = json.dumps({"moments": moments, "parts": parts}).encode()
    (folder / "timelines" / "t.json.gz").write_bytes(gzip.compress(text))
    found = explorer.moments(folder, "t")
    assert found is not None
    return found


def test_a_thinned_step_keeps_its_order_and_its_peak(tmp_path: Path) -> None:
    found = kept(tmp_path, [*range(500), 10**12, *range(500, 1000)])
    [(category, sizes)] = found["sizes"]

    assert CATEGORIES[category] == "weights"
    assert len(sizes) == len(found["at"]) <= explorer.MOMENTS
    assert found["at"] == sorted(found["at"])
    assert max(sizes) == 1000
    assert found["most"] == pytest.approx(10**12 / 2**30, rel=1e-4)
    assert found["at"][sizes.index(1000)] == round(1000 * 500 / 1001)


def test_a_short_step_is_kept_whole(tmp_path: Path) -> None:
    found = kept(tmp_path, [30, 10, 20])

    assert found["sizes"] == [[CATEGORIES.index("weights"), [1000, 333, 667]]]
    assert found["at"] == [0, 333, 667]
    assert found["parts"] == [["forward", 0], ["backward", 500]]


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no gzip", gzip.compress(b"{}"), gzip.compress(b'{"moments": [3]}')],
    # Packed bytes have the time in them: as names they would differ between two workers.
    ids=["missing", "empty", "not packed", "without moments", "of another form"],
)
def test_a_step_that_was_not_kept_is_left_out(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "timelines").mkdir()
    if content is not None:
        (tmp_path / "timelines" / "t.json.gz").write_bytes(content)

    assert explorer.moments(tmp_path, "t") is None
