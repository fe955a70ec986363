"""Results of other tools as ours, and ours as other tools read them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tradebench import cli, exchange, store
from tradebench.report.tables import frame
from tradebench.result import Result
from tradebench.store import Run

EXAMPLES = Path(__file__).parent / "examples"
QUICKSTART = Path(__file__).parents[1] / "results" / "quickstart-full" / "example"
Ask = Callable[..., int]
STOPPED = -1


@pytest.fixture(scope="module")
def run() -> Run:
    return store.load(QUICKSTART)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """Runs a command in an empty folder and gives its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["tradebench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return call


def read(form: str, name: str) -> Result:
    (found,) = exchange.reader(form)(json.loads((EXAMPLES / name).read_text()), "s")
    return found


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


# Imports.


def test_a_result_of_peft_is_published_evidence_in_our_words() -> None:
    found = read("peft", "peft-lora.json")

    assert (found.kind, found.status, found.label) == ("published", "ok", "bf16 + lora r32")
    assert found.settings["adapters"]["alpha"] == 64
    assert found.value("peak_reserved_bytes") == 22292725760
    assert found.value("trainable_parameters") == 9175040
    assert found.environment.hardware["gpus"] == [{"name": "NVIDIA L40S"}]


def test_pefts_steps_are_timed_without_its_evaluations() -> None:
    found = read("peft", "peft-lora.json")
    step = found.measurements["step_seconds"]

    assert step.value == pytest.approx((29.004624610111932 + 28.890736919020128) / 500)
    assert len(step.samples) == 2
    assert any("train_time of 942 s covers evaluations" in each for each in found.warnings)


def test_pefts_accuracy_has_the_interval_of_its_items() -> None:
    accuracy = read("peft", "peft-lora.json").measurements["accuracy.gsm8k"]
    low, high = accuracy.interval or (0.0, 0.0)

    assert (high - low) / 2 == pytest.approx(1.96 * (0.4784 * 0.5216 / 1319) ** 0.5, rel=0.01)


def test_full_fine_tuning_has_no_adapter() -> None:
    assert read("peft", "peft-full.json").label == "bf16"


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        ("canceled", "CUDA out of memory. Tried to allocate 2 GiB", "oom"),
        ("failed", "KeyError: 'x'", "failed"),
    ],
)
def test_pefts_other_endings_are_findings(status: str, error: str, expected: str) -> None:
    content = json.loads((EXAMPLES / "peft-lora.json").read_text())
    content["train_info"]["status"] = status
    content["run_info"]["error_msg"] = error
    (found,) = exchange.reader("peft")(content, "s")

    assert (found.status, found.reason, found.measurements) == (expected, error, {})


def test_optimum_benchmarks_throughput_is_put_right_and_the_result_says_so() -> None:
    found = read("optimum-benchmark", "optimum-benchmark.json")

    # The trainer's own clock said 7.78 for the whole run; the file says 116.
    assert found.value("tokens_per_second") == pytest.approx(7.7637 * 128, rel=1e-4)
    assert "says 116.5 samples/s; 60 samples in 7.728 s are 7.764" in found.warnings[0]
    assert found.value("peak_process_bytes") == 740184064
    assert len(found.measurements["step_seconds"].samples) == 15


def test_a_report_from_a_gpu_has_the_counters_of_its_allocator() -> None:
    content = json.loads((EXAMPLES / "optimum-benchmark.json").read_text())
    content["config"]["backend"] |= {
        "torch_dtype": "bfloat16",
        "quantization_scheme": "BNB",
        "peft_type": "LORA",
        "peft_config": {"r": 8},
    }
    content["config"]["environment"]["gpu"] = ["NVIDIA H100 80GB HBM3"]
    content["report"]["train"]["memory"] |= {
        "max_allocated": 1000.5,
        "max_reserved": 2000.0,
        "max_process_vram": 3000.0,
    }
    (found,) = exchange.reader("optimum-benchmark")(content, "s")

    assert found.label == "bf16 + bnb + lora r8"
    assert found.value("peak_allocated_bytes") == 1000500000
    assert found.value("peak_process_bytes") == 3000000000
    assert found.environment.hardware["gpus"] == [{"name": "NVIDIA H100 80GB HBM3"}]


