from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tradebench import store
from tradebench.errors import UserError
from tradebench.owner import Owner
from tradebench.result import Result


def result(trial: str = "a" * 12, **fields: object) -> Result:
    plain = {"suite": "s", "label": "l", "model": {}, "budget": {}, "evaluate": {}, "settings": {}}
    return Result.model_validate({**plain, "trial": trial, "status": "ok", **fields})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return store.create_run(tmp_path, "smoke", {"question": "Which?", "argv": ["run"]})


def write(run: Path, *results: Result, writer: str = "local") -> None:
    with store.Appender(run / f"trials.{writer}.jsonl") as file:
        for each in results:
            file.append(each.to_json())


def test_a_new_run_has_its_header_and_no_results(run: Path) -> None:
    loaded = store.load(run)

    assert (loaded.results, loaded.attempts, loaded.problems) == ((), (), ())
    assert {"schema", "suite", "question", "argv", "started", "ended"} == set(loaded.header)
    assert loaded.header["schema"] == "tradebench.run/1"
    assert run.parent.name == "smoke"
    assert [len(part) for part in run.name.split("-")] == [16, 6]


def test_results_come_back_as_they_were_stored(run: Path) -> None:
    given = result(measurements={"step_seconds": {"value": 0.5, "unit": "s", "samples": [1, 0]}})
    write(run, given)

    assert store.load(run).results == (given,)


def test_the_last_attempt_stands_for_a_point_and_all_are_kept(run: Path) -> None:
    first = result(status="killed", attempt=0)
    other = result(trial="b" * 12)
    again = result(attempt=1)
    repeat = result(repeat=1)
    write(run, first, other, again, repeat)

    assert store.load(run).results == (again, other, repeat)
    assert store.load(run).attempts == (first, other, again, repeat)


def test_a_prediction_stands_beside_the_measurement_of_its_point(run: Path) -> None:
    predicted, measured, again = (
        result(kind="predicted", label="planned"),
        result(attempt=1),
        result(kind="predicted", label="planned once more"),
    )
    write(run, predicted, measured, again)

    assert store.load(run).results == (again, measured)


def test_the_last_attempt_wins_whatever_the_order_of_the_files(run: Path) -> None:
    write(run, result(attempt=1), writer="a")
    write(run, result(attempt=0, status="killed"), writer="b")

    assert [each.attempt for each in store.load(run).results] == [1]


def test_two_writers_lose_no_line(run: Path) -> None:
    """Two processes append at once, each to its own file."""
    children = []
    for writer in ("one", "two"):
        child = os.fork()
        if child == 0:
            many = (result(trial=f"{writer}{number:09}") for number in range(50))
            write(run, *many, writer=writer)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]

    assert len(store.load(run).results) == 100


def test_a_torn_last_line_is_reported_and_the_rest_is_read(run: Path) -> None:
    write(run, result())
    with (run / "trials.local.jsonl").open("a") as file:
        file.write(result(trial="b" * 12).to_json()[:40])

    loaded = store.load(run)
    assert loaded.results == (result(),)
    assert len(loaded.problems) == 1
    assert loaded.problems[0].startswith("trials.local.jsonl:2: left out, not a Result")


def test_a_writer_moves_the_torn_line_aside_before_it_appends(run: Path) -> None:
    write(run, result())
    with (run / "trials.local.jsonl").open("a") as file:
        file.write('{"schema": "tra')
    write(run, result(trial="b" * 12))

    loaded = store.load(run)
    assert [each.trial for each in loaded.results] == ["a" * 12, "b" * 12]
    assert loaded.problems == ()
    assert (run / "trials.local.jsonl.torn").read_text() == '{"schema": "tra\n'


def test_a_whole_line_that_lacks_only_its_end_is_kept(run: Path) -> None:
    (run / "trials.local.jsonl").write_text(result().to_json())
    write(run, result(trial="b" * 12))

    assert [each.trial for each in store.load(run).results] == ["a" * 12, "b" * 12]


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_torn_line(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, result())
    whole = os.write
    monkeypatch.setattr(os, "write", lambda file, data: whole(file, data[:10]))
    with pytest.raises(OSError, match="only 10 of"):
        write(run, result(trial="b" * 12))
    monkeypatch.undo()

    assert store.load(run).results == (result(),)
    assert store.load(run).problems == ()


def test_a_line_is_on_disk_when_append_returns(run: Path) -> None:
    child = os.fork()
    if child == 0:
        write(run, result())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)

    assert store.load(run).results == (result(),)


def test_events_survive_an_unreadable_line(run: Path) -> None:
    (run / "events.local.jsonl").write_text('{"event": "started"}\n{"event": "en')

    assert store.events(run) == [{"event": "started"}]


def test_a_locked_run_refuses_another_process(run: Path) -> None:
    with store.lock(run), pytest.raises(UserError, match="another tradebench is at work"):
        store.lock(run).__enter__()
    with store.lock(run):
        pass


def test_the_lock_of_a_process_killed_while_it_starts_another_is_waited_for(run: Path) -> None:
    # Until it has become the other program, the child has what its parent held open.
    child = os.fork()
    if child == 0:
        with store.lock(run):
            if os.fork() == 0:
                time.sleep(0.5)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)

    (owner,) = store.owners(run)
    assert (owner.pid, owner.state) == (child, "gone")
    with store.lock(run):
        pass


def test_a_lock_that_a_dead_process_left_for_good_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "INHERITED_SECONDS", 0.05)
    file = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    dead = Owner.here()
    assert dead is not None
    os.write(file, replace(dead, began=dead.began + 1).text.encode())

    with pytest.raises(UserError, match="another tradebench is at work"):
        store.lock(run).__enter__()
    os.close(file)


