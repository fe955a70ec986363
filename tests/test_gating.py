"""The gate as users call it: from run directories to an exit code, in this process."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tradebench import cli, store
from tradebench.commands import gating, header, repetition, turns
from tradebench.pytest_plugin import Gate
from tradebench.regression import baseline as baselines
from tradebench.regression import summary
from tradebench.regression.gate import judge
from tradebench.regression.sample import of_runs
from tradebench.result import Result
from tradebench.runner.observer import Summary
from tradebench.runner.options import Options
from tradebench.runner.refusal import refuse
from tradebench.trial import Trial

pytest_plugins = ["pytester"]

ENVIRONMENT: Mapping[str, Any] = {
    "software": {"torch": "2.13.0"},
    "hardware": {"gpus": [], "cpu": "A", "machine": "x86_64", "usable_cpus": 2},
    "code": {"program": "p", "tradebench": "0.1.0"},
    "variables": {"OMP_NUM_THREADS": "1"},
}
STEPS: Mapping[str, float] = {"bf16": 0.1, "nf4": 0.2}
ITEMS = 200
Make = Callable[..., str]
Ask = Callable[..., int]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs a command and gives its exit code."""

    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["tradebench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return call


def measurement(value: float, unit: str, better: str = "less") -> dict[str, Any]:
    return {"value": value, "unit": unit, "better": better}


def write_run(
    seed: int,
    *,
    slower: float = 1.0,
    memory: float = 1.0,
    lost: int = 0,
    noise: float = 0.01,
    status: str = "ok",
    environment: Mapping[str, Any] = ENVIRONMENT,
    kind: str = "measured",
    into: Path = Path("results"),
    points: Mapping[str, float] = STEPS,
) -> str:
    """A run of two points, whose second one has what was asked for."""
    drawn = random.Random(seed)
    directory = store.create_run(into, "mine", {"question": "?", "suite_text": ""})
    with store.Appender(directory / "trials.local.jsonl") as file:
        for label, seconds in points.items():
            planted = label == "nf4"
            factor, growth, wrong = (slower, memory, lost) if planted else (1.0, 1.0, 0)
            step = seconds * factor * drawn.gauss(1, noise)
            items = f"items/{label}.0.after.jsonl.gz"
            right = [float(n >= 20 + wrong) for n in range(ITEMS)]
            with gzip.open(directory / items, "wt") as rows:
                for number, value in enumerate(right):
                    item = {
                        "task": "facts",
                        "doc_id": number,
                        "doc_hash": "d",
                        "target_hash": "t",
                        "metrics": {"acc": value},
                        "nll": 1.0 + number / ITEMS + (0.5 if planted and lost else 0.0),
                    }
                    rows.write(json.dumps(item) + "\n")
            ended = status if planted else "ok"
            result = Result.model_validate(
                {
                    "kind": kind,
                    "suite": "mine",
                    "trial": f"{label:0<12}",
                    "label": label,
                    "model": {"name": "/home/someone/models/tiny", "revision": None},
                    "budget": {"steps": 20, "data": {"file": "/data/private/mine.jsonl"}},
                    "evaluate": {"tasks": ["facts"]},
                    "settings": {"precision": {"method": "bf16"}},
                    "status": ended,
                    "reason": None if ended == "ok" else "1 GiB was asked for",
                    "measurements": {}
                    if ended != "ok"
                    else {
                        "step_seconds": {
                            **measurement(step, "s"),
                            "samples": [step * drawn.gauss(1, 0.05) for _ in range(101)],
                        },
                        "peak_tensor_bytes": measurement(int(1e9 * growth), "B"),
                        "peak_activations_bytes": measurement(int(1e9 * growth - 6e8), "B"),
                        "peak_weights_bytes": measurement(int(6e8), "B"),
                        "accuracy.facts": measurement(sum(right) / ITEMS, "1", "more"),
                    },
                    "artifacts": {"items_after": items},
                    "environment": environment,
                }
            )
            file.append(result.to_json())
    return str(directory)


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five runs of unchanged code and their baseline."""
    folder = tmp_path_factory.mktemp("five")
    runs = [write_run(seed, into=folder / "results") for seed in range(5)]
    made = gating.make_baseline(
        [store.load(Path(run)) for run in runs],
        kinds=None,
        policy_file=None,
        reason="the first one",
        allow_flagged=False,
    )
    baselines.save(made, folder / "b.json")
    return folder


@pytest.fixture
def baseline(five: Path, tmp_path: Path) -> Path:
    """The baseline of five runs of unchanged code, with the runs beside it."""
    shutil.copytree(five, tmp_path, dirs_exist_ok=True)
    return Path("b.json")


# What a team sees.


@pytest.mark.parametrize(
    ("planted", "code", "said"),
    [
        ({}, 0, "no regression: 6 ok"),
        ({"slower": 1.2}, 1, "Step time"),
        ({"memory": 1.2}, 1, "activations +191 MiB"),
        ({"lost": 20}, 1, "paired over 200 items, 20 lost and 0 won"),
        ({"status": "oom"}, 1, "it was ok; now out of memory: 1 GiB was asked for"),
    ],
)
def test_a_check_is_green_on_no_change_and_red_with_its_reason_on_one_screen(
    ask: Ask,
    baseline: Path,
    capsys: pytest.CaptureFixture[str],
    fits_a_screen: Callable[[str], bool],
    planted: Mapping[str, Any],
    code: int,
    said: str,
) -> None:
    assert ask("check", write_run(9, **planted), "--baseline", baseline) == code

    text = capsys.readouterr().out
    assert said in " ".join(text.split())
    assert fits_a_screen(text)
    assert ("regressed:\n  nf4\n" in text) == (code == 1)


def test_one_screen_says_what_how_sure_why_and_what_to_do(
    ask: Ask,
    baseline: Path,
    capsys: pytest.CaptureFixture[str],
    fits_a_screen: Callable[[str], bool],
) -> None:
    """With more possible causes than are listed."""
    newer = {**ENVIRONMENT, "software": {f"package{n}": "1.0.0" for n in range(20)}}
    run = write_run(9, slower=1.2, environment=newer)
    assert ask("check", run, "--baseline", baseline) == 1

    text = capsys.readouterr().out
    said = " ".join(text.split())
    assert fits_a_screen(text)
    for part in (
        r"regressed: nf4 Step time: \d+\.\d ms -> \d+\.\d ms \(\+\d\d\.\d %\)",
        r"margin 5\.00 %; found from \d\.\d\d % on; 5 baseline runs, their own spread",
        r"also changed: software\.package0: none -> 1\.0\.0; .* and 13 more",
        r"next: run what regressed again, to be sure: check --confirm 1",
    ):
        assert re.search(part, said), (part, said)


@pytest.mark.parametrize(
    ("planted", "confirmations", "advice"),
    [
        ({}, 0, ""),
        ({"slower": 1.2}, 0, "--confirm 1"),
        ({"slower": 1.2}, 1, "baseline set RUN ... --reason WHY"),
        ({"slower": 1.03}, 0, "baseline add RUN"),
        ({"points": {"bf16": 0.1}}, 0, "--allow-missing"),
        (
            {"environment": {**ENVIRONMENT, "hardware": {"gpus": [], "cpu": "B"}}},
            0,
            "make a baseline of runs that are like this one",
        ),
    ],
)
def test_the_next_step_follows_from_what_was_found(
    five: Path, planted: Mapping[str, Any], confirmations: int, advice: str
) -> None:
    held = baselines.load(five / "b.json")
    runs = [store.load(Path(write_run(9 + again, **planted))) for again in range(1 + confirmations)]
    made = judge(held, *of_runs(runs), confirmations=confirmations)

    assert advice in summary.next_step(made)
    assert bool(advice) == bool(summary.next_step(made))
    assert ("Next: " in summary.markdown(made, 0)) == bool(advice)
    assert "next: " not in summary.text(made, 0, baseline=False)


def test_a_noisy_machine_is_inconclusive_and_says_what_it_would_have_found(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = [write_run(seed, noise=0.15) for seed in range(5)]
    assert ask("baseline", "set", *noisy, "-o", "b.json") == 0
    run = write_run(9, slower=1.15, noise=0.15)

    assert ask("check", run, "--baseline", "b.json") == 0
    assert ask("check", run, "--baseline", "b.json", "--strict") == 4
    text = capsys.readouterr().out
    assert "inconclusive:\n  Step time: 1 point, " in text
    assert "found nine times in ten" in text


@pytest.mark.parametrize(
    ("count", "slower", "rule"),
    [
        (1, 1.4, "1 baseline run, a declared noise of 2 %"),
        (3, 1.2, "3 baseline runs, their spread and a declared noise of 2 %"),
        (5, 1.2, "5 baseline runs, their own spread"),
    ],
)
def test_few_baseline_runs_work_and_say_by_which_rule_and_with_what_power(
    ask: Ask, capsys: pytest.CaptureFixture[str], count: int, slower: float, rule: str
) -> None:
    runs = [write_run(seed) for seed in range(count)]
    assert ask("baseline", "set", *runs, "-o", "b.json") == 0
    assert ask("check", write_run(9, slower=slower), "--baseline", "b.json") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"margin 5\.00 %; found from [\d.]+ % on; {re.escape(rule)}", said), said


def test_every_form_says_the_same(
    ask: Ask, baseline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(9, slower=1.2)
    files = ("--junit", "j.xml", "--md", "s.md")
    assert ask("check", run, "--baseline", baseline, "--format", "json", *files) == 1

    printed = json.loads(capsys.readouterr().out)
    suite = ElementTree.parse("j.xml").getroot()[0]
    summary = Path("s.md").read_text()

    assert (printed["schema"], printed["exit_code"]) == ("tradebench.check/1", 1)
    assert printed["outcomes"] == {"ok": 5, "regressed": 1}
    assert (suite.get("tests"), suite.get("failures")) == ("6", "1")
    assert [case.get("classname") for case in suite if case.find("failure") is not None] == ["nf4"]
    assert summary.startswith("### tradebench: regressed: 1 regressed, 5 ok\n")
    assert "<details><summary>5 metrics ok</summary>" in summary


def test_soft_differences_are_listed_as_possible_causes(
    ask: Ask, baseline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = {**ENVIRONMENT, "software": {"torch": "2.14.0"}}
    ask("check", write_run(9, slower=1.2, environment=newer), "--baseline", baseline)

    assert "also changed:\n  software.torch: 2.13.0 -> 2.14.0" in capsys.readouterr().out


def test_another_processor_bars_time_and_nothing_else(
    ask: Ask, baseline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**ENVIRONMENT, "hardware": {**ENVIRONMENT["hardware"], "cpu": "B"}}

    assert ask("check", write_run(9, slower=2, environment=other), "--baseline", baseline) == 0
    assert "Step time: hardware.cpu: A -> B" in capsys.readouterr().out


def test_trials_that_shared_a_processor_bar_time(
    ask: Ask, baseline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {**ENVIRONMENT, "variables": {**ENVIRONMENT["variables"], "jobs": "2"}}

    assert ask("check", write_run(9, slower=2, environment=shared), "--baseline", baseline) == 0
    assert "Step time: variables.jobs: none -> 2" in capsys.readouterr().out


def test_predictions_beside_measurements_are_left_alone(ask: Ask, baseline: Path) -> None:
    run = Path(write_run(9))
    lines = (run / "trials.local.jsonl").read_text().replace('"measured"', '"predicted"')
    (run / "trials.plan.jsonl").write_text(lines.replace("1000000000", "9000000000"))

    assert ask("check", run, "--baseline", baseline) == 0


def test_a_policy_says_what_counts(ask: Ask, baseline: Path) -> None:
    Path("p.toml").write_text('[metrics]\nstep_seconds = {margin = "30%", noise = "2%"}\n')
    Path("q.toml").write_text(
        '[tool.tradebench.check.overrides."precision=bf16"]\nstep_seconds = {gate = false}\n'
    )
    run = write_run(9, slower=1.2)

    assert ask("check", run, "--baseline", baseline, "--policy", "p.toml") == 0
    assert ask("check", run, "--baseline", baseline, "--policy", "q.toml") == 0


# Confirming.


@pytest.mark.parametrize(("again", "code"), [(1.2, 1), (1.0, 0)])
def test_a_hit_is_run_again_and_has_to_come_again(
    ask: Ask, baseline: Path, monkeypatch: pytest.MonkeyPatch, again: float, code: int
) -> None:
    asked: list[str] = []

    def supervise(trials: Any, *, directory: Path, **options: Any) -> Summary:
        asked.extend(trial.label for trial in trials)
        written = Path(write_run(10, slower=again, into=Path("again")))
        (written / "trials.local.jsonl").replace(directory / "trials.local.jsonl")
        (written / "items").rename(directory / "kept")
        return Summary(directory=directory, results=(), started=1, reused=0, interrupted=False)

    monkeypatch.setattr(gating, "supervise", supervise)
    run = Path(write_run(9, slower=1.2))

    assert ask("check", run, "--baseline", baseline, "--confirm", "1") == code
    assert asked == ["bf16"]  # by its settings, which are the same for both points here
    assert len(list((run / "confirm" / "mine").iterdir())) == 1


def test_what_is_run_again_runs_where_and_as_it_ran(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    launcher = (f"{tmp_path}/start", f"--folder={tmp_path}/x", "--nnodes=2")
    given = Options(jobs=2, launcher=launcher, patience=7.0, memory_cap=1, threads=3)
    asked: dict[str, Any] = {}

    def supervise(trials: Any, *, directory: Path, **options: Any) -> Summary:
        asked.update(options)
        (directory / "trials.local.jsonl").touch()
        return Summary(directory=directory, results=(), started=0, reused=0, interrupted=False)

    monkeypatch.setattr(gating, "supervise", supervise)
    run = Path(write_run(9))
    said = json.loads((run / store.HEADER).read_text())
    store.write_json(run / store.HEADER, {**said, "options": header.of_options(given)})
    found = store.load(run)
    gating.run_again(found, [(each.kind, each.trial) for each in found.results], lambda _: None)

    assert asked["options"] == given
    assert str(tmp_path) not in (run / store.HEADER).read_text()
    wide = {"sharding": {"method": "fsdp2", "degree": 512}}
    trial = Trial.from_payload(
        {"model": {"name": "x"}, "budget": {}, "evaluate": {}, "settings": wide}
    )
    assert asked["refuse"](trial) == ()
    assert refuse(trial) != ()


# Baselines.


def test_a_baseline_names_no_person_no_folder_and_no_machine(baseline: Path) -> None:
    text = (
        baseline.read_text() + gzip.decompress(baselines.items_file(baseline).read_bytes()).decode()
    )

    for word in ("someone", "/home", "/data", "private"):
        assert word not in text
    assert '"tiny"' in text


def test_a_baseline_is_the_same_bytes_however_it_came_about(ask: Ask, baseline: Path) -> None:
    runs = sorted(str(path) for path in Path("results/mine").iterdir())
    assert (
        ask("baseline", "set", runs[3], runs[0], "-o", "c.json", "--reason", "the first one") == 0
    )
    assert ask("baseline", "add", runs[4], runs[1], runs[2], "-o", "c.json") == 0

    assert Path("c.json").read_text() == baseline.read_text()
    assert Path("c.json.items.gz").read_bytes() == baselines.items_file(baseline).read_bytes()
    baselines.save(baselines.load(baseline), Path("d.json"))
    assert Path("d.json").read_bytes() == baseline.read_bytes()


def test_pruning_undoes_adding(ask: Ask, baseline: Path) -> None:
    before = baseline.read_bytes(), baselines.items_file(baseline).read_bytes()
    run = write_run(7)
    assert ask("baseline", "add", run, "-o", baseline) == 0
    assert ask("baseline", "prune", baseline, "--drop", Path(run).name) == 0

    assert (baseline.read_bytes(), baselines.items_file(baseline).read_bytes()) == before
    assert ask("baseline", "prune", baseline, "--keep", "2") == 0
    assert len(baselines.load(baseline).sample.runs) == 2


def test_a_review_sees_one_line_per_metric(baseline: Path, ask: Ask) -> None:
    before = baseline.read_text().splitlines()
    one = baselines.load(baseline)
    assert ask("baseline", "add", write_run(7), "-o", baseline) == 0
    after = baseline.read_text().splitlines()
    metrics = sum(len(point.metrics) for point in one.sample.points)

    assert len(after) == len(before) + 1
    # Every metric, the endings of both points, and the comma behind the run before.
    assert sum(line not in before for line in after) <= metrics + 2 + 2


def test_what_is_in_a_baseline_is_shown(
    ask: Ask, baseline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("baseline", "show", baseline) == 0
    text = capsys.readouterr().out
    assert text.startswith("the first one\n5 runs, 1 environment:")
    assert "nf4: peak tensor memory 954 MiB; step time 2" in text
    assert "Step time: " in text
    assert ask("baseline", "show", baseline, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "tradebench.baseline/1"


def test_a_review_sees_what_a_new_baseline_says_otherwise(
    ask: Ask, baseline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask("baseline", "set", write_run(9, memory=1.2), "-o", "new.json")
    capsys.readouterr()
    assert ask("baseline", "diff", baseline, "new.json") == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[:3] for row in rows] == [["| regressed", "nf4", "Peak tensor memory"]]
    assert ask("baseline", "diff", baseline, baseline) == 0
    assert capsys.readouterr().out == "they say the same\n"


def test_points_that_failed_enter_no_baseline_and_oom_does(ask: Ask) -> None:
    assert ask("baseline", "set", write_run(0, status="failed"), "-o", "f.json") == 0
    assert ask("baseline", "set", write_run(0, status="oom"), "-o", "o.json") == 0

    assert [point.label for point in baselines.load(Path("f.json")).sample.points] == ["bf16"]
    assert ask("check", write_run(1, status="oom"), "--baseline", "o.json") == 0
    assert ask("check", write_run(1), "--baseline", "o.json") == 0


# Two runs, and many.


def test_two_runs_are_compared_and_only_fail_on_request(ask: Ask) -> None:
    a, b = write_run(0), write_run(1, memory=1.5)

    assert ask("compare", a, b) == 0
    assert ask("compare", a, b, "--fail") == 1
    assert ask("compare", b, a, "--fail") == 0


def test_two_commits_are_run_in_turn(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", *identity, *words], check=True, capture_output=True)

    git("init", "-q")
    Path("speed").write_text("1.0")
    git("add", "speed")
    git("commit", "-qm", "fast")
    Path("speed").write_text("1.2")
    git("commit", "-qam", "slow")
    order = []

    def run(checkout: Path, root: Path, suite: Path, out: Path) -> None:
        slower = float((checkout / "speed").read_text())
        order.append(slower)
        write_run(len(order), slower=slower * (1 + 0.2 * (len(order) // 3)), into=out)

    monkeypatch.setattr(turns, "_run", run)

    assert ask("compare", "--ab", "HEAD~1", "HEAD", "mine.yaml", "--pairs", "4", "--fail") == 1
    assert order == [1.0, 1.2, 1.2, 1.0, 1.0, 1.2, 1.2, 1.0]
    assert "4 pairs of runs in turn" in capsys.readouterr().out
    assert "worktree" not in subprocess.run(
        ["git", "worktree", "list"], capture_output=True, text=True, check=True
    ).stdout.replace(str(Path.cwd()), "")


@pytest.mark.slow
def test_noise_is_measured_and_a_policy_proposed_that_a_check_takes(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(seed, noise=0.02) for seed in range(8)]
    assert ask("noise", *runs, "-o", "p.toml") == 0

    text = capsys.readouterr().out
    assert "Peak tensor memory: the same in all 8 runs, to the digit" in text
    assert 'step_seconds" = {margin = "10%", noise = "' in Path("p.toml").read_text()
    assert ask("baseline", "set", *runs, "-o", "b.json", "--policy", "p.toml") == 0
    assert ask("check", write_run(20, noise=0.02), "--baseline", "b.json", "--strict") == 0


@pytest.mark.slow
def test_a_history_marks_where_a_level_changed(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(seed, slower=1.0 if seed < 8 else 1.3) for seed in range(16)]
    assert ask("history", "mine", "--format", "json") == 0
    series = json.loads(capsys.readouterr().out)["series"]

    (change,) = series[1]["changes"]
    assert series[0]["changes"] == []
    assert len(series[1]["values"]) == 16
    assert change["after"] / change["before"] == pytest.approx(1.3, abs=0.03)
    assert ask("history") == 0
    assert "advice" in capsys.readouterr().out
    assert runs


# Exit codes and mistakes.


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("check", "RUN", "--baseline", "none.json"), 3, "tradebench baseline set"),
        (("check", "none", "--baseline", "b.json"), 2, "none is not a run"),
        (("check", "RUN", "--baseline", "damaged.json"), 2, "is not readable JSON"),
        (("check", "RUN", "--baseline", "schema.json"), 2, "reads tradebench.baseline/1"),
        (("check", "RUN", "--baseline", "short.json"), 2, "entries for 5 runs"),
        (("check", "RUN", "--baseline", "b.json", "--policy", "none.toml"), 2, "does not exist"),
        (("check", "RUN", "--baseline", "b.json", "--policy", "bad.toml"), 2, "is no amount"),
        (("check", "RUN", "--baseline", "b.json", "--policy", "table.toml"), 2, "'metrics'?"),
        (("check", "RUN", "--baseline", "b.json", "--md", "no/where.md"), 2, "cannot be written"),
        (("compare", "RUN"), 2, "compare takes two runs"),
        (("compare", "--ab", "a", "b"), 2, "two commits and a suite"),
        (("compare", "--ab", "a", "b", "s.yaml"), 2, "--ab: "),
        (("noise", "RUN"), 2, "one run shows no noise"),
        (("history", "--metric", "speed"), 2, "step_seconds"),
        (("history", "other"), 3, "holds no run of other"),
        (("baseline", "set", "RUN", "RUN", "-o", "x.json"), 2, "given twice"),
        (("baseline", "add", "FIRST", "-o", "b.json"), 2, "in the baseline already"),
        (("baseline", "set", "RUN", "-o", "no/where.json"), 2, "is no folder"),
        (("baseline", "set", "RUN", "-o", "x.json", "--kind", "predicted"), 3, "no predicted"),
        (("baseline", "prune", "b.json"), 2, "--keep N"),
        (("baseline", "prune", "b.json", "--drop", "x"), 2, "x is not in the baseline"),
    ],
)
def test_every_mistake_is_one_line_and_its_exit_code(
    ask: Ask,
    baseline: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    first = sorted(map(str, Path("results/mine").iterdir()))[0]
    run = write_run(9)
    Path("damaged.json").write_text("{")
    Path("schema.json").write_text('{"schema": "other/1"}')
    head = json.loads(baseline.read_text())
    head["points"][0]["metrics"]["step_seconds"]["values"].pop()
    Path("short.json").write_text(json.dumps(head))
    Path("bad.toml").write_text('[metrics]\nstep_seconds = {margin = "5 percent"}\n')
    Path("table.toml").write_text("[metric]\n")

    assert ask(*({"RUN": run, "FIRST": first}.get(word, word) for word in words)) == code
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_missing_point_ends_with_3_unless_allowed(ask: Ask, baseline: Path) -> None:
    run = write_run(9, points={"bf16": 0.1})

    assert ask("check", run, "--baseline", baseline) == 3
    assert ask("check", run, "--baseline", baseline, "--allow-missing") == 0


def test_a_run_with_changed_files_enters_a_baseline_only_on_request(ask: Ask) -> None:
    dirty = {**ENVIRONMENT, "variables": {"git_dirty": "true"}}
    run = write_run(0, environment=dirty)

    assert ask("baseline", "set", run, "-o", "b.json") == 2
    assert ask("baseline", "set", run, "-o", "b.json", "--allow-flagged") == 0


def test_damaged_items_are_a_mistake_of_one_line(
    ask: Ask, baseline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baselines.items_file(baseline).write_bytes(b"nothing")

    assert ask("check", write_run(9), "--baseline", baseline) == 2
    assert "holds no per-item outcomes" in capsys.readouterr().err


# The plugin.


def gate(baseline: Path | None, run: str, **options: Any) -> tuple[Gate, dict[str, object]]:
    """What the fixture is once its suite has run, and what it records."""
    told: dict[str, object] = {}
    suite = Path("ci.yaml")
    made = Gate(
        suite=suite,
        baseline=baseline,
        results=Path("results"),
        options=options,
        runs={suite: store.load(Path(run))},
        record=told.__setitem__,
    )
    return made, told


def test_no_change_passes_and_is_told(baseline: Path) -> None:
    made, told = gate(baseline, write_run(9))

    assert made.check().exit_code() == 0
    assert told == {"tradebench": "no regression: 6 ok"}


def test_a_regression_fails_the_test_with_its_reason(baseline: Path) -> None:
    made, _ = gate(baseline, write_run(9, memory=1.2))

    with pytest.raises(pytest.fail.Exception, match="activations \\+191 MiB"):
        made.check()


def test_the_marker_says_how_to_judge(baseline: Path) -> None:
    run = write_run(9, points={"bf16": 0.1})
    with pytest.raises(pytest.fail.Exception, match="missing:\n  nf4"):
        gate(baseline, run)[0].check()

    assert gate(baseline, run, allow_missing=True)[0].check().of("missing")


@pytest.mark.parametrize("named", [None, Path("none.json")])
def test_no_baseline_is_a_skip(named: Path | None) -> None:
    with pytest.raises(pytest.skip.Exception, match="there is no baseline"):
        gate(named, write_run(9))[0].check()


def test_a_damaged_baseline_fails_in_a_sentence(baseline: Path) -> None:
    baseline.write_text("{")

    with pytest.raises(pytest.fail.Exception, match=r"^tradebench: .*is not readable JSON"):
        gate(baseline, write_run(9))[0].check()


def test_the_suite_runs_once(baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = gate(baseline, write_run(9))
    runs = [store.load(Path(write_run(9)))]
    monkeypatch.setattr(repetition, "runs_of", lambda suite, out, **options: [runs.pop()])
    Path("ci.yaml").write_text("# ?\nmodel: reference\ngrid: {}\n")
    made.runs.clear()

    assert made.run() is made.run()


TEST = """
import pytest

@pytest.mark.tradebench(suite="ci.yaml", confirm=1)
def test_training_costs_what_it_did(tradebench):
    assert tradebench.suite.name == "ci.yaml"
    tradebench.check()

@pytest.mark.tradebench(suite="ci.yaml", confirms=1)
def test_with_a_slip(tradebench): ...

def test_without_a_marker(tradebench): ...
"""
CONFTEST = """
from pathlib import Path
from tradebench import store
from tradebench.commands import repetition

repetition.runs_of = lambda *words, **options: [store.load(Path({run!r}))]
"""


@pytest.mark.slow
def test_the_plugin_works_in_a_test_suite_of_somebody_elses(
    five: Path, pytester: pytest.Pytester
) -> None:
    for name in ("b.json", "b.json.items.gz"):
        shutil.copy(five / name, pytester.path / name)
    pytester.makefile(".yaml", ci="# ?\nmodel: reference\ngrid: {}\n")
    pytester.makepyfile(TEST)
    pytester.makeconftest(CONFTEST.format(run=str(Path(write_run(9)).resolve())))
    words = ("-p", "tradebench.pytest_plugin", "--strict-markers", "--junitxml=j.xml")
    done = pytester.runpytest_subprocess(*words, "--tradebench-baseline=b.json")

    done.assert_outcomes(passed=1, errors=2)
    done.stdout.fnmatch_lines(["*it has no confirms", "*it needs a suite"])
    assert 'name="tradebench" value="no regression: 6 ok"' in (pytester.path / "j.xml").read_text()


def test_the_installed_package_names_the_plugin_as_its_module() -> None:
    """Otherwise `-p` and the entry point would register it twice."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

    assert project["entry-points"]["pytest11"] == {
        "tradebench.pytest_plugin": "tradebench.pytest_plugin"
    }
