"""Watching a run that another process is writing."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from tradebench import cli, store
from tradebench.report import watch
from tradebench.result import Environment, Measurement, Result

HEADER = {"question": "", "suite_text": "", "objectives": [], "limits": {}, "argv": []}

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
    found = watch.watch(run, Console(width=100, force_terminal=True, quiet=True), wait)

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
