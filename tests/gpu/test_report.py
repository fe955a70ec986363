"""The committed report of an H200: what it says is what was measured, and what is predicted now."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gpu.predictions import beside
from gpu.report import REPORT, rendered, summary
from gpu.run import OUT, ROOT

COMMITTED: dict[str, Any] = json.loads((OUT / "predictions.json").read_text())
NAMES = [each["name"] for each in COMMITTED["trials"]]
README = (ROOT / "README.md").read_text()
MARKS = re.compile(r"(<!-- reports/h200/report.md -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def test_the_report_and_the_readme_have_the_committed_figures() -> None:
    found = MARKS.search(README)

    assert REPORT.read_text() == rendered(COMMITTED)
    assert found is not None
    assert found[2] == f"{summary(COMMITTED['trials'])}\n"


def test_every_trial_that_was_measured_is_in_it() -> None:
    files = [OUT / folder for folder in ("ladder", "techniques")]
    measured = {
        f"{path.parent.name}/{path.stem}"
        for folder in files
        for path in folder.glob("*.json")
        if json.loads(path.read_text())["status"] == "ok"
    }

    assert set(NAMES) == measured
    assert [each["reason"] for each in COMMITTED["trials"] if each["reason"]] == []


def test_memory_of_training_is_predicted_as_promised() -> None:
    wrong = {
        (each["name"], figure["name"])
        for each in COMMITTED["trials"]
        for figure in each["figures"]
        if figure["name"].startswith("peak_") and figure["name"].count(".") == 0
        if not figure["within"]
    }

    assert wrong == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[::6])
def test_what_is_committed_is_what_is_predicted_now(name: str) -> None:
    (committed,) = (each for each in COMMITTED["trials"] if each["name"] == name)
    path = OUT / Path(f"{name}.json")

    assert json.loads(json.dumps(beside(path, COMMITTED["device"], OUT / "calibration.json"))) == (
        committed
    )


def regenerate() -> None:
    """Put the report's first table into the README."""
    table = f"{summary(COMMITTED['trials'])}\n"
    (ROOT / "README.md").write_text(MARKS.sub(lambda match: match[1] + table + match[3], README))


if __name__ == "__main__":
    regenerate()
