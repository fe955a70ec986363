"""History: what a run directory already knows, and so what a sweep need not do again."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from tradebench import store
from tradebench.result import Environment, Result, Status
from tradebench.runner.ending import adopted, key

# The others (`killed`, and no Result at all) say nothing about the point, so it runs again.
FINAL: frozenset[Status] = frozenset({"ok", "oom", "diverged", "skipped", "failed", "timeout"})

# What an environment has of the machine.
_MACHINE = ("hardware.", "software.nvidia_driver", "software.system")


class History:
    """The attempts of one run directory, in which the caller has locked the part of `writer`.

    With `anywhere` a Result counts whatever machine it was made on.
    """

    def __init__(
        self, directory: Path, writer: str = store.LOCAL, *, anywhere: bool = False
    ) -> None:
        self.directory = directory
        self._anywhere = anywhere
        self.files = store.files(directory, writer)
        run = store.load(directory)
        self.problems = run.problems
        # Predictions of the same points may lie beside what was measured.
        mine = [result for result in run.writers.get(writer, ()) if result.kind == "measured"]
        self._last = _by_point(mine)
        self._others = [
            _by_point(attempts) for name, attempts in run.writers.items() if name != writer
        ]
        self._stored = {key(result) for result in mine}
        self._attempts: dict[tuple[str, int], int] = {}
        for result in run.attempts:
            if result.kind == "measured":
                self._count(result.trial, result.repeat, result.attempt)
        for event in store.events(directory):
            if event.get("event") == "started":
                self._count(event["trial"], event["repeat"], event["attempt"])

    def final(
        self, trial: str, repeat: int, environment: Environment, retry: Collection[Status] = ()
    ) -> Result | None:
        """The Result that stands for this point, if it was made in an equal environment.

        Another writer's stands as well: that machine is like this one.
        """
        for known in (self._last, *self._others):
            result = known.get((trial, repeat))
            if (
                result is not None
                and result.status in FINAL
                and result.status not in retry
                and not self._differences(result, environment)
            ):
                return result
        return None

    def changes(self, trial: str, repeat: int, environment: Environment) -> tuple[str, ...]:
        """What has changed since this point's last Result was made, such as `software.torch`."""
        result = self._last.get((trial, repeat))
        return () if result is None else self._differences(result, environment)

    def _differences(self, result: Result, environment: Environment) -> tuple[str, ...]:
        found = result.environment.differences(environment)
        if not self._anywhere:
            return found
        return tuple(name for name in found if not name.startswith(_MACHINE))

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
        for folder in sorted(self.files.glob("work/*.*.*")):
            result = adopted(folder)
            if result is not None and key(result) not in self._stored:
                found.append(result)
        return found

    def clear_work(self) -> None:
        """Drop the folders of attempts; call this once the orphans are stored."""
        for folder in self.files.glob("work/*.*.*"):
            shutil.rmtree(folder)

    def _count(self, trial: str, repeat: int, attempt: int) -> None:
        point = (trial, repeat)
        self._attempts[point] = max(attempt, self._attempts.get(point, -1))


def _by_point(attempts: Iterable[Result]) -> dict[tuple[str, int], Result]:
    return {
        (trial, repeat): result
        for (kind, trial, repeat), result in store.last(attempts).items()
        if kind == "measured"
    }
