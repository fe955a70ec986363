"""Every way in which a trial can end, against every engine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tradebench import store
from tradebench.runner import process
from tradebench.runner.engines import local, places
from tradebench.runner.engines.local import LocalEngine

if TYPE_CHECKING:
    from faults.conftest import Sweep

MIB = 2**20

WAITED = "hang while training: rank 1 kept the others waiting for 1 s"

# The faults: stub, status, how its reason starts, attempts.
ENDS = [
    ("ok", "ok", None, 1),
    ("garbage", "ok", None, 1),
    ("segfault", "failed", "crash while training: SIGSEGV", 2),
    ("killed:1", "ok", None, 2),
    ("raises", "failed", "while training: ValueError: no good: ~/secret", 1),
    ("diverges", "diverged", "diverged while training: the loss is nan at step 2", 1),
    ("no_result", "failed", "no_result: it exited with code 0 while training", 2),
    ("exits", "failed", "while training: SystemExit: 3", 1),
    ("cuda_oom", "oom", "out of memory while training: asked for 2.50 GiB (CUDA", 1),
    ("bad_alloc", "oom", "out of memory while training: it died of SIGABRT", 1),
    ("family", "ok", None, 1),
]
# The same of the second of two ranks, for which the first waits.
ENDS_OF_A_RANK = [
    ("segfault", "failed", "rank 1: crash while training: SIGSEGV", 2),
    ("killed", "killed", "rank 1: killed while training by SIGKILL from outside", 3),
    ("raises", "failed", "rank 1: while training: ValueError: no good: ~/secret", 1),
    ("diverges", "diverged", "rank 1: diverged while training: the loss is nan at step 2", 1),
    ("no_result", "failed", "rank 1: no_result: it exited with code 0 while training", 2),
    ("cuda_oom", "oom", "rank 1: out of memory while training: asked for 2.50 GiB (CUDA", 1),
    ("nap:60", "timeout", WAITED, 1),
    ("gil", "timeout", WAITED, 1),
    ("family:60", "timeout", WAITED, 1),
]


def test_every_end_is_a_result_with_its_cause(any_sweep: Sweep) -> None:
    summary = any_sweep.run(*(name for name, *_ in ENDS))

    ended = {result.model["name"]: result for result in summary.results}
    starts = [
        (name, ended[name].status, (ended[name].reason or "")[: len(reason or "")] or None)
        for name, _, reason, _ in ENDS
    ]
    assert starts == [(name, status, reason) for name, status, reason, _ in ENDS]
    assert {name: ended[name].attempt + 1 for name, *_ in ENDS} == {
        name: attempts for name, _, _, attempts in ENDS
    }
    assert {ended[name].phase for name, status, *_ in ENDS if status != "ok"} == {"train"}
    assert {result.isolation for result in ended.values()} == {any_sweep.isolation}
    assert summary.started == sum(attempts for *_, attempts in ENDS)
    assert any_sweep.leftovers() == []


@pytest.mark.slow
def test_a_rank_that_goes_wrong_ends_the_trial_within_seconds_and_is_named(
    any_sweep: Sweep,
) -> None:
    names = [f"second:{name}" for name, *_ in ENDS_OF_A_RANK]
    summary = any_sweep.run(*names, ranks=2, patience=1.0)

    ended = {result.model["name"]: result for result in summary.results}
    for name, status, reason, attempts in ENDS_OF_A_RANK:
        result = ended[f"second:{name}"]
        assert (result.status, result.attempt + 1) == (status, attempts), name
        assert (result.reason or "")[: len(reason)] == reason
        assert result.phase == "train"
        assert (result.seconds or 0) < 15
    assert any_sweep.leftovers() == []


@pytest.mark.parametrize("stub", ["nap:60", "gil", "family:60"])
def test_a_silent_trial_is_ended_with_all_it_started(any_sweep: Sweep, stub: str) -> None:
    began = time.monotonic()
    any_sweep.run(stub, silence={"train": 0.5})

    result = any_sweep.results()[stub]
    assert (result.status, result.phase, result.attempt) == ("timeout", "train", 0)
    assert result.reason == ("hang while training: no sign of life for 0.5 s, after step 1 of 3")
    # Long before the trial would have ended by itself, however busy the machine is.
    assert time.monotonic() - began < 30
    assert any_sweep.leftovers(0.5) == []


def test_a_trial_that_takes_too_long_ends_as_timeout(sweep: Sweep) -> None:
    sweep.run("nap:60", "ok", timeout=0.3)

    assert sweep.results()["nap:60"].reason == "timeout while training: over 0.3 s in all"
    assert sweep.results()["ok"].status == "ok"


def test_an_impossible_demand_ends_as_oom_with_phase_and_size(any_sweep: Sweep) -> None:
    any_sweep.run("hungry", "ok", memory_cap=256 * MIB)

    result = any_sweep.results()["hungry"]
    assert (result.status, result.phase) == ("oom", "train")
    assert (result.reason or "").startswith("out of memory while training: asked for 1.00 GiB (")
    assert result.value("requested_bytes") == 2**30
    assert result.value("load_seconds") == 0.5
    assert any_sweep.results()["ok"].status == "ok"


@pytest.mark.parametrize(
    ("stub", "ranks"),
    [("shared_hungry", 1), pytest.param("second:shared_hungry", 2, marks=pytest.mark.slow)],
)
def test_memory_that_no_rlimit_counts_is_watched(any_sweep: Sweep, stub: str, ranks: int) -> None:
    any_sweep.run(stub, ranks=ranks, patience=30.0, memory_cap=128 * MIB)

    result = any_sweep.results()[stub]
    assert (result.status, result.phase, result.attempt) == ("oom", "train", 0)
    assert (result.reason or "").startswith("oom_host while training: it held ")
    assert (result.value("peak_process_bytes") or 0) > 128 * MIB


def test_a_trial_whose_guard_dies_is_lost_and_leaves_nothing(any_sweep: Sweep) -> None:
    any_sweep.run("kill_guard", "ok")

    result = any_sweep.results()["kill_guard"]
    assert (result.status, result.reason) == ("killed", "lost while training: its guard is gone")
    assert result.attempt == 3
    assert any_sweep.results()["ok"].status == "ok"


@pytest.mark.slow
def test_a_trial_of_several_ranks_whose_guard_dies_is_lost(any_sweep: Sweep) -> None:
    any_sweep.run("second:kill_guard", ranks=2, patience=30.0)

    (result,) = any_sweep.results().values()
    assert (result.status, result.reason) == ("killed", "lost while training: its guard is gone")
    assert any_sweep.leftovers(0.5) == []


def test_a_trial_does_not_outlive_those_who_watch_it(sweep: Sweep) -> None:
    sweep.run("kill_watchers", "ok")

    assert sweep.leftovers(0.5) == []
    assert sweep.results()["kill_watchers"].status == "killed"
    assert sweep.results()["ok"].status == "ok"


def test_a_template_that_dies_costs_no_trial(sweep: Sweep) -> None:
    sweep.run("kill_template", "ok")

    statuses = [(result.model["name"], result.status) for result, _ in sweep.observer.finished]
    assert statuses == [("kill_template", "ok"), ("ok", "ok")]


def test_a_lock_that_a_killed_compiler_left_is_removed(sweep: Sweep) -> None:
    stale = sweep.directory / "work" / "cache" / "0" / "extensions" / "some_kernel" / "lock"
    stale.parent.mkdir(parents=True)
    stale.touch()
    sweep.run("has_lock")

    assert sweep.results()["has_lock"].reason == "while training: FileNotFoundError: no lock"


def test_trials_run_beside_each_other_where_that_is_asked_for(
    either_sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the other, so that both end only if they run at once."""
    monkeypatch.setattr(places, "usable_cores", lambda: 2)
    summary = either_sweep.run("meets:1", "meets:2", "killed:1", "raises", jobs=2)

    assert {name: result.status for name, result in either_sweep.results().items()} == {
        "meets:1": "ok",
        "meets:2": "ok",
        "killed:1": "ok",
        "raises": "failed",
    }
    assert {result.environment.variables["jobs"] for result in summary.results} == {"2"}


