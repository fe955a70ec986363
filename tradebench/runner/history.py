"""History: what a run directory already knows, and so what a sweep need not do again."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from tradebench import store
from tradebench.result import Environment, Result, Status
from tradebench.runner.ending import adopted, key

# The others (`killed`, and no Result at all) say nothing about the point, so it runs again.
FINAL: frozenset[Status] = frozenset({"ok", "oom", "diverged", "skipped", "failed", "timeout"})


class History:
    """The attempts of one run directory, which the caller has locked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        run = store.load(directory)
        self.problems = run.problems
        # Predictions of the same points may lie beside what was measured.
        measured = [result for result in run.attempts if result.kind == "measured"]
        self._last = {
            (result.trial, result.repeat): result
            for result in run.results
            if result.kind == "measured"
        }
        self._stored = {key(result) for result in measured}
        self._attempts: dict[tuple[str, int], int] = {}
        for result in measured:
            self._count(result.trial, result.repeat, result.attempt)
        for event in store.events(directory):
            if event.get("event") == "started":
                self._count(event["trial"], event["repeat"], event["attempt"])

    def final(
        self, trial: str, repeat: int, environment: Environment, retry: Collection[Status] = ()
    ) -> Result | None:
        """The Result that stands for this point, if it was made in an equal environment."""
        result = self._last.get((trial, repeat))
        if result is None or result.status not in FINAL or result.status in retry:
            return None
        return None if self.changes(trial, repeat, environment) else result

    def changes(self, trial: str, repeat: int, environment: Environment) -> tuple[str, ...]:
        """What has changed since this point's last Result was made, such as `software.torch`."""
        result = self._last.get((trial, repeat))
        if result is None or result.environment.key == environment.key:
            return ()
        return tuple(
            f"{group}.{name}"
            for group in ("software", "hardware", "code")
            for old, new in [(getattr(result.environment, group), getattr(environment, group))]
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        )

    def next_attempt(self, trial: str, repeat: int) -> int:
        """A number that no attempt at this point has had, and now has."""
        attempt = self._attempts.get((trial, repeat), -1) + 1
        self._count(trial, repeat, attempt)
        return attempt

    def add(self, result: Result) -> None:
        """Take note of a Result that has been stored."""
        self._stored.add(key(result))
        self._last[result.trial, result.repeat] = result
        self._count(result.trial, result.repeat, result.attempt)

    def orphans(self) -> list[Result]:
        """Results that a worker finished while nobody was left to store them."""
        found = []
        for folder in sorted(self.directory.glob("work/*.*.*")):
            result = adopted(folder)
            if result is not None and key(result) not in self._stored:
                found.append(result)
        return found

    def clear_work(self) -> None:
        """Drop the folders of attempts; call this once the orphans are stored."""
        for folder in self.directory.glob("work/*.*.*"):
            shutil.rmtree(folder)

    def _count(self, trial: str, repeat: int, attempt: int) -> None:
        point = (trial, repeat)
        self._attempts[point] = max(attempt, self._attempts.get(point, -1))
