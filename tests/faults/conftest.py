"""A sweep of stub trials in a run directory of its own, whose processes can be told from others.

Where Ray is installed, the same faults run on a cluster of three nodes on this machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tradebench import store
from tradebench.result import Result
from tradebench.runner import process
from tradebench.runner.engines.ray import Cluster, RayEngine
from tradebench.runner.observer import Observer, Summary
from tradebench.runner.options import Options
from tradebench.runner.supervisor import run
from tradebench.techniques.fsdp2 import FSDP2
from tradebench.trial import Model, Trial

MARK = "STUB_SWEEP"
STUBS = Path(__file__).parent
ROOT = STUBS.parents[1]
CORES = 2  # of each node of the cluster


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
    engine: str
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    observer: Notes = field(default_factory=Notes)

    def run(
        self,
        *names: str,
        repeats: int = 1,
        ranks: int | Mapping[str, int] = 1,
        **options: Any,
    ) -> Summary:
        """`ranks` are those of every trial, or of each by name."""
        ray = self.engine == "ray"
        each = ranks if isinstance(ranks, Mapping) else dict.fromkeys(names, ranks)
        return run(
            [
                Trial(
                    model=Model.model_validate({"name": name}),
                    techniques=(FSDP2(degree=each[name]),) if each[name] > 1 else (),
                )
                for name in names
            ],
            directory=self.directory,
            suite="stubs",
            repeats=repeats,
            observer=self.observer,
            engine=self.on_ray if ray else None,
            options=Options(
                program="programs:play",
                preload=(),
                variables=self.variables,
                anywhere=ray,
                **{"threads": 1, "isolation": self.isolation, **options},
            ),
        )

    @property
    def isolation(self) -> Literal["fork", "exec"]:
        return "fork" if self.engine == "fork" else "exec"

    @property
    def variables(self) -> dict[str, str]:
        return {MARK: self.mark, "STUB_FOLDER": str(self.directory), "PYTHONPATH": str(STUBS)}

    def on_ray(self) -> RayEngine:
        return RayEngine(Cluster(), variables=self.variables, patience=1.0)

    def start(self, *names: str, repeats: int = 1, **options: Any) -> int:
        """Run in a process of its own, which exits with 130 when it is interrupted."""
        if self.engine == "ray":
            # Whoever has talked to a cluster has threads, which a fork would not have.
            return self._spawn(*names, repeats=repeats, **options)
        child = os.fork()
        if child == 0:
            code = 99
            with contextlib.suppress(BaseException):
                signal.signal(signal.SIGINT, signal.default_int_handler)
                code = 130 if self.run(*names, repeats=repeats, **options).interrupted else 0
            os._exit(code)
        return child

    def _spawn(self, *names: str, **options: Any) -> int:
        program = (
            "import json, sys; from pathlib import Path\n"
            "from faults.conftest import Sweep\n"
            "directory, engine, mark, names, options = json.loads(sys.argv[1])\n"
            "ended = Sweep(Path(directory), engine, mark).run(*names, **options)\n"
            "sys.exit(130 if ended.interrupted else 0)"
        )
        told = json.dumps([str(self.directory), self.engine, self.mark, names, options])
        path = os.pathsep.join([str(ROOT), str(STUBS.parent), os.environ["PYTHONPATH"]])
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", program, told],
            {**os.environ, "PYTHONPATH": path},
        )

    def results(self) -> dict[str, Result]:
        return {result.model["name"]: result for result in store.load(self.directory).results}

    def played(self) -> list[str]:
        """Every stub that was ever entered, as `name repeat`."""
        file = self.directory / "played.txt"
        return file.read_text().splitlines() if file.exists() else []

    def players(self) -> list[int]:
        """The processes that have ever entered a stub."""
        file = self.directory / "players.txt"
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

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
    path = [str(STUBS), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


@dataclass
class Nodes:
    """A Ray cluster on this machine: a head and two more nodes."""

    cluster: Any
    add: Callable[[], Any]
    others: list[Any]

    def lose_one(self, sweep: Sweep, patience: float = 60.0) -> None:
        """Kill one of the two, with all that runs there, while a trial has been at work on it."""
        until = time.monotonic() + patience
        while time.monotonic() < until:
            for node in self.others:
                (raylet,) = node.all_processes["raylet"]
                if set(process.descendants(raylet.process.pid)) & set(sweep.players()):
                    time.sleep(1.0)  # until the supervisor has heard of it
                    self.others.remove(node)
                    self.cluster.remove_node(node, allow_graceful=False)
                    return
            time.sleep(0.05)
        raise AssertionError("no trial came to a node that may be killed")

    def mend(self) -> None:
        """Put a new node where one was lost."""
        while len(self.others) < 2:
            self.others.append(self.add())


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'tradebench[ray]'")
    from ray.cluster_utils import Cluster

    few = {"num_cpus": CORES, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        cluster = Cluster(initialize_head=True, head_node_args=few)
        patch.setenv("RAY_ADDRESS", cluster.address)

        def add() -> Any:
            return cluster.add_node(**few)

        yield Nodes(cluster, add, [add(), add()])
        cluster.shutdown()


def _new(tmp_path: Path, engine: str) -> Sweep:
    return Sweep(store.create_run(tmp_path, "stubs", {}), engine)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    yield from _checked(_new(tmp_path, "fork"))


@pytest.fixture(params=["fork", "exec"])
def either_sweep(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Sweep]:
    yield from _checked(_new(tmp_path, request.param))


@pytest.fixture(params=["fork", "exec", pytest.param("ray", marks=pytest.mark.slow)])
def any_sweep(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Sweep]:
    """Every engine must hold the same list of faults."""
    if request.param == "ray":
        request.getfixturevalue("nodes").mend()
    yield from _checked(_new(tmp_path, request.param))


@pytest.fixture
def ray_sweep(tmp_path: Path, nodes: Nodes) -> Iterator[Sweep]:
    nodes.mend()
    yield from _checked(_new(tmp_path, "ray"))


def _checked(swept: Sweep) -> Iterator[Sweep]:
    """Whatever a test does, no process of its sweep is left behind."""
    yield swept
    left = swept.leftovers()
    for pid in left:
        process.kill(pid)
    assert left == []
