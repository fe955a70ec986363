"""What lies between the command line and the predictions, in this process and without torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tradebench import cli, report, store
from tradebench.commands import planning, sweep
from tradebench.devices import GIB, find
from tradebench.errors import UserError
from tradebench.plan import plan, validate
from tradebench.plan.alternatives import LARGEST, MOST, alternatives
from tradebench.plan.fit import fit
from tradebench.published import expressed, results
from tradebench.result import Measurement, Result
from tradebench.suite import Suite
from tradebench.target import Target
from tradebench.trial import Trial

H100 = find("h100-80gb")
CALIBRATION: Mapping[str, Any] = {
    "schema": "tradebench.calibration/1",
    "device": H100.name,
    "kernel_seconds": 1e-6,
    "call_seconds": 1e-5,
}
OVERHEADS: Mapping[str, Any] = {
    "schema": "tradebench.overheads/1",
    "device": H100.name,
    "context": [500 * 2**20],
    "code": [200 * 2**20],
}
SUITE = """\
# What does a plan of the reference model say?
model: reference
budget: {steps: 36, warmup: 1, data: random}
repeats: 3
design: list
grid:
  - {precision: bf16}
  - {quantization: nf4}
  - {checkpointing: {method: full}}
"""
Answer = Mapping[str, Any]
Ask = Callable[..., int]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves reports out, which take seconds to draw."""
    monkeypatch.setattr(report, "write", lambda run, out, beside, **options: [])


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs a command and gives its exit code."""
    (tmp_path / "suite.yaml").write_text(SUITE)

    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["tradebench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return call


def needing(gib: float, *, seconds: float = 100.0) -> Answer:
    return {
        "status": "ok",
        "measurements": {
            "peak_process_bytes": {"value": int(gib * GIB), "unit": "B"},
            "peak_tensor_bytes": {"value": int(gib * GIB), "unit": "B"},
            "step_seconds": {"value": seconds, "unit": "s"},
        },
    }


FAILED: Answer = {"status": "failed", "reason": "It could not be."}


class Pool:
    """Stands for the pool: answers by label, and everything else with `other`."""

    def __init__(self, other: Answer, **answers: Answer) -> None:
        self.answers, self.other = answers, other
        self.asked: list[Trial] = []
        self.targets: set[Target] = set()

    def __call__(
        self, trials: Iterable[Trial], target: Target, **options: Any
    ) -> Iterator[tuple[Trial, Answer]]:
        self.targets.add(target)
        for trial in trials:
            self.asked.append(trial)
            yield trial, self.answers.get(trial.label, self.other)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pool]:
    def put(other: Answer, **answers: Answer) -> Pool:
        made = Pool(other, **answers)
        monkeypatch.setattr(plan, "predict", made)
        return made

    return put


# Files of a device.


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "holds no calibration: the file: Invalid JSON"),
        ("\xff", "holds no calibration: the file: Invalid JSON"),
        ("[1]", "holds no calibration: the file: Input should be an object"),
        ("{}", "holds no calibration: device: Field required"),
        (json.dumps(OVERHEADS), "is 'tradebench.overheads/1', not 'tradebench.calibration/1'"),
        (
            json.dumps({**CALIBRATION, "device": "NVIDIA L4"}),
            "was measured on NVIDIA L4, and the plan is for h100-80gb: name that device with --gpu",
        ),
    ],
)
def test_a_calibration_that_is_none_of_the_devices_is_refused_before_anything_is_predicted(
    content: str,
    sentence: str,
    ask: Ask,
    pool: Callable[..., Pool],
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = pool(needing(1))
    Path("file.json").write_bytes(content.encode("latin-1"))

    assert ask("plan", "suite.yaml", "--calibration", "file.json") == 2

    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"tradebench: file.json {sentence}")
    assert asked.asked == []
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({**OVERHEADS, "context": []}, "holds no overheads: context: Tuple should have"),
        (CALIBRATION, "is 'tradebench.calibration/1', not 'tradebench.overheads/1'"),
        ({**OVERHEADS, "device": "NVIDIA H200"}, "was measured on NVIDIA H200, and the plan is"),
    ],
)
def test_overheads_of_something_else_are_refused(content: Mapping[str, Any], sentence: str) -> None:
    file = Path("file.json")
    file.write_text(json.dumps(content))

    with pytest.raises(UserError, match=sentence):
        planning.aim("H100-80GB", None, file)


@pytest.mark.parametrize("option", ["--calibration", "--overheads"])
def test_a_file_of_a_device_needs_the_device(
    option: str, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file.json").write_text("{}")

    assert ask("plan", "suite.yaml", "--gpu", "none", option, "file.json") == 2
    assert f"{option} needs the device that was measured" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_readings_are_part_of_what_is_asked_and_are_said(
    ask: Ask, pool: Callable[..., Pool], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = pool(needing(1))
    Path("calibration.json").write_text(json.dumps(CALIBRATION))
    Path("overheads.json").write_text(json.dumps(OVERHEADS))
    files = ("--calibration", "calibration.json", "--overheads", "overheads.json")

    assert ask("plan", "suite.yaml", *files, "--format", "markdown") == 0
    assert asked.targets == {
        Target(device=H100.id, calibration="calibration.json", overheads="overheads.json")
    }
    assert "beside its tensors was measured on this device." in capsys.readouterr().out
    for result in store.load(store.find(Path("results"), "latest")).results:
        if result.status == "ok":
            assert result.environment.hardware == {
                "predicted_for": H100.name,
                "speed": "measured on this device",
                "overheads": "measured on this device",
            }


# Exit codes and prices.


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("words", "answer", "code"),
    [
        ([], needing(1), 0),
        ([], FAILED, 5),
        (["--require-fit"], FAILED, 1),
        (["--require-fit"], needing(1), 0),
        (["--require-fit"], needing(200), 1),
        ([], needing(200), 0),
        (["--budget", "0.1"], needing(1), 1),
    ],
)
def test_a_plan_ends_as_what_it_found(
    words: list[str], answer: Answer, code: int, ask: Ask, pool: Callable[..., Pool]
) -> None:
    pool(needing(1), bf16=answer)

    assert ask("plan", "suite.yaml", *words) == code


@pytest.mark.usefixtures("undrawn")
def test_every_repeat_is_paid_for(
    ask: Ask, pool: Callable[..., Pool], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two legal points of 36 steps of 100 seconds, three times each, are six hours."""
    pool(needing(1))

    assert ask("plan", "suite.yaml", "--format", "markdown", "--budget", "6") == 0
    assert (
        "Training every point that may fit 3 times, as the suite repeats it: 6.00 (6.00) GPU-hours"
    ) in capsys.readouterr().out
    assert ask("plan", "suite.yaml", "--budget", "5.9") == 1


