"""The front as a whole over runs: one number, from one corner, of runs that can be compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tradebench import cli, store
from tradebench.regression import front
from tradebench.result import Environment, Measurement, Result

OBJECTIVES = ["peak_reserved_bytes", "step_seconds"]
LIMITS = {"peak_reserved_bytes": 80 * 2**30, "step_seconds": 2.0}
# Rank to GiB and seconds: two points of which neither beats the other.
POINTS: Mapping[int, tuple[float, float]] = {1: (20.0, 1.0), 2: (40.0, 0.5)}


def write(
    results: Path,
    points: Mapping[int, tuple[float, float]] = POINTS,
    *,
    objectives: list[str] = OBJECTIVES,
    limits: Mapping[str, float] = LIMITS,
    gpu: str = "H100",
    ended: bool = True,
    failed: tuple[int, ...] = (),
) -> Path:
    said = {"question": "?", "suite_text": "", "objectives": objectives, "limits": dict(limits)}
    directory = store.create_run(results, "mine", said)
    here = Environment(hardware={"gpus": [{"name": gpu, "memory_bytes": 80 * 2**30}]})
    with store.Appender(directory / "trials.local.jsonl") as file:
        for rank, (gib, seconds) in points.items():
            made: dict[str, Any] = {
                "suite": "mine",
                "trial": f"{rank:012x}",
                "label": f"lora r{rank}",
                "model": {"name": "tiny"},
                "budget": {},
                "evaluate": {},
                "settings": {"adapters": {"method": "lora", "rank": rank}},
                "environment": here,
            }
            if rank in failed:
                result = Result(**made, status="oom", reason="1 GiB was asked for")
            else:
                memory = Measurement(value=int(gib * 2**30), unit="B")
                step = Measurement(value=seconds, unit="s")
                numbers = {"peak_reserved_bytes": memory, "step_seconds": step}
                result = Result(**made, status="ok", measurements=numbers)
            file.append(result.to_json())
    if ended:
        header = json.loads((directory / "run.json").read_text())
        store.write_json(directory / "run.json", {**header, "ended": store.timestamp()})
    return directory


def found_in(*directories: Path) -> list[front.FrontSeries]:
    return front.series([store.load(each) for each in directories], ("measured",))


def test_a_worse_front_covers_less_of_the_space_up_to_the_limits(tmp_path: Path) -> None:
    first = write(tmp_path)
    worse = write(tmp_path, {1: (20.0, 1.0), 2: (40.0, 0.75)})
    (found,) = found_in(first, worse)

    # (1 - 20/80) (1 - 1/2), and what the second point adds to that: (1 - 40/80) (1.0 - 0.5) / 2.
    assert found.values == (0.375 + 0.125, 0.375 + 0.0625)
    assert found.fixed
    assert found.reference == LIMITS
    assert found.left_out == ()
    assert "hypervolume 43.8 % (2 runs; 50.0 % in the run before)" in front.text([found])
    assert "peak reserved memory 80.0 GiB and step time 2.00 s" in front.text([found])
    assert "beyond the worst" not in front.text([found])


def test_without_limits_the_corner_is_the_first_run_s_and_stays(tmp_path: Path) -> None:
    first = write(tmp_path, limits={})
    worse = write(tmp_path, {1: (40.0, 2.0), 2: (80.0, 1.0)}, limits={})
    (found,) = found_in(first, worse)

    assert not found.fixed
    assert found.reference == pytest.approx(
        {"peak_reserved_bytes": 1.1 * 40 * 2**30, "step_seconds": 1.1}
    )
    assert found.values[0] == pytest.approx(1 / 11)
    # By its own corner it would look as good as ever.
    assert found.values[1] == 0.0
    assert f"a tenth beyond the worst of {first.name}" in front.text([found])


def test_what_differs_from_the_newest_run_is_left_out_with_the_reason(tmp_path: Path) -> None:
    first = write(tmp_path)
    goals = write(tmp_path, objectives=["step_seconds", "peak_reserved_bytes"])
    limits = write(tmp_path, limits={**LIMITS, "step_seconds": 3.0})
    points = write(tmp_path, {**POINTS, 3: (10.0, 3.0)})
    last = write(tmp_path)
    (found,) = found_in(first, goals, limits, points, last)

    assert found.runs == (first.name, last.name)
    assert [(each.run, each.reason) for each in found.left_out] == [
        (goals.name, "other objectives"),
        (limits.name, "other limits"),
        (points.name, "other points"),
    ]
    assert f"not compared, other limits: {limits.name}" in front.text([found])


def test_a_point_that_fails_makes_the_front_worse(tmp_path: Path) -> None:
    points = {**POINTS, 3: (60.0, 0.25)}
    (found,) = found_in(write(tmp_path, points), write(tmp_path, points, failed=(2,)))

    assert found.values == (0.375 + 0.125 + 0.25 * 0.125, 0.375 + 0.25 * 0.375)


def test_a_run_that_goes_on_does_not_lead_and_other_hardware_is_apart(tmp_path: Path) -> None:
    one, other = write(tmp_path), write(tmp_path, gpu="H200")
    two, another = write(tmp_path), write(tmp_path, gpu="H200")
    going = write(tmp_path, {1: POINTS[1]}, ended=False)
    on_h100, on_h200 = found_in(one, other, two, another, going)

    assert (on_h100.runs, on_h200.runs) == ((one.name, two.name), (other.name, another.name))
    assert [each.reason for each in on_h100.left_out] == ["other points"]


def test_where_no_two_runs_compare_that_is_said(tmp_path: Path) -> None:
    (found,) = found_in(write(tmp_path, limits={}), write(tmp_path))

    assert "no two runs compare" in front.text([found])
    assert "not compared, other limits" in front.text([found])


def test_a_front_that_cannot_be_counted_is_left_out(tmp_path: Path) -> None:
    (found,) = found_in(write(tmp_path, failed=(1,)), write(tmp_path), write(tmp_path))

    assert len(found.runs) == 2
    assert [each.reason for each in found.left_out] == [
        "fewer than two points have every objective"
    ]


def test_history_prints_the_front_below_its_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tradebench", "history", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    for step in range(12):
        seconds = 0.5 if step < 6 else 1.0
        write(tmp_path / "results", {1: (20.0, 2 * seconds), 2: (40.0, seconds)})
    text, content = ask("mine"), json.loads(ask("mine", "--format", "json"))

    (whole,) = content["fronts"]
    (change,) = whole["changes"]
    assert content["schema"] == "tradebench.history/1"
    assert len(content["series"]) == 2
    assert whole["objectives"] == OBJECTIVES
    assert whole["values"] == [0.5] * 6 + [0.25] * 6
    assert (change["run"], change["before"], change["after"]) == (whole["runs"][6], 0.5, 0.25)
    assert "over peak reserved memory and step time, measured on tiny:" in text
    assert "50.0 % -> 25.0 % (-50.0 %), advice" in text