def test_ranks_add_their_throughput_and_a_sum_of_memory_is_no_peak() -> None:
    content = json.loads((EXAMPLES / "optimum-benchmark.json").read_text())
    one = read("optimum-benchmark", "optimum-benchmark.json")
    content["config"]["launcher"] = {"name": "torchrun", "nproc_per_node": 2}
    latency = content["report"]["train"]["latency"]
    latency["values"] = latency["values"] * 2
    (found,) = exchange.reader("optimum-benchmark")(content, "s")

    assert found.value("tokens_per_second") == pytest.approx(
        2 * (one.value("tokens_per_second") or 0)
    )
    assert found.value("step_seconds") == one.value("step_seconds")
    assert "120 samples in 7.728 s are 15.53" in found.warnings[0]
    assert "a sum over 2 devices, is left out" in found.warnings[1]
    assert not any(name.startswith("peak") for name in found.measurements)


def test_a_report_on_inference_is_refused() -> None:
    content = json.loads((EXAMPLES / "optimum-benchmark.json").read_text())
    content["config"]["scenario"]["name"] = "inference"

    with pytest.raises(ValueError, match="reports on inference"):
        exchange.reader("optimum-benchmark")(content, "s")


def test_imports_become_a_run_and_equal_points_repeats(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [EXAMPLES / "peft-lora.json", EXAMPLES / "peft-full.json", EXAMPLES / "peft-lora.json"]
    assert ask("import", *files, "--from", "peft", "--format", "json") == 0

    printed = json.loads(capsys.readouterr().out)
    assert [each["repeat"] for each in printed["results"]] == [0, 0, 1]
    assert store.load(Path(printed["run"])).header["suite"] == "imported-peft"
    assert len(frame(store.load(Path(printed["run"])).results)) > 3


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        ("optimum-benchmark", "peft-lora.json", "it has no 'config'"),
        ("peft", "optimum-benchmark.json", "it has no 'run_info'"),
        ("pytest-benchmark", "README.md", "Expecting value"),
    ],
)
def test_another_tools_file_is_a_mistake_of_one_line(
    ask: Ask, capsys: pytest.CaptureFixture[str], source: str, name: str, said: str
) -> None:
    assert ask("import", EXAMPLES / name, "--from", source) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not Path("results").exists()


# pytest-benchmark, both ways.


@pytest.mark.slow
def test_pytest_benchmark_compares_what_is_exported(run: Run, tmp_path: Path) -> None:
    exchange.writer("pytest-benchmark")([run], tmp_path / "0001_ours.json")
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", "0001_ours.json", "--csv=out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(tmp_path / "out.csv")
    assert len(rows) == 63
    point = run.results[0].measurements["step_seconds"]
    assert {"quickstart-full::fp32"} <= {row["name"] for row in rows}
    assert len(point.samples) == next(
        int(float(row["rounds"])) for row in rows if row["name"] == "quickstart-full::fp32"
    )