def test_what_is_not_a_run_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run: a run directory holds a run\.json"):
        store.load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        store.load(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": "tradebench.run/9"}')
    with pytest.raises(UserError, match=r"this tradebench reads tradebench\.run/1"):
        store.load(tmp_path)


def test_runs_are_found_by_path_name_and_latest(tmp_path: Path) -> None:
    old = tmp_path / "smoke" / "20260101T000000Z-ffffff"
    old.mkdir(parents=True)
    store.write_json(old / "run.json", {"schema": store.SCHEMA})
    new = store.create_run(tmp_path, "other", {})

    assert store.find(tmp_path, "latest") == new
    assert store.latest(tmp_path, "smoke") == old
    assert store.latest(tmp_path, "neither") is None
    assert store.find(tmp_path, old) == old
    assert store.find(tmp_path, old / "run.json") == old
    assert store.find(tmp_path, old.name) == old
    assert store.find(tmp_path, f"smoke/{old.name}") == tmp_path / "smoke" / old.name
    with pytest.raises(UserError, match="nothing is not a run"):
        store.find(tmp_path, "nothing")
    with pytest.raises(UserError, match="holds no run yet"):
        store.find(tmp_path / "smoke" / "empty", "latest")


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    store.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        store.write_json(path, {"a": float("nan")})

    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


# Several machines.


def here(cpu: str) -> dict[str, Any]:
    return {"environment": {"hardware": {"cpu": cpu}}}


def test_machines_that_ask_for_one_run_at_once_share_it(tmp_path: Path) -> None:
    first = store.create_run(tmp_path, "smoke", {"argv": ["one"]}, name="shared")
    second = store.create_run(tmp_path, "smoke", {"argv": ["two"]}, name="shared")

    assert first == second
    assert store.load(first).header["argv"] == ["one"]
    assert sorted(path.name for path in first.iterdir()) == ["items", "logs", "run.json"]


def test_a_run_is_shared_also_where_files_have_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for word in ("one", "two"):
        run = store.create_run(tmp_path, "smoke", {"argv": [word]}, name="shared")

    assert store.load(run).header["argv"] == ["one"]
    assert sorted(path.name for path in run.iterdir()) == ["items", "logs", "run.json"]


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", ""])
def test_a_run_has_a_name_that_a_folder_can_bear(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--run"):
        store.create_run(tmp_path, "smoke", {}, name=name)


def test_the_latest_run_is_the_one_that_began_last(tmp_path: Path) -> None:
    for name, content in (
        ("zebra", {"schema": store.SCHEMA, "started": "2026-01-01"}),
        ("aardvark", {"schema": store.SCHEMA, "started": "2026-01-02"}),
        ("zz", {"schema": "none of ours", "started": "2026-01-03"}),
    ):
        (tmp_path / "smoke" / name).mkdir(parents=True)
        store.write_json(tmp_path / "smoke" / name / "run.json", content)

    assert store.latest(tmp_path) == tmp_path / "smoke" / "aardvark"
    assert [run.name for run in store.runs(tmp_path, "smoke")] == ["zz", "zebra", "aardvark"]


def test_each_writer_is_locked_by_itself(run: Path) -> None:
    with store.lock(run, "1of2"), store.lock(run, "2of2"), store.lock(run):
        refused = pytest.raises(UserError, match=r"at work in \S* as 2of2")
        with refused:
            store.lock(run, "2of2").__enter__()


def test_a_run_has_ended_once_all_its_writers_have(run: Path) -> None:
    header = store.load(run).header
    for writer, started, ended in (("a", "2026-01-01", "2026-01-03"), ("b", "2026-01-02", None)):
        said = {**header, "argv": [writer], "started": started, "ended": ended}
        store.write_json(store.header_file(run, writer), said)
    open_still = store.load(run).header
    store.write_json(store.header_file(run, "b"), {**said, "ended": "2026-01-04"})

    assert (open_still["argv"], open_still["started"], open_still["ended"]) == (
        ["b"],
        "2026-01-01",
        None,
    )
    assert store.load(run).header["ended"] == "2026-01-04"


def test_repeats_of_different_machines_never_stand_beside_each_other(run: Path) -> None:
    slow = [result(repeat=number, **here("slow")) for number in range(3)]
    fast = [result(repeat=number, started="2026", **here("fast")) for number in range(2)]
    write(run, *slow, writer="a")
    write(run, *fast, writer="b")

    loaded = store.load(run)
    assert loaded.results == tuple(slow)
    assert loaded.attempts == (*slow, *fast)
    assert loaded.writers == {"a": tuple(slow), "b": tuple(fast)}


def test_repeats_of_like_machines_complete_each_other(run: Path) -> None:
    first, later = result(started="1", **here("x")), result(started="2", **here("x"))
    lost, other = (
        result(status="killed", repeat=1, attempt=7, started="3", **here("x")),
        result(repeat=1, **here("x")),
    )
    write(run, first, lost, writer="a")
    write(run, later, other, writer="b")

    assert store.load(run).results == (later, other)


def test_what_was_skipped_gives_way_to_what_was_made(run: Path) -> None:
    write(run, result(status="skipped", started="2", **here("no GPU")), writer="a")
    write(run, result(started="1", **here("GPU")), writer="b")

    assert [each.status for each in store.load(run).results] == ["ok"]


@pytest.mark.parametrize("name", ["items", "../up", "a.b", "", "plan"])
def test_a_writer_has_a_name_that_files_can_bear(name: str) -> None:
    with pytest.raises(UserError, match="--writer"):
        store.check_writer(name)
    assert store.check_writer("2of8") == "2of8"
