"""The tests that need a GPU, run where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpu.section import Bench

TESTS = Path(__file__).with_name("test_cuda.py")


class Notes:
    """Keeps what came of every test."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.failures: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test counts by its own run, or by a set-up that failed or skipped it."""
        name = report.nodeid.rsplit("/", 1)[-1]
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[name] = report.outcome
        if report.failed:
            self.failures[name] = str(report.longrepr).splitlines()[-1]


def run(bench: Bench, name: str) -> None:
    """Run them and write down how each ended.

    Raises:
        RuntimeError: one failed, or none ran.
    """
    notes = Notes()
    words = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    code = pytest.main([*words, str(TESTS)], plugins=[notes])
    bench.write(
        "checks",
        {
            "schema": "tradebench.checks/1",
            "code": int(code),
            "outcomes": notes.outcomes,
            "failures": notes.failures,
        },
    )
    if code != pytest.ExitCode.OK:
        raise RuntimeError(
            f"pytest left with {int(code)}: {', '.join(notes.failures) or 'no test'}"
        )
