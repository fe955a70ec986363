"""What the Ray engine asks a cluster for, without a cluster."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tradebench.runner import verdict
from tradebench.runner.engines import Ended
from tradebench.runner.engines import ray as engine
from tradebench.runner.engines.ray import RayEngine
from tradebench.runner.job import Job

GIB = 2.0**30


class FakeRay:
    """Takes tasks and never runs them."""

    def __init__(self) -> None:
        self.cancelled: list[object] = []
        self.asked: list[Mapping[str, Any]] = []
        self.util = SimpleNamespace(
            scheduling_strategies=SimpleNamespace(
                NodeAffinitySchedulingStrategy=lambda node, soft: None
            )
        )
        self.exceptions = SimpleNamespace(RayError=RuntimeError)

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "here")

    def remote(self, *_: object, **__: object) -> Any:
        def options(**asked: object) -> Any:
            self.asked.append(asked)
            return SimpleNamespace(remote=lambda *_: object(), take=None)

        return lambda _: SimpleNamespace(options=options)

    def wait(self, references: list[object], **_: object) -> tuple[list[object], list[object]]:
        return [], references

    def get(self, *_: object, **__: object) -> object:
        raise RuntimeError("no mailbox")

    def cancel(self, reference: object, *, force: bool) -> None:
        self.cancelled.append(reference)


class Machines:
    """A cluster of these nodes."""

    def __init__(self, *nodes: Mapping[str, float]) -> None:
        self.ray = FakeRay()
        self.living = list(nodes)

    def nodes(self) -> list[Mapping[str, float]]:
        return self.living

    @property
    def has_gpus(self) -> bool:
        return any(node.get("GPU") for node in self.living)


def job(repeat: int = 0, **fields: Any) -> Job:
    return Job(suite="s", label="l", trial={"t": 1}, repeat=repeat, attempt=0, run=Path(), **fields)


def on(machines: Machines, **options: Any) -> RayEngine:
    made = RayEngine(machines, **options)  # type: ignore[arg-type]  # a stand-in
    made._mailbox = SimpleNamespace(take=SimpleNamespace(remote=lambda: None))
    return made


def asked_for(machines: Machines, given: Job, **options: Any) -> dict[str, Any]:
    made = on(machines, **options)
    made.submit(given)
    asked = dict(machines.ray.asked[-1])
    del asked["name"]
    return asked


@pytest.mark.parametrize(
    ("jobs", "cores", "each"), [(1, 8, 5), (1, 2, 2), (2, 8, 3), (2, 2, 1), (4, 8, 2), (8, 8, 1)]
)
def test_no_more_trials_share_a_processor_than_were_allowed(
    jobs: int, cores: int, each: int
) -> None:
    asked = asked_for(Machines({"CPU": cores}, {"CPU": 1}), job(), jobs=jobs)

    assert asked["num_cpus"] == each
    assert cores // each == jobs


@pytest.mark.parametrize(
    ("jobs", "ranks", "cores", "beside"), [(1, 2, 8, 0), (2, 2, 8, 0), (4, 2, 8, 2), (4, 6, 8, 0)]
)
def test_every_process_of_a_trial_takes_its_share_of_a_processor(
    jobs: int, ranks: int, cores: int, beside: int
) -> None:
    asked = asked_for(Machines({"CPU": cores}), job(ranks=ranks), jobs=jobs)
    alone = asked_for(Machines({"CPU": cores}), job(), jobs=jobs)

    assert (cores - asked["num_cpus"]) // alone["num_cpus"] == beside


def test_a_trial_asks_for_a_gpu_per_process_and_its_cores() -> None:
    asked = asked_for(Machines({"CPU": 8}, {"CPU": 96, "GPU": 8}), job(ranks=4, threads=2))

    assert asked == {"num_cpus": 8, "num_gpus": 4, "memory": None}


def test_memory_that_a_trial_may_take_is_asked_for() -> None:
    asked = asked_for(Machines({"CPU": 4, "memory": GIB}), job(ranks=2, memory_cap=int(GIB)))

    assert asked["memory"] == 2 * GIB


def test_few_tasks_wait_in_the_cluster() -> None:
    made = on(Machines({"CPU": 1}, {"CPU": 1}, {"CPU": 1}))
    for repeat in range(3):
        assert made.has_room(1)
        made.submit(job(repeat))

    assert not made.has_room(1)


def test_what_no_node_can_hold_is_given_up_and_its_like_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    machines = Machines({"CPU": 96, "GPU": 4}, {"CPU": 96, "GPU": 2})
    made = on(machines, patience=60)
    made.submit(job(ranks=8))

    assert made.poll(0) == []
    now[0] += 61
    (ended,) = made.poll(0)
    made.submit(job(1, ranks=8))
    (another,) = made.poll(0)
    assert isinstance(ended, Ended)
    assert isinstance(another, Ended)
    assert (ended.cause, another.key) == ("unplaced", job(1).key)
    assert ended.said == (
        "it asks for 8 GPUs on one node, and the largest has 4 GPUs; the cluster did not grow "
        "within 60 s"
    )
    assert len(machines.ray.cancelled) == 2
    machines.living.append({"CPU": 96, "GPU": 8})
    made.submit(job(2, ranks=8))
    assert made.poll(0) == []


def test_what_killed_tasks_left_behind_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    for name in (f"tradebench-{os.getpid()}-a", "tradebench-4194999-b", "tradebench-mine"):
        (tmp_path / name).mkdir()
    engine._clear_folders()

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"tradebench-{os.getpid()}-a",
        "tradebench-mine",
    ]


def test_what_a_cluster_says_of_an_end_is_in_the_reason() -> None:
    ends = {
        "unplaced": Ended(key="", cause="unplaced", said="no node has 8 GPUs"),
        "broken": Ended(key="", cause="broken", said="no tradebench there"),
        "lost": Ended(key="", cause="lost", said="its node is gone"),
        "memory": Ended(key="", signal=9, cause="memory_kill", said="Ray killed it"),
    }
    found = {name: verdict.of_end(ended, job(), "train") for name, ended in ends.items()}

    assert {name: (each.status, each.reason) for name, each in found.items()} == {
        "unplaced": ("skipped", "unplaced: no node has 8 GPUs"),
        "broken": ("failed", "while training: no tradebench there"),
        "lost": ("killed", "lost while training: its node is gone"),
        "memory": ("oom", "out of memory while training: Ray killed it"),
    }
