"""What a point's card holds: what a reader copies, and how memory moves in a step."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

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


def kept(folder: Path, totals: list[int]) -> None:
    """Lay down a timeline in which all is weights; of one category it says nothing."""
    (folder / "timelines").mkdir()
    moments = [{"at": 0.0, **dict.fromkeys(SILENT, 0), "weights": each} for each in totals]
    text = json.dumps({"moments": moments}).encode()
    (folder / "timelines" / "t.json.gz").write_bytes(gzip.compress(text))


def test_a_thinned_step_keeps_its_order_and_its_peak(tmp_path: Path) -> None:
    kept(tmp_path, [*range(100), 10**12, *range(100, 200)])
    found = [sum(each) for each in explorer.moments(tmp_path, "t")]

    assert len(found) <= explorer.MOMENTS
    assert max(found) == 10**12
    assert [each for each in found if each < 10**12] == sorted(set(found) - {10**12})


def test_a_short_step_is_kept_whole(tmp_path: Path) -> None:
    kept(tmp_path, [3, 1, 2])

    assert [sum(each) for each in explorer.moments(tmp_path, "t")] == [3, 1, 2]


@pytest.mark.parametrize("content", [None, b"", b"no gzip", gzip.compress(b"{}")])
def test_a_step_that_was_not_kept_is_left_out(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "timelines").mkdir()
    if content is not None:
        (tmp_path / "timelines" / "t.json.gz").write_bytes(content)

    assert explorer.moments(tmp_path, "t") == []
