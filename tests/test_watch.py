"""Watching a run that another process is writing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from tradebench import cli, store
from tradebench.commands import sweep
from tradebench.owner import Owner
from tradebench.report import watch
from tradebench.result import Environment, Measurement, Result
from tradebench.runner.observer import Summary
from tradebench.runner.options import Options
from tradebench.suite import Suite

HEADER = {
    "question": "",
    "suite_text": "",
    "objectives": [],
    "limits": {},
    "argv": ["tradebench", "run", "suites/watched.yaml", "--fresh", "--threads", "2"],
}
# Long ago for what nothing comes from.
HOURS = 3 * 3600

# Holds a run as `tradebench run` does, says so, and stays until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from tradebench import store

with store.lock(Path(sys.argv[1]), sys.argv[2]):
    print("at work", flush=True)
    time.sleep(600)
"""

# Appends a Result every now and then, and ends the run; the first argument is its directory.
WRITER = """
import sys, time
from pathlib import Path
from tradebench import store
from tradebench.result import Result

directory, lines = Path(sys.argv[1]), Path(sys.argv[2]).read_text().splitlines()
with store.Appender(directory / "trials.local.jsonl") as appender:
    for line in lines:
        time.sleep(0.3)
        appender.append(line)
header = store.load(directory).header
store.write_json(directory / "run.json", {**header, "ended": store.timestamp()})
"""


