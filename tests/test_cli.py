"""The commands as users call them: in a process of their own."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tradebench import store
from tradebench.devices import find
from tradebench.result import Result
from tradebench.techniques import techniques

ROOT = Path(__file__).parents[1]
Tradebench = Callable[..., "subprocess.CompletedProcess[str]"]

GRID = """\
design: list
grid:
  - {precision: bf16}
  - {quantization: nf4}
  - {quantization: nf4, adapters: {method: lora, rank: 4}}
  - {checkpointing: {ratio: 1}}
"""


def suite_text(model: str, question: str, batch: int, sequence: int) -> str:
    """Four points of a small random model, of which one is illegal."""
    return (
        f"# {question}\n"
        f"model: {{name: tiny, config: {model}, weights: random}}\n"
        f"budget: {{steps: 4, warmup: 1, batch: {batch}, sequence: {sequence}, data: random}}\n"
        f"{GRID}"
    )


CARD = "l4-24gb"
TRAP = "raise SystemExit('torch was imported')\n"


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is predicted here is kept here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "tradebench", *map(str, words)]


@pytest.fixture
def tradebench(tmp_path: Path) -> Tradebench:
    """Runs a command in an empty folder and gives what it printed and its exit code."""

    def call(*words: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command(*words), cwd=tmp_path, capture_output=True, text=True)

    return call


@pytest.fixture
def suite(tmp_path: Path, tiny_model_path: str) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(suite_text(tiny_model_path, "Does a small random model run?", 4, 32))
    return file


def run_directory(folder: Path) -> Path:
    (header,) = folder.glob("results/small/*/run.json")
    return header.parent


def statuses(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {result["label"]: result["status"] for result in results}


def tensor_peaks(results: Sequence[dict[str, Any]]) -> dict[str, int]:
    """By trial, the requested bytes of training."""
    return {
        result["trial"]: result["measurements"]["peak_tensor_bytes"]["value"]
        for result in results
        if result["status"] == "ok"
    }


def workers_started(directory: Path) -> int:
    return sum(event["event"] == "started" for event in store.events(directory))


def test_help_names_every_command(tradebench: Tradebench) -> None:
    help_text = tradebench("--help").stdout

    for name in ("run", "plan", "report", "merge", "techniques", "doctor", "suite", "reference"):
        assert re.search(rf"^\W+{name}\b", help_text, re.MULTILINE)


def test_a_sweep_ends_in_a_report_and_is_not_repeated(
    tradebench: Tradebench, suite: Path, tmp_path: Path
) -> None:
    first = tradebench("run", suite, "--format", "json")
    printed = json.loads(first.stdout)
    directory = run_directory(tmp_path)

    measured, predicted = (
        [each for each in printed["results"] if each["kind"] == kind]
        for kind in ("measured", "predicted")
    )

    assert first.returncode == 0, first.stderr
    assert printed["schema"] == "tradebench.run/1"
    assert statuses(measured) == {
        "bf16": "ok",
        "nf4": "skipped",
        "nf4 + lora r4": "ok",
        "checkpointing 1": "ok",
    }
    assert {"index.html", "report.md", "trials.csv", "pareto.svg", "pareto.png"} <= {
        file.name for file in (directory / "report").iterdir()
    }

    assert statuses(predicted) == {
        "bf16": "ok",
        "nf4 + lora r4": "ok",
        "checkpointing 1": "ok",
    }
    assert tensor_peaks(predicted) == tensor_peaks(measured)
    assert "median error 0.00%" in (directory / "report" / "report.md").read_text()

    started = workers_started(directory)
    second = tradebench("run", suite)

    assert second.returncode == 0
    assert workers_started(directory) == started == 3
    assert "index.html" in second.stdout


def test_a_result_says_how_to_run_the_point_again(tradebench: Tradebench, suite: Path) -> None:
    from tradebench.result import Result
    from tradebench.trial import Trial

    done = tradebench("run", suite, "--no-predict", "--format", "json")
    for raw in json.loads(done.stdout)["results"]:
        result = Result.model_validate(raw)
        trial = Trial.from_payload(
            {key: raw[key] for key in ("model", "budget", "evaluate", "settings")}
        )

        assert trial.id == result.trial
        assert trial.label == result.label


def test_an_impossible_memory_demand_is_a_finding_with_phase_and_size(
    tradebench: Tradebench, tmp_path: Path, tiny_model_path: str
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(
        f"model: {{name: tiny, config: {tiny_model_path}, weights: random}}\n"
        "budget: {steps: 2, warmup: 0, batch: 512, sequence: 128, data: random}\n"
        "grid: {precision: fp32}\n"
    )

    done = tradebench("run", file, "--memory-cap", "200MiB", "--format", "json")
    (result,) = json.loads(done.stdout)["results"]

    assert done.returncode == 0, done.stderr
    assert (result["status"], result["phase"]) == ("oom", "train")
    assert result["measurements"]["requested_bytes"]["value"] > 2**20
    assert result["measurements"]["peak_tensor_bytes.load"]["value"] > 0


def test_a_dry_run_lists_the_points_and_starts_nothing(
    tradebench: Tradebench, suite: Path, tmp_path: Path
) -> None:
    done = tradebench("run", suite, "--dry-run")

    assert "4 points, 3 legal" in done.stdout
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "nowhere.yaml"], r"tradebench: nowhere\.yaml: .*"),
        (
            ["suite", "check", "wrong.yaml"],
            r"tradebench: wrong\.yaml:3: unknown slot 'qant.*nf4?.*",
        ),
        (["report", "nowhere"], r"tradebench: nowhere is not a run.*"),
        (["report"], r"tradebench: results holds no run yet.*"),
        (["run", "good.yaml", "--memory-cap", "lots"], r"tradebench: --memory-cap: .*lots.*"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tradebench: Tradebench, tmp_path: Path, words: list[str], line: str
) -> None:
    (tmp_path / "wrong.yaml").write_text("model: reference\ngrid:\n  qantization: nf4\n")
    (tmp_path / "good.yaml").write_text("model: reference\ngrid: {precision: bf16}\n")

    done = tradebench(*words)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.match(line.replace("nf4?.*", ".*"), done.stderr)


def test_missing_training_data_fails_the_point_with_one_sentence(
    tradebench: Tradebench, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": \n')
    file = tmp_path / "small.yaml"
    file.write_text(
        "model: reference\n"
        "budget: {steps: 2, warmup: 0, data: {file: rows.jsonl}}\n"
        "grid: {precision: bf16}\n"
    )

    done = tradebench("run", file, "--format", "json")
    (result,) = json.loads(done.stdout)["results"]

    assert done.returncode == 5
    assert result["status"] == "failed"
    assert re.match(r"\S*rows\.jsonl:2: not JSON", result["reason"])


def test_every_technique_is_listed(tradebench: Tradebench) -> None:
    listed = json.loads(tradebench("techniques", "--format", "json").stdout)["techniques"]

    assert [row["methods"] for row in listed] == [list(kind.methods()) for kind in techniques()]
    assert all(row["cite"] and row["summary"] for row in listed)


def test_the_schema_of_suites_is_json(tradebench: Tradebench) -> None:
    schema = json.loads(tradebench("suite", "schema").stdout)

    assert "grid" in schema["properties"]


def test_the_doctor_finds_torn_lines(tradebench: Tradebench, tmp_path: Path) -> None:
    directory = store.create_run(tmp_path / "results", "small", {})
    (directory / "trials.local.jsonl").write_text('{"schema": "tradebench.res')

    done = tradebench("doctor")

    assert "torch: 2" in done.stdout
    assert "trials.local.jsonl" in done.stderr


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def descendants_of(directory: Path) -> list[psutil.Process]:
    """Processes that work for a run: its folder is in their command line or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(directory) in " ".join([*process.cmdline(), process.cwd()]):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.parametrize(
    "moment",
    [2.0, pytest.param(9.0, marks=pytest.mark.slow), pytest.param(11.0, marks=pytest.mark.slow)],
)
def test_killing_the_supervisor_loses_nothing_that_was_finished(
    suite: Path, tmp_path: Path, moment: float
) -> None:
    sweep = subprocess.Popen(
        command("run", suite, "--no-predict"),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_until(lambda: any(tmp_path.glob("results/small/*/run.json")))
    time.sleep(moment)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    directory = run_directory(tmp_path)
    before = {
        (result.trial, result.repeat): result
        for result in store.load(directory).results
        if result.status == "ok"
    }
    wait_until(lambda: not descendants_of(tmp_path))

    subprocess.run(
        command("run", suite, "--no-predict"), cwd=tmp_path, capture_output=True, check=True
    )
    after = {(result.trial, result.repeat): result for result in store.load(directory).results}

    assert sorted(result.status for result in after.values()) == ["ok", "ok", "ok", "skipped"]
    assert all(after[key] == result for key, result in before.items())


def test_ctrl_c_keeps_what_is_done_and_ends_with_130(suite: Path, tmp_path: Path) -> None:
    sweep = subprocess.Popen(
        command("run", suite, "--no-predict"),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert sweep.stderr is not None
    for line in sweep.stderr:
        if line.startswith("ok"):
            break
    sweep.send_signal(signal.SIGINT)
    sweep.communicate(timeout=30)

    assert sweep.returncode == 130
    assert any(result.status == "ok" for result in store.load(run_directory(tmp_path)).results)


@pytest.mark.slow
def test_two_machines_write_one_run_at_once_and_a_report_shows_all(
    tradebench: Tradebench, suite: Path, tmp_path: Path
) -> None:
    words = ("run", suite, "--run", "shared", "--shard")
    machines = [
        subprocess.Popen(
            command(*words, shard), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for shard in ("1/2", "2/2")
    ]
    ended = [(machine.communicate(timeout=300), machine.returncode) for machine in machines]
    directory = run_directory(tmp_path)
    found = store.load(directory)
    reported = tradebench("report", directory, "--format", "json")
    merged = tradebench("merge", directory, directory, "--out", "merged", "--format", "json")
    measured = [each for each in found.results if each.kind == "measured"]
    predicted = [each for each in found.results if each.kind == "predicted"]

    assert [code for _, code in ended] == [0, 0], ended
    assert list(found.writers) == ["1of2", "1of2.plan", "2of2", "2of2.plan"]
    assert sorted(each.status for each in measured) == ["ok", "ok", "ok", "skipped"]
    assert {each.trial for each in predicted} == {
        each.trial for each in measured if each.status == "ok"
    }
    assert all((directory / each.artifacts["log"]).exists() for each in measured if each.artifacts)
    assert "tradebench report" in ended[0][0][0].decode()
    assert not (directory / "1of2" / "work").exists()
    assert reported.returncode == merged.returncode == 0
    assert len(json.loads(reported.stdout)["results"]) == len(found.results)
    assert len(json.loads(merged.stdout)["results"]) == len(found.results)
    assert "Made by several machines" not in (tmp_path / "merged/report/report.md").read_text()


def test_a_cluster_needs_ray_and_fresh_interpreters(tradebench: Tradebench, suite: Path) -> None:
    forked = tradebench("run", suite, "--engine", "ray", "--isolation", "fork")
    assert (forked.returncode, forked.stderr.count("\n")) == (2, 1)
    assert "a fresh interpreter for each trial" in forked.stderr
    if importlib.util.find_spec("ray") is None:
        missing = tradebench("run", suite, "--engine", "ray")
        assert missing.returncode == 2
        assert "pip install 'tradebench[ray]'" in missing.stderr


@pytest.mark.parametrize("words", [("--engine", "ray"), ("--jobs", "2")])
def test_a_launcher_starts_one_trial_at_a_time(
    tradebench: Tradebench, suite: Path, words: tuple[str, ...]
) -> None:
    refused = tradebench("run", suite, "--launcher", "torchrun", *words)

    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "leave out --engine ray and --jobs" in refused.stderr


def test_a_share_that_is_none_is_refused(tradebench: Tradebench, suite: Path) -> None:
    refused = tradebench("run", suite, "--shard", "3/2")
    points = json.loads(
        tradebench("run", suite, "--shard", "1/2", "--dry-run", "--format", "json").stdout
    )["points"]

    assert refused.returncode == 2
    assert refused.stderr.startswith("tradebench: --shard 3/2: give one share of all")
    assert len(points) == 2


# Plans.


class Planned:
    """A folder in which a suite has been planned once, its predictions kept.

    `again` plans with a torch that cannot be imported: whatever it answers was known. Predictions
    are those of a state of the code, so the folder has a copy of it that nobody edits meanwhile.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "tradebench", folder / "tradebench")
        (folder / "trap").mkdir()
        (folder / "trap" / "torch.py").write_text(TRAP)
        # One point that fits on the smallest card, and two that are too wide for it.
        text = suite_text(model, "Does a small model on very many tokens fit?", 8192, 128)
        points = text.splitlines(keepends=True)
        (folder / "wide.yaml").write_text("".join(points))
        (folder / "narrow.yaml").write_text("".join([*points[:-4], points[-1]]))
        words = ("--gpu", CARD, "--processes", 1, "--format", "json")
        self.first = self._call("plan", "wide.yaml", *words)

    def again(self, suite: str, *words: object) -> "subprocess.CompletedProcess[str]":
        path = {"PYTHONPATH": str(self.folder / "trap")}
        return self._call("plan", suite, "--gpu", CARD, *words, **path)

    def report(self, run: str) -> "subprocess.CompletedProcess[str]":
        return self._call("report", run, "--format", "json")

    def _call(self, *words: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        home = {"XDG_CACHE_HOME": str(self.folder / "cache")}
        return subprocess.run(
            command(*words),
            cwd=self.folder,
            capture_output=True,
            text=True,
            env={**os.environ, **home, **variables},
        )


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, tiny_model_path: str) -> Planned:
    return Planned(tmp_path_factory.mktemp("plans"), tiny_model_path)


@pytest.mark.slow
def test_a_plan_says_of_every_point_whether_it_fits(planned: Planned) -> None:
    printed = json.loads(planned.first.stdout)
    results = [Result.model_validate(raw) for raw in printed["results"]]

    assert planned.first.returncode == 0, planned.first.stderr
    assert set(printed) == {"schema", "run", "results"}
    assert printed["schema"] == "tradebench.plan/1"
    assert {(result.kind, result.suite) for result in results} == {("predicted", "wide")}
    assert {result.label: result.fit and result.fit.verdict for result in results} == {
        "bf16": "tight",
        "nf4": None,
        "nf4 + lora r4": "does not fit",
        "checkpointing 1": "fits",
    }
    assert [result.status for result in results] == ["ok", "skipped", "ok", "ok"]


@pytest.mark.slow
def test_a_plan_lies_beside_runs_and_is_reported_like_one(planned: Planned) -> None:
    printed = json.loads(planned.first.stdout)
    directory = planned.folder / printed["run"]
    told = json.loads(planned.report(printed["run"]).stdout)

    assert directory.parent == planned.folder / "results" / "wide.plan"
    assert told["results"] == printed["results"]
    assert {"index.html", "report.md", "trials.csv"} <= {Path(file).name for file in told["files"]}
    assert store.load(directory).header["limits"] == {
        "peak_process_bytes": find(CARD).reported_bytes[0]
    }


@pytest.mark.slow
def test_a_run_does_not_go_on_where_a_plan_was_kept(planned: Planned) -> None:
    results = planned.folder / "results"

    assert store.latest(results, "wide") is None
    assert store.latest(results) is not None


@pytest.mark.slow
def test_a_known_plan_is_answered_without_torch(planned: Planned) -> None:
    again = planned.again("wide.yaml", "--format", "json")
    first, second = (json.loads(plan.stdout) for plan in (planned.first, again))

    assert again.returncode == 0, again.stderr
    assert first["run"] != second["run"]
    for part in ("trial", "measurements", "fit"):
        assert [each[part] for each in first["results"]] == [
            each[part] for each in second["results"]
        ]


@pytest.mark.slow
def test_a_fresh_plan_asks_again(planned: Planned) -> None:
    assert "torch was imported" in planned.again("wide.yaml", "--fresh").stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "words", "code"),
    [
        ("wide.yaml", ["--require-fit"], 1),
        ("narrow.yaml", ["--require-fit"], 0),
        ("wide.yaml", ["--budget", "0.000001"], 1),
        ("wide.yaml", ["--budget", "1"], 0),
    ],
)
def test_what_was_required_of_a_plan_decides_its_exit_code(
    suite: str, words: list[str], code: int, planned: Planned
) -> None:
    done = planned.again(suite, *words)

    assert done.returncode == code, done.stderr
    assert ("GPU-hours, more than the budget" in done.stderr) == (code == 1 and "--budget" in words)
    assert "checkpointing 1" in done.stdout
    assert "index.html" in done.stdout


@pytest.mark.slow
def test_a_plan_is_a_table_to_paste(planned: Planned) -> None:
    words = ("--tokens", "1.5M", "--price", "2.5", "--format", "markdown")
    head, rule, *lines = planned.again("wide.yaml", *words).stdout.splitlines()
    rows = [line for line in lines if line.startswith("|")]

    assert head.startswith("| point | verdict | needs (GiB) |")
    assert head.endswith("| step (s) | hours | GPU-hours | money | nearest change that fits |")
    assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [
        "checkpointing 1",
        "bf16",
        "nf4 + lora r4",
    ]
    assert lines[len(rows) + 1].startswith(f"3 points on {CARD} (21.9-22.2 GiB of it usable): ")
    latest = max(planned.folder.glob("results/wide.plan/*/report/report.md"))
    assert "| Price of 1M tokens |" in latest.read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["plan"], "tradebench: name a suite file to plan, or ask for --validate"),
        (["plan", "nowhere.yaml"], r"tradebench: nowhere\.yaml: .*"),
        (["plan", "good.yaml", "--gpu", "h100"], ".* 'h100': did you mean h100-80gb\\?"),
        (
            ["plan", "good.yaml", "--tokens", "many"],
            "tradebench: --tokens: 'many' is not a number.*",
        ),
        (
            ["plan", "good.yaml", "--gpu", "none", "--require-fit"],
            "tradebench: --require-fit needs a device to fit on.*",
        ),
    ],
)
def test_a_mistake_in_a_plan_is_one_line_and_exit_code_2(
    tradebench: Tradebench, tmp_path: Path, words: list[str], line: str
) -> None:
    (tmp_path / "good.yaml").write_text("model: reference\ngrid: {precision: bf16}\n")
    done = tradebench(*words)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.match(line, done.stderr)
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_calibration_that_is_not_there_is_refused(planned: Planned) -> None:
    done = planned.again("wide.yaml", "--calibration", "none.json")

    assert done.returncode == 2
    assert "none.json" in done.stderr


@pytest.mark.slow
def test_a_suite_that_was_planned_is_run_in_a_directory_of_its_own(
    tradebench: Tradebench, suite: Path, tmp_path: Path
) -> None:
    plan = json.loads(tradebench("plan", suite, "--format", "json").stdout)
    before = (tmp_path / plan["run"] / "trials.plan.jsonl").read_bytes()
    run = json.loads(tradebench("run", suite, "--no-predict", "--format", "json").stdout)

    assert statuses(run["results"]) == statuses(plan["results"])
    assert {result["kind"] for result in run["results"]} == {"measured"}
    assert tmp_path / run["run"] == run_directory(tmp_path)
    assert (tmp_path / plan["run"] / "trials.plan.jsonl").read_bytes() == before
