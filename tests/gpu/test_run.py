"""The run: what becomes of sections that work, skip, fail, hang or find no time; a rehearsal."""

from __future__ import annotations

import gzip
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gpu import kit, run
from gpu.run import SECTIONS, Section
from gpu.rungs import EXPANDABLE, RUNGS
from gpu.section import Bench
from gpu.techniques import parts
from tradebench import devices
from tradebench.predict.library import Library
from tradebench.predict.point import predict_point
from tradebench.result import Result
from tradebench.target import ALLOCATOR, Target

SCRIPTS = {
    "works": "print('all is well')",
    "skips": "import sys; print('before'); print('There is no device.'); sys.exit(77)",
    "fails": "raise ValueError('this went wrong')",
    "crashes": "import os; os.abort()",
    "hangs": "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "time.sleep(600)",
    "tells": "import os, sys; sys.exit(os.environ.get('ONE', 'unset') + os.environ['TWO'])",
}


def section(name: str, **fields: Any) -> Section:
    return Section(name=name, does=f"it {name}", **{"seconds": 30.0, **fields})


def go(out: Path, *sections: Section, total: float = 100.0, **variables: str) -> list[run.Ended]:
    def command(section: Section, seconds: float) -> list[str]:
        return [sys.executable, "-c", SCRIPTS[section.name]]

    return run.run(sections, out, command, {**os.environ, **variables}, total)


def test_a_section_costs_no_other_one_anything(tmp_path: Path) -> None:
    begun = time.monotonic()
    names = ("crashes", "fails", "hangs", "skips", "works")
    ended = go(tmp_path, *(section(name, seconds=2.0) for name in names))

    assert [each.status for each in ended] == ["failed"] * 3 + ["skipped", "ok"]
    assert [each.reason for each in ended][0::2] == [
        "It died of SIGABRT.",
        "It took more than 2 seconds.",
        None,
    ]
    assert (ended[1].reason or "").splitlines()[-1] == "ValueError: this went wrong"
    assert ended[3].reason == "There is no device."
    assert time.monotonic() - begun < 60


def test_the_summary_has_every_section_so_far(tmp_path: Path) -> None:
    ended = go(tmp_path, section("works"), section("skips"))
    summary = json.loads((tmp_path / "summary.json").read_text())

    assert [each["name"] for each in summary["sections"]] == ["works", "skips"]
    assert summary["sections"][1]["reason"] == ended[1].reason
    assert summary["seconds"] == pytest.approx(sum(each.seconds for each in ended), abs=1.0)


def test_sections_for_which_no_time_is_left_are_skipped(tmp_path: Path) -> None:
    (ended,) = go(tmp_path, section("hangs"), total=run.LEAST - 1)

    assert (ended.status, ended.reason) == ("skipped", "No time was left for it.")


def test_a_section_gets_no_more_time_than_is_left(tmp_path: Path) -> None:
    given: list[float] = []

    def command(section: Section, seconds: float) -> list[str]:
        given.append(seconds)
        return [sys.executable, "-c", ""]

    run.run([section("works", seconds=90.0)] * 2, tmp_path, command, os.environ, 60.0)

    assert given == [pytest.approx(60, abs=1), pytest.approx(60, abs=5)]
    assert given[1] < given[0]


def test_a_section_has_its_own_variables_and_an_empty_one_is_unset(tmp_path: Path) -> None:
    ended = go(
        tmp_path,
        section("tells", variables={"ONE": "", "TWO": "!"}),
        section("tells", variables={"TWO": "?"}),
        ONE="one",
        TWO="two",
    )

    assert [(each.reason or "").splitlines()[-1] for each in ended] == ["unset!", "one?"]


def test_last_lines_do_not_say_where_this_machine_keeps_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCRIPTS, "fails", f"raise ValueError({str(run.ROOT / 'x')!r})")
    (ended,) = go(tmp_path, section("fails"))

    assert (ended.reason or "").endswith("ValueError: ./x")


def test_a_kit_for_another_python_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "FOLDER", tmp_path)
    (tmp_path / kit.MANIFEST).write_text('{"python": "2.7"}')
    assert str(tmp_path) not in run.surroundings("cuda")["PYTHONPATH"]

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / kit.MANIFEST).write_text(json.dumps({"python": version}))
    assert run.surroundings("cuda")["PYTHONPATH"].startswith(f"{tmp_path}:")


def test_sections_together_are_worth_their_time() -> None:
    names = [each.name for each in SECTIONS]

    assert len(set(names)) == len(names)
    assert {f"ladder/{name}" for name in RUNGS} <= set(names)
    # A rehearsal knows every module and every kind of quantization.
    rehearsed = {each.name.split("/")[0] for each in SECTIONS if each.rehearsed}
    assert rehearsed == {name.split("/")[0] for name in names}
    assert EXPANDABLE == ALLOCATOR


