"""What a reader copies from a point's card."""

from __future__ import annotations

from pathlib import Path

import pytest

from tradebench import store
from tradebench.report import fronts, ready
from tradebench.report.tables import Point
from tradebench.suite import Suite

EXAMPLE = Path(__file__).parents[1] / "results" / "llama-3.3-70b.plan" / "example"
NAME = "bf16 + nf4 double + dora r16"


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