def test_a_trial_that_has_the_machine_to_itself_says_nothing_of_others(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "usable_cores", lambda: 2)
    (alone,) = sweep.run("ok", ranks=2, jobs=2).results
    (shared,) = sweep.run("nap:0", jobs=2).results

    assert "jobs" not in alone.environment.variables
    assert shared.environment.variables["jobs"] == "2"


@pytest.mark.slow
def test_kills_of_the_ranks_of_one_trial_do_not_explain_the_death_of_another(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes both ranks of a trial; somebody else takes the trial that runs beside."""
    kills = sweep.directory / "kills.txt"
    monkeypatch.setattr(places, "usable_cores", lambda: 3)
    monkeypatch.setattr(
        process, "out_of_memory_kills", lambda: len(kills.read_text()) if kills.exists() else 0
    )
    names = {"killed": 2, "taken:1": 1}
    sweep.run(*names, ranks=names, jobs=3)

    first = {
        result.model["name"]: result
        for result in store.load(sweep.directory).attempts
        if result.attempt == 0
    }
    assert first["killed"].status == "oom"
    assert first["taken:1"].reason == "killed while training by SIGKILL from outside"


def test_no_trial_is_let_in_where_memory_is_short(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "usable_cores", lambda: 2)
    monkeypatch.setattr(local, "available_memory", lambda: 0)
    sweep.run("nap:0.3", "nap:0.2", jobs=2)

    order = [event["event"] for event in store.events(sweep.directory)]
    assert order == ["started", "ended"] * 2


def test_the_log_of_an_attempt_holds_what_it_printed(sweep: Sweep) -> None:
    sweep.run("raises")

    log = sweep.directory / sweep.results()["raises"].artifacts["log"]
    assert "ValueError: no good" in log.read_text()


def test_ctrl_c_keeps_what_is_done_and_a_second_run_does_the_rest(any_sweep: Sweep) -> None:
    child = any_sweep.start("ok", "family:60", "nap:0")
    _wait_for(any_sweep.directory / "family.txt")
    os.kill(child, signal.SIGINT)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert any_sweep.leftovers(0.5) == []
    assert store.events(any_sweep.directory)[-1]["event"] == "interrupted"
    assert store.load(any_sweep.directory).header["ended"] is None
    _assert_the_rest_is_done(any_sweep)


def test_a_killed_supervisor_leaves_no_process_and_loses_nothing(any_sweep: Sweep) -> None:
    child = any_sweep.start("ok", "family:60", "nap:0")
    _wait_for(any_sweep.directory / "family.txt")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    assert any_sweep.leftovers(10.0) == []
    _assert_the_rest_is_done(any_sweep)


def _assert_the_rest_is_done(sweep: Sweep) -> None:
    """What was finished stays as it is; the trial that ran when all was ended left no Result."""
    done = sweep.results()
    summary = sweep.run("ok", "nap:0")

    assert "family:60" not in done
    assert summary.started + summary.reused == 2
    if sweep.engine == "ray":
        # The other two may run at the same time, and a Result may arrive while all is ended.
        assert summary.reused >= len(done)
    else:
        assert (list(done), summary.reused) == (["ok"], 1)
    assert {name: result.status for name, result in sweep.results().items()} == {
        "ok": "ok",
        "nap:0": "ok",
    }
    assert all(sweep.results()[name] == result for name, result in done.items())


def test_an_import_that_makes_forks_unsafe_means_fresh_interpreters(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parent}")
    engine = LocalEngine(tmp_path / "log.txt", preload=("threaded",))
    engine.close()

    assert engine.isolation == "exec"
    assert (engine.fallback or "").startswith("an import has started the thread ")


def test_a_template_that_cannot_import_falls_back_and_says_why(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path / "log.txt", preload=("no_such_module",))
    engine.close()

    assert engine.isolation == "exec"
    assert engine.fallback == (
        "no_such_module cannot be imported (No module named 'no_such_module')"
    )


def test_a_template_that_dies_while_importing_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    engine = LocalEngine(tmp_path / "log.txt", preload=("deadly",))
    engine.close()

    assert (engine.fallback or "").startswith("the template failed: it died while importing")


def _wait_for(path: Path, patience: float = 60.0) -> None:
    until = time.monotonic() + patience
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.01)