# Advice beyond the suite.


def planned(settings: Mapping[str, Any], gib: float, seconds: float = 1.0) -> Result:
    trial = Trial.from_payload(
        {"model": {"name": "reference"}, "budget": {}, "evaluate": {}, "settings": settings}
    )
    measurements = {
        name: Measurement.model_validate(each)
        for name, each in needing(gib, seconds=seconds)["measurements"].items()
    }
    return Result(
        kind="predicted",
        suite="s",
        trial=trial.id,
        label=trial.label,
        **trial.payload(),
        status="ok",
        measurements=measurements,
        fit=fit(measurements, H100),
    )


def tried(points: Sequence[Result]) -> list[str]:
    return [trial.label for trial in alternatives(points, lambda trial: bool(trial.conflicts()))]


BF16: Mapping[str, Any] = {"precision": {"method": "bf16"}}
LORA: Mapping[str, Any] = {"adapters": {"method": "lora", "rank": 16}}
NF4: Mapping[str, Any] = {"quantization": {"method": "nf4"}}


def test_each_legal_change_is_tried_by_itself() -> None:
    assert tried([planned(BF16, 200)]) == [
        "bf16 + checkpointing 1",
        "bf16 + chunked tokens 256",
        "bf16 + lora r16",
        "bf16 + fsdp2 x2",
    ]


def test_what_a_point_or_the_suite_has_is_not_tried_again() -> None:
    eight = {"sharding": {"method": "fsdp2", "degree": LARGEST}}
    points = [
        planned({**LORA, **NF4, **eight}, 200),
        planned({**LORA, **NF4, **eight, "loss": {"method": "chunked"}}, 100),
    ]

    assert tried(points) == [
        "nf4 + lora r16 + checkpointing 1 + fsdp2 x8 + chunked tokens 256",
        "nf4 + lora r16 + checkpointing 1 + fsdp2 x8",
    ]


def test_nothing_is_tried_where_a_single_change_within_the_suite_fits() -> None:
    assert tried([planned(BF16, 200), planned({**BF16, **LORA}, 20)]) == []
    assert tried([planned(BF16, 20)]) == []
    assert tried([planned(BF16, 200), planned({**NF4, **LORA}, 20)]) != []


def test_the_points_nearest_to_fitting_are_tried_and_no_more_than_a_few() -> None:
    ranks = range(1, 30)
    found = tried([planned({"adapters": {"method": "lora", "rank": r}}, 300 - r) for r in ranks])

    assert len(found) == MOST
    assert ["lora r29" in label for label in found[:5]] == [True] * 4 + [False]