def test_what_is_exported_to_pytest_benchmark_is_read_back(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "ours.json"
    exchange.writer("pytest-benchmark")([run], file)
    found = exchange.reader("pytest-benchmark")(json.loads(file.read_text()), "s")

    measured = [result for result in run.results if result.kind == "measured"]
    assert len(found) == len(measured) == 63
    before, after = run.results[0], found[0]
    assert after.value("peak_tensor_bytes") == before.value("peak_tensor_bytes")
    assert after.measurements["benchmark_seconds"].samples == (
        before.measurements["step_seconds"].samples
    )
    assert len({each.trial for each in found}) == len(found)


def test_statistics_are_pytest_benchmarks_own(run: Run, tmp_path: Path) -> None:
    from pytest_benchmark.stats import Stats

    file = tmp_path / "ours.json"
    exchange.writer("pytest-benchmark")([run], file)
    ours = json.loads(file.read_text())["benchmarks"][0]["stats"]
    theirs: Any = Stats
    kept = theirs()
    for value in run.results[0].measurements["step_seconds"].samples:
        kept.update(value)
    expected = kept.as_dict()

    assert ours.keys() - {"data", "iterations"} == expected.keys()
    for name in ("min", "max", "mean", "stddev", "median", "total", "ops"):
        assert ours[name] == pytest.approx(expected[name])


@pytest.mark.slow
def test_benchmarks_of_the_harness_itself_are_held_to_a_baseline(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    """As pytest-benchmark writes them: imported, checked, and exported for its `compare`."""
    own = Path(__file__).parent / "benchmarks" / "test_light_side.py"
    quick = ("--benchmark-only", "--benchmark-min-rounds=5", "--benchmark-max-time=0.1")
    command = [sys.executable, "-m", "pytest", str(own), *quick, "--benchmark-json=b.json"]
    # A worker of xdist tells its children so, in whom benchmarks would be off.
    alone = {name: each for name, each in os.environ.items() if "XDIST" not in name}
    subprocess.run([*command, "-p", "no:cacheprovider"], check=True, capture_output=True, env=alone)
    content = json.loads(Path("b.json").read_text())
    slowed = content["benchmarks"][0]
    slowed["stats"]["data"] = [2 * value for value in slowed["stats"]["data"]]
    Path("slow.json").write_text(json.dumps(content))

    assert ask("import", "b.json", "--from", "pytest-benchmark") == 0
    assert ask("baseline", "set", "latest", "-o", "base.json", "--allow-flagged") == 0
    assert ask("check", "latest", "--baseline", "base.json") == 0
    assert ask("import", "slow.json", "--from", "pytest-benchmark") == 0
    capsys.readouterr()
    assert ask("check", "latest", "--baseline", "base.json") == 1
    said = capsys.readouterr().out
    assert f"regressed:\n  {slowed['fullname']}\n" in said
    assert "(+100 %)" in said

    assert ask("export", "latest", "--to", "pytest-benchmark", "-o", "again.json") == 0
    again = json.loads(Path("again.json").read_text())["benchmarks"]
    assert [each["stats"]["data"] for each in again] == [
        each["stats"]["data"] for each in content["benchmarks"]
    ]


# Tables and trackers.


def test_csv_has_a_row_per_measurement(run: Run, ask: Ask) -> None:
    assert ask("export", QUICKSTART, "--to", "csv", "-o", "out.csv") == 0

    rows = rows_of(Path("out.csv"))
    peak = next(row for row in rows if row["measurement"] == "peak_tensor_bytes")
    assert len(rows) == sum(len(result.measurements) for result in run.results)
    assert peak["value"] == str(run.results[0].measurements["peak_tensor_bytes"].value)


def test_parquet_holds_what_csv_holds(run: Run, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    exchange.writer("parquet")([run], tmp_path / "out.parquet")
    table = pandas.read_parquet(tmp_path / "out.parquet")

    assert len(table) == sum(len(result.measurements) for result in run.results)
    assert table["value"].dtype == "float64"


def test_otava_gets_a_series_for_every_point(run: Run, ask: Ask) -> None:
    assert ask("export", QUICKSTART, "--to", "otava", "-o", "otava") == 0

    files = sorted(Path("otava").glob("*.csv"))
    config = Path("otava/otava.yaml").read_text()
    assert len(files) == 21
    assert config.count("type: csv") == 21
    assert "accuracy_facts: {column: accuracy_facts, direction: 1}" in config
    assert "step_seconds: {column: step_seconds, direction: -1}" in config
    rows = rows_of(files[0])
    assert [row["commit"] for row in rows] == [run.results[0].environment.variables["git_commit"]]


class Client:
    """Stands for MLflow's: keeps what it is told."""

    def __init__(self, tracking_uri: str) -> None:
        self.uri = tracking_uri
        self.runs: list[dict[str, Any]] = []
        clients.append(self)

    def get_experiment_by_name(self, name: str) -> None: ...

    def create_experiment(self, name: str) -> str:
        return "1"

    def create_run(self, experiment: str, run_name: str, tags: Any = None) -> Any:
        told = {"name": run_name, "tags": tags or {}, "params": {}, "metrics": {}}
        self.runs.append(told)
        return SimpleNamespace(info=SimpleNamespace(run_id=str(len(self.runs) - 1)))

    def log_param(self, run: str, name: str, value: str) -> None:
        self.runs[int(run)]["params"][name] = value

    def log_metric(self, run: str, name: str, value: float, step: int = 0) -> None:
        self.runs[int(run)]["metrics"][name] = value

    def set_terminated(self, run: str, status: str = "FINISHED") -> None:
        self.runs[int(run)]["status"] = status


clients: list[Client] = []


def test_mlflow_gets_a_nested_run_for_every_result(
    run: Run, ask: Ask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("mlflow")
    module.MlflowClient = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    assert ask("export", QUICKSTART, "--to", "mlflow", "-o", "m.db") == 0

    parent, *children = clients[-1].runs
    assert clients[-1].uri == f"sqlite:///{Path('m.db').resolve()}"
    assert parent["name"] == "example"
    assert len(children) == len(run.results)
    assert {each["tags"]["mlflow.parentRunId"] for each in children} == {"0"}
    assert children[0]["params"]["budget.steps"] == "120"
    assert children[0]["metrics"]["peak_tensor_bytes"] == 49405476
    assert f"{len(run.results)} runs under example" in capsys.readouterr().out


def test_wandb_gets_a_run_for_every_result(
    run: Run, ask: Ask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[dict[str, Any]] = []
    ended: list[int] = []

    def init(**told: Any) -> Any:
        begun.append(told)
        told["found"] = {}
        return SimpleNamespace(
            summary=told["found"], finish=lambda exit_code: ended.append(exit_code)
        )

    module: Any = ModuleType("wandb")
    module.init, module.Settings = init, dict
    module.teardown = lambda: ended.append(STOPPED)
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert ask("export", QUICKSTART, "--to", "wandb", "-o", "mine") == 0

    # Only then is everything on disk.
    assert ended.pop() == STOPPED
    assert len(begun) == len(run.results) == ended.count(0)
    assert {(each["project"], each["group"]) for each in begun} == {("mine", "example")}
    assert begun[0]["config"]["budget.steps"] == 120
    assert begun[0]["found"]["peak_tensor_bytes"] == 49405476
    assert "the project mine" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_names_its_extra(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    monkeypatch.setitem(sys.modules, form, None)

    assert ask("export", QUICKSTART, "--to", form, "-o", "x") == 2
    assert f"pip install 'tradebench[{form}]'" in capsys.readouterr().err


@pytest.fixture
def two(run: Run) -> Run:
    return replace(run, results=run.results[:2])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own libraries
def test_mlflows_own_client_reads_what_its_store_was_given(two: Run, tmp_path: Path) -> None:
    """With the real library, where it is installed; tests/test_trackers_beside.py installs it."""
    mlflow = pytest.importorskip("mlflow")
    (told,) = exchange.writer("mlflow")([two], tmp_path / "m.db")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'm.db'}")
    experiment = client.get_experiment_by_name("tradebench quickstart-full")
    found = client.search_runs([experiment.experiment_id])
    (parent,) = (each for each in found if "mlflow.parentRunId" not in each.data.tags)
    children = {each.info.run_name: each for each in found if each is not parent}

    assert told == "2 runs under example in the experiment 'tradebench quickstart-full'"
    assert parent.info.run_name == "example"
    assert children.keys() == {result.label for result in two.results}
    for result in two.results:
        child = children[result.label]
        steps = client.get_metric_history(child.info.run_id, "step_seconds.sample")
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["trial"] == result.trial
        assert child.data.params["budget.steps"] == "120"
        assert child.info.status == "FINISHED"
        assert {name: child.data.metrics[name] for name in result.measurements} == {
            name: each.value for name, each in result.measurements.items()
        }
        assert tuple(each.value for each in sorted(steps, key=lambda each: each.step)) == (
            result.measurements["step_seconds"].samples
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_keeps_a_run_for_every_result_until_it_is_synced(
    two: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same of Weights & Biases; its files hold names and values as text."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (told,) = exchange.writer("wandb")([two], tmp_path / "store")
    files = (tmp_path / "store" / "wandb").glob("offline-run-*/*.wandb")
    kept = [file.read_bytes() for file in files]

    assert told == "2 runs of the group example in the project store"
    assert len(kept) == 2
    for result in two.results:
        (content,) = (each for each in kept if f'"{result.label}"'.encode() in each)
        for name, each in result.measurements.items():
            assert name.encode() in content
            assert str(each.value).encode() in content
