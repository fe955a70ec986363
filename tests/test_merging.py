"""Runs of several machines brought together, and what the report says of points made twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tradebench import store
from tradebench.commands.merging import merge
from tradebench.errors import UserError
from tradebench.report.doubles import doubles
from tradebench.report.fronts import groups
from tradebench.result import Environment, Measurement, Result, Status
from tradebench.store import Run

Make = Callable[..., Path]
UNITS = {"peak_tensor_bytes": "B", "step_seconds": "s"}


def made(
    label: str,
    *,
    cpu: str = "x",
    status: Status = "ok",
    repeat: int = 0,
    started: str = "2026-01-01",
    **values: float,
) -> Result:
    return Result(
        suite="s",
        trial=(label * 12)[:12],
        repeat=repeat,
        label=label,
        model={"name": "reference"},
        budget={},
        evaluate={},
        settings={"precision": {"method": label}},
        status=status,
        measurements={
            name: Measurement(value=value, unit=UNITS[name]) for name, value in values.items()
        },
        artifacts={"log": f"logs/{label}.txt"},
        environment=Environment(hardware={"cpu": cpu}),
        started=started,
    )


@pytest.fixture
def run(tmp_path: Path) -> Make:
    def write(*results: Result, writer: str = "local", suite: str = "s", **header: str) -> Path:
        directory = store.create_run(tmp_path, suite, header)
        with store.Appender(directory / f"trials.{writer}.jsonl") as file:
            for result in results:
                stored = store.placed(result, writer)
                file.append(stored.to_json())
                log = directory / stored.artifacts["log"]
                log.parent.mkdir(parents=True, exist_ok=True)
                log.write_text(f"{result.label} of {result.environment.hardware['cpu']}")
        with store.Appender(directory / f"events.{writer}.jsonl") as file:
            file.append(json.dumps({"event": "started", "by": writer}))
        return directory

    return write


def together(out: Path, *runs: Path) -> Run:
    return merge([store.load(each) for each in runs], out, note=lambda _: None)


def test_a_merged_run_holds_everything_with_the_files_of_each(run: Make, tmp_path: Path) -> None:
    out = tmp_path / "all"
    merged = together(
        out,
        run(made("a"), made("b")),
        run(made("b", cpu="y"), made("c", cpu="y")),
        run(made("d"), writer="2of2"),
    )

    assert {name: [each.label for each in kept] for name, kept in merged.writers.items()} == {
        "2of2": ["d"],
        "local": ["a", "b"],
        "local-2": ["b", "c"],
    }
    logs = {
        (writer, each.label): (out / each.artifacts["log"]).read_text()
        for writer, kept in merged.writers.items()
        for each in kept
    }
    assert (logs["local", "b"], logs["local-2", "b"]) == ("b of x", "b of y")
    assert logs["2of2", "d"] == "d of x"
    assert [event["by"] for event in store.events(out)] == ["2of2", "local", "local"]
    assert len(merged.header["merged"]) == 3
    assert merged.header["ended"] is None


def test_a_copy_of_a_run_adds_nothing(run: Make, tmp_path: Path) -> None:
    first = run(made("a"), made("b"))
    once = together(tmp_path / "once", first)
    twice = together(tmp_path / "twice", tmp_path / "once", first)

    assert [each.label for each in twice.attempts] == ["a", "b"]
    assert list(twice.writers) == list(once.writers) == ["local"]


def test_a_merged_run_can_be_merged_again(run: Make, tmp_path: Path) -> None:
    together(tmp_path / "one", run(made("a")), run(made("a", cpu="y")))
    merged = together(tmp_path / "two", tmp_path / "one", run(made("a", cpu="z")))

    assert list(merged.writers) == ["local", "local-2", "local-3"]
    for kept in merged.writers.values():
        (result,) = kept
        log = merged.directory / result.artifacts["log"]
        assert log.read_text() == f"a of {result.environment.hardware['cpu']}"


def test_runs_of_different_suites_are_not_merged(run: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of different suites: s, t"):
        together(tmp_path / "all", run(made("a")), run(made("a"), suite="t"))
    with pytest.raises(UserError, match="is not empty"):
        together(run(made("a")), run(made("a")))


def test_a_suite_that_changed_between_runs_is_said(run: Make, tmp_path: Path) -> None:
    runs = [store.load(run(made(name), suite_text=name)) for name in "ab"]
    notes: list[str] = []
    merged = merge(runs, tmp_path / "all", note=notes.append)

    assert notes == ["the suite was changed between these runs: the merged one says what the newest"
                     " says"]  # fmt: skip
    assert merged.header["suite_text"] == "b"


def said(*directories: Path, out: Path) -> tuple[str, ...]:
    merged = together(out, *directories)
    return doubles(merged, groups(merged))


def test_what_one_machine_made_needs_no_word(run: Make, tmp_path: Path) -> None:
    assert said(run(made("a"), made("b")), run(made("c")), out=tmp_path / "all") == ()


def test_a_point_that_two_machines_made_alike_is_named(run: Make, tmp_path: Path) -> None:
    twins = [run(made("a", peak_tensor_bytes=4)) for _ in range(1)]
    twins.append(run(made("a", peak_tensor_bytes=4, started="2026-01-02")))

    assert said(*twins, out=tmp_path / "all") == ("No disagreement: a (local and local-2).",)


def test_disagreements_are_listed_and_not_averaged(run: Make, tmp_path: Path) -> None:
    ours = [
        made("a", peak_tensor_bytes=2**20, step_seconds=1.00, repeat=0),
        made("a", peak_tensor_bytes=2**20, step_seconds=1.02, repeat=1),
        made("b", step_seconds=2.0),
        made("c", step_seconds=3.0),
    ]
    theirs = [
        made("a", cpu="y", peak_tensor_bytes=2**21, step_seconds=2.0),
        made("b", cpu="x", step_seconds=2.01, started="2025"),
        made("c", cpu="x", status="oom", started="2025"),
    ]
    out = tmp_path / "all"
    sentences = said(run(*ours), run(*theirs), out=out)

    assert sentences == (
        "a: that of local stands. local-2 differs in hardware.cpu. Peak tensor memory is 1.00 MiB "
        "(local) and 2.00 MiB (local-2), which should be equal. Step time is 1.00 s (local) and "
        "2.00 s (local-2), beyond noise.",
        "c: that of local stands. It ended as ok (local) and as out of memory (local-2).",
        "No disagreement: b (local and local-2).",
    )
    (point,) = [each for each in groups(store.load(out))[0].points if each.name == "a"]
    assert point.estimates["step_seconds"].values == (1.00, 1.02)


def test_noise_that_nobody_knows_is_called_so(run: Make, tmp_path: Path) -> None:
    (sentence,) = said(
        run(made("a", step_seconds=1.0)),
        run(made("a", step_seconds=1.1, started="2026-01-02")),
        out=tmp_path / "all",
    )

    assert sentence.endswith("1.00 s (local); how much is noise is not known.")


def test_a_repeat_of_another_machine_is_left_out_by_name(run: Make, tmp_path: Path) -> None:
    sentences = said(
        run(made("a"), made("a", repeat=1)),
        run(made("a", repeat=2, cpu="y")),
        out=tmp_path / "all",
    )

    assert sentences == (
        "a, repeat 2: made by local-2 alone, in an environment that the other repeats were not "
        "made in, and left out.",
    )
