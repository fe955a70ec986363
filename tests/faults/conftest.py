"""A sweep of stub trials in a run directory of its own, whose processes can be told from others."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tradebench import store
from tradebench.result import Result
from tradebench.runner import process
from tradebench.runner.observer import Observer, Summary
from tradebench.runner.options import Options
from tradebench.runner.supervisor import run
from tradebench.techniques.fsdp2 import FSDP2
from tradebench.trial import Model, Trial

MARK = "STUB_SWEEP"


class Notes(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.finished: list[tuple[Result, bool]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def trial_finished(self, result: Result, *, again: bool) -> None:
        self.finished.append((result, again))


@dataclass
class Sweep:
    """Stub trials, run as often as a test likes in one run directory."""

    directory: Path
    options: dict[str, Any]
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    observer: Notes = field(default_factory=Notes)

    def run(self, *names: str, repeats: int = 1, ranks: int = 1, **options: Any) -> Summary:
        sharding = (FSDP2(degree=ranks),) if ranks > 1 else ()
        return run(
            [
                Trial(model=Model.model_validate({"name": name}), techniques=sharding)
                for name in names
            ],
            directory=self.directory,
            suite="stubs",
            repeats=repeats,
            observer=self.observer,
            options=Options(
                program="programs:play",
                preload=(),
                variables={MARK: self.mark},
                **{"threads": 1, **self.options, **options},
            ),
        )

    def start(self, *names: str, repeats: int = 1, **options: Any) -> int:
        """Run in a process of its own, which exits with 130 when it is interrupted."""
        child = os.fork()
        if child == 0:
            code = 99
            with contextlib.suppress(BaseException):
                signal.signal(signal.SIGINT, signal.default_int_handler)
                code = 130 if self.run(*names, repeats=repeats, **options).interrupted else 0
            os._exit(code)
        return child

    def results(self) -> dict[str, Result]:
        return {result.model["name"]: result for result in store.load(self.directory).results}

    def played(self) -> list[str]:
        """Every stub that was ever entered, as `name repeat`."""
        file = self.directory / "played.txt"
        return file.read_text().splitlines() if file.exists() else []

    def processes(self) -> list[int]:
        """The living processes of this sweep's workers, and of all that they started."""
        needle = f"{MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if needle in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def leftovers(self, patience: float = 3.0) -> list[int]:
        """What still lives after a moment's patience."""
        until = time.monotonic() + patience
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.01)
        return left


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers find the stubs."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    yield from _checked(Sweep(store.create_run(tmp_path, "stubs", {}), {"isolation": "fork"}))


@pytest.fixture(params=["fork", "exec"])
def either_sweep(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Sweep]:
    how = {"isolation": request.param}
    yield from _checked(Sweep(store.create_run(tmp_path, "stubs", {}), how))


def _checked(swept: Sweep) -> Iterator[Sweep]:
    """Whatever a test does, no process of its sweep is left behind."""
    yield swept
    left = swept.leftovers()
    for pid in left:
        process.kill(pid)
    assert left == []
