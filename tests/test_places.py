from __future__ import annotations

import os
from pathlib import Path

import pytest

from tradebench import environment
from tradebench.errors import UserError
from tradebench.runner.engines import places
from tradebench.runner.engines.places import Place, Places, available_memory, here

GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eight cores and no GPU, unless a test says otherwise."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(environment, "cpu_limit", lambda: None)
    monkeypatch.setattr(environment, "gpus", lambda: 0)
    return monkeypatch


def test_a_cpu_has_one_place_unless_someone_asks_for_more(machine: pytest.MonkeyPatch) -> None:
    assert here(None, 1, {}).count == 1
    assert here(4, 2, {}).count == 4
    with pytest.raises(UserError, match=r"--jobs 3 with 4 threads each needs 12 cores, .* are 8"):
        here(3, 4, {})


def test_a_cgroup_that_gives_less_counts(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(environment, "cpu_limit", lambda: 2.5)

    with pytest.raises(UserError, match=r"--jobs 3 with 1 thread each needs 3 cores, .* are 2"):
        here(3, 1, {})


def test_every_gpu_is_a_place_that_has_its_cores(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(environment, "gpus", lambda: 4)

    assert here(None, 1, {}).count == 4
    assert here(None, 4, {}).count == 2
    assert here(None, 1, {"CUDA_VISIBLE_DEVICES": "3, 5"}).count == 2
    assert here(None, 1, {"CUDA_VISIBLE_DEVICES": ""}).count == 1
    with pytest.raises(UserError, match="--jobs 5 needs 5 GPUs, and there are 4"):
        here(5, 1, {})


def test_running_trials_share_no_device(machine: pytest.MonkeyPatch) -> None:
    four = here(None, 1, {"CUDA_VISIBLE_DEVICES": "1,3,5,7"})
    first, second = four.take(1), four.take(2)

    assert [place.variables["CUDA_VISIBLE_DEVICES"] for place in (first, second)] == ["1", "3,5"]
    assert (four.room_for(1), four.room_for(2)) == (True, False)
    four.give_back(first)
    assert four.room_for(2)
    assert four.take(2) == Place(0, ("1", "7"))


def test_a_trial_of_more_processes_than_run_at_once_has_a_device_for_each() -> None:
    two = Places(2, ("0", "1", "2", "3"))

    assert two.room_for(4)
    assert two.take(4).devices == ("0", "1", "2", "3")
    assert not two.room_for(1)


def test_a_trial_alone_sees_every_device() -> None:
    one = Places(1, ("0", "1"))

    assert one.room_for(2)
    assert one.take(2).variables == {}
    assert not one.room_for(1)


def test_memory_is_what_the_cgroup_leaves(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(str(GIB))
    (tmp_path / "memory.current").write_text(str(GIB // 2))
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {GIB // 4}\n")

    assert available_memory(tmp_path) == 3 * GIB // 4
    assert available_memory(tmp_path / "none") > 0
    assert places.usable_cores() >= 1