def test_advice_from_beyond_the_suite_says_so(
    pool: Callable[..., Pool],
) -> None:
    suite = one_point()
    asked = pool(needing(200), **{"bf16 + fsdp2 x2": needing(60)})
    made = plan.make(suite.name, suite.trials(), Target(device=H100.id), H100)
    (result,) = made.results

    assert result.fit is not None
    assert result.fit.advice == (
        "fsdp2 x2 saves 140 GiB: fits with 19 GiB to spare (not in the suite)"
    )
    assert len(asked.asked) == 5


def test_advice_stays_within_the_gpus_that_there_are(pool: Callable[..., Pool]) -> None:
    suite = one_point()
    pool(needing(200), **{"bf16 + fsdp2 x2": needing(60)})
    (result,) = plan.make("s", suite.trials(), Target(device=H100.id), H100, gpus=1).results

    assert result.fit is not None
    assert result.fit.advice is None


def one_point() -> Suite:
    file = Path("one.yaml")
    file.write_text("model: reference\nbudget: {data: random}\ngrid: {precision: bf16}\n")
    return Suite.load(file)


# What others have published.


@pytest.mark.slow
def test_published_and_predicted_rows_are_kept_and_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ask: Ask
) -> None:
    read = [row for row in expressed() if row.reading.measurement == "peak_reserved_bytes"]
    rows = [row for row in read if row.trial.model == read[0].trial.model][:3]
    for module in (validate, planning):
        monkeypatch.setattr(module, "expressed", lambda: rows)
    keep = {row.row.id for row in rows}
    figures = tuple(each for each in results() if each.model_dump()["row"] in keep)
    monkeypatch.setattr(planning, "results", lambda: figures)
    monkeypatch.setattr(validate, "figures", lambda: figures)
    first = {"status": "ok", "measurements": {"peak_reserved_bytes": {"value": 7, "unit": "B"}}}
    answers = iter([first, *[FAILED] * len(rows)])
    monkeypatch.setattr(
        validate, "predict", lambda trials, *_, **__: [(each, next(answers)) for each in trials]
    )

    assert ask("plan", "--validate") == 0

    told = capsys.readouterr()
    directory = store.find(Path("results"), "latest")
    found = store.load(directory)
    assert told.out.startswith("# Predictions against published measurements")
    assert str(directory / "report" / "index.html") in told.err
    assert directory.parent.name == "validation"
    assert found.problems == ()
    by_kind = {
        kind: [(each.trial, each.repeat) for each in found.results if each.kind == kind]
        for kind in ("published", "predicted")
    }
    assert by_kind["published"] == by_kind["predicted"]
    assert len(by_kind["published"]) == len(rows)
    assert {each.status for each in found.results if each.kind == "predicted"} == {"ok", "failed"}
    page = (directory / "report" / "index.html").read_text()
    assert "published for" in page
    assert "predicted for" in page
    assert ask("report", directory, "--format", "markdown") == 0


# Predictions beside a run.


def test_what_was_measured_on_a_cpu_is_predicted_and_nothing_else(
    pool: Callable[..., Pool],
) -> None:
    suite = suite_of(3)
    directory = measured(suite, "ok", "failed", "ok")
    asked = pool(needing(1), bf16=FAILED)
    notes: list[str] = []
    sweep._rehearse(suite, directory, notes.append)
    predicted = [each for each in store.load(directory).results if each.kind == "predicted"]

    assert [trial.label for trial in asked.asked] == ["bf16", "checkpointing 1"]
    assert asked.targets == {Target()}
    assert [each.label for each in predicted] == ["checkpointing 1"]
    assert notes == ["bf16 is not predicted: It could not be."]


@pytest.mark.parametrize("error", [RuntimeError("It broke."), KeyboardInterrupt()])
def test_a_run_is_not_harmed_by_a_prediction_that_breaks(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(1)
    directory = measured(suite, "ok")

    def broken(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(plan, "predict", broken)
    notes: list[str] = []
    before = store.load(directory)
    sweep._rehearse(suite, directory, notes.append)

    assert len(notes) == 1
    assert "nothing is predicted" in notes[0]
    assert store.load(directory) == before


def suite_of(points: int) -> Suite:
    file = Path("few.yaml")
    grid = ["{precision: bf16}", "{loss: {method: chunked}}", "{checkpointing: {method: full}}"][
        :points
    ]
    lines = "".join(f"  - {each}\n" for each in grid)
    file.write_text(f"model: reference\nbudget: {{data: random}}\ndesign: list\ngrid:\n{lines}")
    return Suite.load(file)


def measured(suite: Suite, *statuses: Any) -> Path:
    directory = store.create_run(Path("results"), suite.name, {})
    with store.Appender(directory / "trials.local.jsonl") as kept:
        for trial, status in zip(suite.trials(), statuses, strict=True):
            result = Result(
                suite=suite.name,
                trial=trial.id,
                label=trial.label,
                **trial.payload(),
                status=status,
            )
            kept.append(result.to_json())
    return directory