@pytest.mark.parametrize("name", RUNGS)
def test_a_rung_is_legal(name: str) -> None:
    for tiny in (True, False):
        assert RUNGS[name].trial(tiny=tiny).conflicts() == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNGS)
def test_a_rung_fills_a_good_part_of_the_device_and_no_more(name: str) -> None:
    device = devices.find("h200-141gb")
    trial = RUNGS[name].trial(tiny=False)
    target = Target(device=device.id, allocator=RUNGS[name].allocator)
    found = predict_point(trial, Library([trial], device="cuda"), target)["measurements"]
    peak = max(
        value["value"] for key, value in found.items() if key.startswith("peak_process_bytes")
    )

    assert 0.3 * device.reported_bytes[0] < peak < 0.97 * device.reported_bytes[0]


# The rehearsal.


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rehearsal")
    run.main(["--device", "cpu", "--tiny", "--out", str(out)])
    return out


def read(path: Path) -> Any:
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


@pytest.mark.slow
def test_a_rehearsal_runs_through_and_leaves_its_files(rehearsal: Path) -> None:
    sections = read(rehearsal / "summary.json")["sections"]
    files = {str(path.relative_to(rehearsal)) for path in rehearsal.rglob("*") if path.is_file()}

    assert [each for each in sections if each["status"] != "ok"] == []
    assert files == {
        "summary.json",
        "environment.json",
        "overheads.json",
        "hidden.json",
        "calibration.json",
        "published.json",
        "profiles.json.gz",
        "traps.json",
        "checks.json",
        *(f"ladder/{name}.json" for name, rung in RUNGS.items() if rung.rehearsed),
        *(f"techniques/{name}.json" for name, _ in parts(tiny=True)[0]),
        "predictions.json",
        *(f"traces/{name}.json.gz" for name in ("expandable", "default")),
    }
    assert max(path.stat().st_size for path in rehearsal.rglob("*")) < 200_000


@pytest.mark.slow
def test_a_rehearsed_rung_is_a_result_like_any_other(rehearsal: Path) -> None:
    for path in (rehearsal / "ladder").iterdir():
        result = Result.model_validate_json(path.read_text())
        rung = RUNGS[path.stem]

        assert result.trial == rung.trial(tiny=True).id
        assert len(result.measurements["step_seconds"].samples) == 2
        assert set(result.effects) == set(rung.settings)
        assert result.environment.variables.get("PYTORCH_ALLOC_CONF", "") == rung.allocator


@pytest.mark.slow
def test_a_rehearsed_technique_ran_or_says_what_it_needs(rehearsal: Path) -> None:
    results = {
        path.stem: Result.model_validate_json(path.read_text())
        for path in (rehearsal / "techniques").iterdir()
    }
    measured = {f"techniques/{name}" for name, each in results.items() if each.status == "ok"}
    predicted = {each["name"]: each for each in read(rehearsal / "predictions.json")["trials"]}

    assert {each.status for each in results.values()} == {"ok", "skipped"}
    assert all(each.reason for each in results.values() if each.status == "skipped")
    assert measured < set(predicted)
    assert all(each["figures"] and not each["reason"] for each in predicted.values())


@pytest.mark.slow
def test_rehearsed_figures_are_of_the_kind_that_is_read_elsewhere(rehearsal: Path) -> None:
    from tradebench.devices import calibration, overheads

    assert calibration.load(rehearsal / "calibration.json").device == "cpu"
    assert overheads.load(rehearsal / "overheads.json").context[0] > 0
    formats: Mapping[str, Mapping[str, float]] = read(rehearsal / "traps.json")["formats"]
    assert min(values["cosine"] for values in formats.values()) > 0.999
    assert len(read(rehearsal / "published.json")["rows"]) == 12


def test_a_section_replaces_its_file_in_one_step(tmp_path: Path) -> None:
    bench = Bench(device="cpu", tiny=True, out=tmp_path, seconds=1.0)
    bench.write("a/b", {"x": 1})
    bench.write("a/b", {"x": 2})
    bench.pack("c", [1, 2])
    first = (tmp_path / "c.json.gz").read_bytes()
    bench.pack("c", [1, 2])

    assert read(tmp_path / "a/b.json") == {"x": 2}
    assert read(tmp_path / "c.json.gz") == [1, 2]
    assert (tmp_path / "c.json.gz").read_bytes() == first
    assert len(list(tmp_path.rglob("*.tmp"))) == 0