def result(number: int) -> Result:
    return Result(
        suite="watched",
        trial=f"{number:012x}",
        label=f"lora r{number}",
        model={"name": "reference"},
        budget={},
        evaluate={},
        settings={"adapters": {"method": "lora", "rank": number}},
        status="ok",
        measurements={"peak_tensor_bytes": Measurement(value=2**20 * number, unit="B")},
        environment=Environment(),
        started="2026-01-02T03:04:05.000+00:00",
        seconds=10.0,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return store.create_run(tmp_path / "results", "watched", HEADER)


def end(run: Path) -> None:
    header = json.loads((run / "run.json").read_text())
    store.write_json(run / "run.json", {**header, "ended": store.timestamp()})


@contextmanager
def held(run: Path, writer: str = store.LOCAL) -> Iterator[subprocess.Popen[str]]:
    """A process at work on the run; whoever kills it need not reap it."""
    command = [sys.executable, "-c", HOLDER, str(run), writer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "at work\n"
        yield holder
        holder.kill()


def silent(run: Path, seconds: float) -> None:
    """Let the run's files look as if nothing had come for so long."""
    for file in run.rglob("*"):
        os.utime(file, (time.time() - seconds,) * 2)


def add(run: Path, number: int = 1) -> None:
    with store.Appender(run / "trials.local.jsonl") as appender:
        appender.append(result(number).to_json())


def test_a_run_is_shown_until_it_ends_and_read_only_where_it_has_grown(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    loaded = store.load

    def load(path: Path) -> store.Run:
        reads.append(len(moments))
        return loaded(path)

    def wait(_: float) -> None:
        moments.append(None)
        if len(moments) == 2:
            with store.Appender(run / "trials.local.jsonl") as appender:
                appender.append(result(1).to_json())
        if len(moments) == 5:
            end(run)

    moments: list[None] = []
    monkeypatch.setattr("tradebench.store.load", load)
    found, lost = watch.watch(run, Console(width=100, force_terminal=True, quiet=True), wait)

    assert lost == ""
    assert [each.label for each in found.results] == ["lora r1"]
    assert found.header["ended"] is not None
    assert reads == [0, 2, 5]


def test_progress_says_how_much_there_is_and_how_old_it_is(run: Path) -> None:
    assert "0 results so far" in watch.progress(store.load(run))
    with store.Appender(run / "trials.local.jsonl") as appender:
        appender.append(result(1).to_json())
    told = watch.progress(store.load(run), datetime(2026, 1, 2, 3, 5, 0, tzinfo=UTC))

    assert told.startswith("watched: 1 result so far, the last 45 s ago")


@pytest.mark.slow
def test_the_command_follows_another_process_and_reports_at_the_end(
    run: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    lines.write_text("".join(f"{result(number).to_json()}\n" for number in (1, 2, 3)))
    writer = subprocess.Popen([sys.executable, "-c", WRITER, run, lines])
    done = subprocess.run(
        [sys.executable, "-m", "tradebench", "report", run, "--watch"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    writer.wait()

    assert done.returncode == 0, done.stderr
    assert "lora r3" in done.stdout
    assert (run / "report" / "index.html").exists()


def test_ctrl_c_stops_watching_with_130_and_leaves_the_run_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rich.live.Live.update", interrupted)
    monkeypatch.setattr(sys, "argv", ["tradebench", "report", str(run), "--watch"])
    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert ended.value.code == 130
    assert "stopped watching" in capsys.readouterr().err
    assert store.load(run).header["ended"] is None
    assert not (run / "report").exists()


@pytest.mark.slow
def test_a_watch_is_no_json(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tradebench", "report", run, "--watch", "--format", "json"],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 2
    assert "--watch draws on a terminal" in done.stderr


def test_a_run_whose_process_is_killed_is_not_waited_for(run: Path) -> None:
    with held(run) as holder:

        def wait(_: float) -> None:
            waited.append(None)
            if len(waited) == 2:
                holder.send_signal(signal.SIGKILL)
            assert len(waited) < 100

        waited: list[None] = []
        # However long nothing comes from a process that lives.
        silent(run, HOURS)
        assert watch.loss(store.load(run)) == ""
        found, lost = watch.watch(run, Console(quiet=True), wait)

    assert len(waited) >= 2
    assert lost == (
        f"the run is no longer alive: process {holder.pid} of this machine ended without "
        "finishing it"
    )
    assert found.header["ended"] is None
    end(run)
    assert store.owners(run) == []


def test_a_run_is_known_to_live_before_its_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU every point is predicted first, which takes its time."""

    def supervise(trials: object, *, directory: Path, **_: object) -> Summary:
        seen.extend(owner.state for owner in store.owners(directory))
        return Summary(directory=directory, results=(), started=0, reused=0, interrupted=False)

    seen: list[str] = []
    monkeypatch.setattr(sweep, "supervise", supervise)
    file = tmp_path / "watched.yaml"
    file.write_text("# ?\nmodel: reference\nbudget: {steps: 9}\ngrid: {adapters: lora}\n")
    sweep.sweep(
        Suite.load(file),
        tmp_path / "results",
        Options(),
        resume=False,
        foresight=sweep.Foresight(predict=False),
        note=print,
    )

    assert seen == ["alive"]


@pytest.mark.slow
def test_a_run_lives_as_long_as_one_of_its_writers(run: Path) -> None:
    header = json.loads((run / "run.json").read_text())
    for writer in ("1of2", "2of2"):
        store.write_json(store.header_file(run, writer), {**header, "started": store.timestamp()})
    with held(run, "1of2") as one, held(run, "2of2") as two:
        one.kill()
        one.wait()
        assert watch.loss(store.load(run)) == ""
        two.kill()
        two.wait()

    assert f"processes {one.pid} and {two.pid} of this machine" in watch.loss(store.load(run))


def test_a_number_that_another_process_has_now_is_no_life_sign(run: Path) -> None:
    here = Owner.here()
    assert here is not None
    assert here.state == "alive"
    assert Owner(here.pid, here.began - 1, here.machine).state == "gone"
    assert Owner(here.pid, here.began, "another").state == "elsewhere"
    assert Owner.read(here.text) == here
    assert [Owner.read(text) for text in ("", "{", "[]", "7", '{"pid": 1}')] == [None] * 5


def test_of_another_machine_only_a_long_silence_tells(run: Path) -> None:
    add(run)
    (run / "logs" / "a.0.0.txt").write_text("step 1")
    with store.lock(run):
        pass
    here = Owner.here()
    assert here is not None
    (run / ".lock").write_text(Owner(here.pid, here.began, "another").text)

    assert watch.loss(store.load(run)) == ""
    silent(run, HOURS)
    assert watch.loss(store.load(run)) == (
        "the run seems to be no longer alive: nothing has come for 3.0 h, the slowest trial so far "
        "took 10 s, and no process of this machine is at work on it"
    )
    # A trial that still writes to its log is at work.
    os.utime(run / "logs" / "a.0.0.txt")
    assert watch.loss(store.load(run)) == ""


def test_a_time_out_says_how_long_a_trial_may_be_silent(run: Path) -> None:
    header = json.loads((run / "run.json").read_text())
    store.write_json(run / "run.json", {**header, "options": {"timeout": HOURS}})
    silent(run, HOURS)
    assert watch.loss(store.load(run)) == ""
    silent(run, 2 * HOURS)
    assert "no trial may take more than 3.0 h" in watch.loss(store.load(run))


@pytest.mark.parametrize("results", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_command_ends_with_5_and_what_to_do_next(
    run: Path, results: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(results):
        add(run, number + 1)
    with held(run) as holder:
        holder.kill()
    monkeypatch.setattr(sys, "argv", ["tradebench", "report", str(run), "--watch"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()

    assert ended.value.code == 5
    assert f"process {holder.pid} of this machine ended without finishing it; " in printed.err
    assert "tradebench run suites/watched.yaml --threads 2 goes on where it" in printed.err
    # What there is has been reported.
    assert (run / "report" / "index.html").exists() == bool(results)
    assert ("lora r1" in printed.out) == bool(results)


def test_what_no_run_command_made_names_the_command(run: Path) -> None:
    header = json.loads((run / "run.json").read_text())
    store.write_json(run / "run.json", {**header, "argv": ["tradebench", "merge", "a", "b"]})

    assert watch.resumption(store.load(run)) == "tradebench run SUITE"
