"""The gate as a pytest plugin, for teams that keep it beside their other tests.

    @pytest.mark.tradebench(suite="suites/ci.yaml", confirm=1)
    def test_training_costs_what_it_did(tradebench):
        tradebench.check()

with `pytest --tradebench-baseline baselines/ci.json`. A suite is run once per session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tradebench.regression.gate import Check
    from tradebench.store import Run

MARKER = (
    "tradebench(suite, baseline=None, policy=None, confirm=0, strict=False, allow_missing=False): "
    "hold a suite against a baseline; paths are relative to the root of the tests"
)
KNOWN = frozenset({"suite", "baseline", "policy", "confirm", "strict", "allow_missing"})
RUNS = pytest.StashKey[dict[Path, "Run"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say where the baseline is, and where runs go."""
    group = parser.getgroup("tradebench")
    group.addoption(
        "--tradebench-baseline",
        metavar="FILE",
        help="what `tradebench baseline set` wrote, for tests whose marker names no other",
    )
    group.addoption(
        "--tradebench-results",
        metavar="DIR",
        default="results",
        help="the folder that holds runs (results)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", MARKER)
    config.stash[RUNS] = {}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the fixture `tradebench` is: a suite to run, and a baseline to hold it against."""

    suite: Path
    baseline: Path | None
    results: Path
    options: Mapping[str, Any]
    runs: dict[Path, Run]
    record: Callable[[str, object], None] = field(repr=False)

    def run(self) -> Run:
        """The suite's run of this session, made when it is first asked for."""
        if self.suite not in self.runs:
            from tradebench.commands import repetition
            from tradebench.suite import Suite

            suite = Suite.load(self.suite)
            (made,) = repetition.runs_of(suite, self.results, runs=1, note=lambda text: None)
            self.runs[self.suite] = made
        return self.runs[self.suite]

    def check(self) -> Check:
        """Fail the test if the run is worse than the baseline, with the screen that says why.

        Without a baseline the test is skipped: there is nothing yet to be worse than.
        """
        from tradebench.commands import gating
        from tradebench.errors import UserError
        from tradebench.regression import baseline, summary

        if self.baseline is None or not self.baseline.exists():
            named = self.baseline or "name one with --tradebench-baseline"
            pytest.skip(f"there is no baseline: {named}")
        policy = self.options.get("policy")
        try:
            made = gating.check(
                self.run(),
                baseline.load(self.baseline),
                policy_file=None if policy is None else Path(policy),
                confirm=self.options.get("confirm", 0),
                note=lambda text: None,
            )
        except UserError as error:
            pytest.fail(f"tradebench: {error}", pytrace=False)
        code = made.exit_code(
            strict=self.options.get("strict", False),
            allow_missing=self.options.get("allow_missing", False),
        )
        self.record("tradebench", summary.headline(made, code))
        if code:
            pytest.fail(summary.text(made, code), pytrace=False)
        return made


@pytest.fixture
def tradebench(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Gate:
    """The suite of the test's marker, to be run and checked."""
    marker = request.node.get_closest_marker("tradebench")
    options: dict[str, Any] = {} if marker is None else dict(marker.kwargs)
    unknown = sorted(options.keys() - KNOWN)
    if "suite" not in options or unknown:
        wrong = f"it has no {unknown[0]}" if unknown else "it needs a suite"
        pytest.fail(f"mark the test with {MARKER.partition(':')[0]}: {wrong}", pytrace=False)
    root = request.config.rootpath
    named = options.get("baseline") or request.config.getoption("--tradebench-baseline")
    if options.get("policy") is not None:
        options["policy"] = root / options["policy"]
    return Gate(
        suite=root / options["suite"],
        baseline=None if named is None else root / named,
        results=root / request.config.getoption("--tradebench-results"),
        options=options,
        runs=request.config.stash[RUNS],
        record=record_property,
    )
