"""Recommendations: conditions as people write them, the choice against brute force, the words."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from ruamel.yaml import YAML

from tradebench.commands import recommending
from tradebench.errors import NothingToCompareError, UserError
from tradebench.published.accuracies import LABEL, SLOTS, accuracies, spans
from tradebench.published.held import sharded_error
from tradebench.recommend import words
from tradebench.recommend.answer import Answer, Question, answer, suite_text
from tradebench.recommend.candidates import Figure, Job, candidates, together
from tradebench.recommend.requirements import Requirement, parse
from tradebench.report.fronts import groups
from tradebench.result import Environment, Fit, Kind, Measurement, Result, Status
from tradebench.store import Run
from tradebench.suite import Suite
from tradebench.suite.written import one_point
from tradebench.techniques import catalogue
from tradebench.trial import Budget, Evaluate, Model, Trial

GIB = 2**30
REFERENCE = Model(name="reference")
LLAMA = Model(name="meta-llama/Llama-3.3-70B-Instruct", config="llama-3.3-70b")
NAMES = ("peak_tensor_bytes", "step_seconds", "accuracy.sort", "tokens_per_second", "padding_share")
ROOT = Path(__file__).parents[1]

Value = float | tuple[float, float, float]


def trial(model: Model = REFERENCE, rank: int = 4, **slots: Mapping[str, Any]) -> Trial:
    settings = {"adapters": {"method": "lora", "rank": rank}, **slots}
    return Trial(
        model=model,
        budget=Budget(steps=20, sequence=64, data="random" if model is LLAMA else "reference"),
        evaluate=Evaluate(tasks=("mmlu",) if model is LLAMA else ("sort",)),
        techniques=tuple(
            catalogue()[slot][str(fields["method"])].model_validate(fields)
            for slot, fields in settings.items()
        ),
    )


def measurement(name: str, value: Value) -> Measurement:
    low, middle, high = value if isinstance(value, tuple) else (value, value, value)
    unit = "B" if name.partition(".")[0].endswith("_bytes") else "s" if "seconds" in name else "1"
    return Measurement(
        value=middle,
        unit="1/s" if name == "tokens_per_second" else unit,
        better="more" if name.startswith(("accuracy", "tokens_per")) else "less",
        interval=None if low == high else (low, high),
    )


def result(
    of: Trial,
    *,
    kind: Kind = "measured",
    repeat: int = 0,
    status: Status = "ok",
    fit: Fit | None = None,
    hardware: Mapping[str, Any] | None = None,
    **values: Value,
) -> Result:
    names = {name.replace("__", "."): value for name, value in values.items()}
    payload = of.payload()
    return Result(
        kind=kind,
        suite="asked",
        trial=of.id,
        repeat=repeat,
        label=of.label,
        model=payload["model"],
        budget=payload["budget"],
        evaluate=payload["evaluate"],
        settings=payload["settings"],
        status=status,
        reason=None if status == "ok" else "it was too big",
        measurements={name: measurement(name, value) for name, value in names.items()},
        environment=Environment(hardware=dict(hardware or {})),
        fit=fit,
    )


def run_of(*results: Result, **header: Any) -> Run:
    return Run(
        directory=Path("results/asked/run"),
        header={"suite": "asked", "objectives": [], "limits": {}, **header},
        results=results,
        attempts=results,
        problems=(),
    )


def asked(run: Run, *under: str, **question: Any) -> Answer:
    return answer(run, Question(under=under, **question))


def best(made: Answer) -> str | None:
    return None if made.choice.best is None else made.choice.best.candidate.name


def shown(made: Answer, width: int) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(words.draw(made, width))
    return captured.get()


# Conditions.


@pytest.mark.parametrize(
    ("text", "name", "sign", "bound"),
    [
        ("peak_tensor_bytes<=24GiB", "peak_tensor_bytes", "<=", 24 * GIB),
        ("peak_tensor_bytes ≤ 1.5 GB", "peak_tensor_bytes", "<=", 1.5e9),
        ("step_seconds<300ms", "step_seconds", "<", 0.3),
        ("accuracy.sort>=70%", "accuracy.sort", ">=", 0.7),
        ("accuracy.sort >= 70.5 points", "accuracy.sort", ">=", 0.705),
        ("accuracy.sort>0.7", "accuracy.sort", ">", 0.7),
        ("accuracy.sort>=base-2pt", "accuracy.sort", ">=", 0.78),
        ("accuracy.sort>=base", "accuracy.sort", ">=", 0.8),
        ("step_seconds<=base+20%", "step_seconds", "<=", 0.96),
        ("tokens_per_second>=50k", "tokens_per_second", ">=", 50_000),
        ("padding_share<=5%", "padding_share", "<=", 0.05),
    ],
)
def test_a_condition_is_read_as_people_write_it(
    text: str, name: str, sign: str, bound: float
) -> None:
    (found,) = parse(text, NAMES, lambda _: 0.8)

    assert (name, sign) == (found.name, found.sign)
    assert found.bound == pytest.approx(bound)


def test_conditions_are_separated_by_commas() -> None:
    found = parse("step_seconds<=2s, accuracy.sort>=70%", NAMES, lambda _: None)

    assert [each.name for each in found] == ["step_seconds", "accuracy.sort"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("peak_tensor_byte<=1GiB", "did you mean 'peak_tensor_bytes'?"),
        ("accuracy.srot>=70%", "did you mean 'accuracy.sort'?"),
        ("sort>=70%", "did you mean 'accuracy.sort'?"),
        ("peak_reserved_bytes<=1GiB", "no point has a value for peak_reserved_bytes"),
        ("peak_tensor_bytes<=3s", "'3s' is not a size"),
        ("peak_tensor_bytes=3GiB", "is no condition"),
        ("peak_tensor_bytes<=", "is no condition"),
        ("accuracy.sort>=70", "write 70%"),
        ("accuracy.sort>=many", "is no share"),
        ("step_seconds<=base-1pt", "not counted in points"),
        ("step_seconds<=base*2", "is no bound"),
        ("accuracy.sort>=base", "no point without techniques"),
        ("money<=3", "needs --tokens and --price"),
        ("hours<=3", "needs --tokens"),
        ("", "is no condition"),
    ],
)
def test_a_slip_in_a_condition_is_one_line(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text, NAMES, lambda _: 0.5 if "base-" in text or "base*" in text else None)

    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@given(bound=st.integers(-3, 3), ends=st.tuples(st.integers(-3, 3), st.integers(-3, 3)).map(sorted))
def test_an_interval_keeps_to_a_bound_as_its_points_do(bound: int, ends: list[int]) -> None:
    low, high = ends
    figure = Figure(
        name="x", value=low, low=low, high=high, unit="", better="less", kind="measured"
    )
    inside: dict[str, Callable[[float], bool]] = {
        "<=": lambda value: value <= bound,
        "<": lambda value: value < bound,
        ">=": lambda value: value >= bound,
        ">": lambda value: value > bound,
    }
    for sign, keeps in inside.items():
        kept = {keeps(low), keeps(high)}
        expected = "possibly" if len(kept) == 2 else "yes" if kept == {True} else "no"

        assert expected == Requirement(name="x", sign=sign, bound=bound).judge(figure)  # type: ignore[arg-type]


# The choice.


POINTS = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2)),
    min_size=1,
    max_size=8,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(points=POINTS, bound=st.integers(1, 6))
def test_the_choice_is_the_brute_force_one(points: list[tuple[int, int, int]], bound: int) -> None:
    """Memory m ± w in GiB and a step of t seconds: what certainly fits, before what may."""
    run = run_of(
        *(
            result(
                trial(rank=number + 1),
                kind="predicted",
                peak_process_bytes=((m - w / 2) * GIB, m * GIB, (m + w / 2) * GIB),
                step_seconds=float(t),
            )
            for number, (m, t, w) in enumerate(points)
        )
    )
    sure = [(t, m, n) for n, (m, t, w) in enumerate(points, start=1) if m + w / 2 <= bound]
    maybe = [
        (t, m, n) for n, (m, t, w) in enumerate(points, start=1) if m - w / 2 <= bound < m + w / 2
    ]
    made = asked(run, f"peak_process_bytes<={bound}GiB", minimize="step_seconds")

    if not sure and not maybe:
        short = min(((m - bound) / bound, t, m, n) for n, (m, t, w) in enumerate(points, start=1))
        assert made.met == "no"
        assert made.choice.nearest is not None
        assert made.choice.nearest.distance == pytest.approx(short[0])
        assert made.choice.nearest.candidate.name == f"lora r{short[3]}"
        return
    assert made.met == ("yes" if sure else "possibly")
    assert made.choice.best is not None
    assert made.choice.best.goal.value == min(sure or maybe)[0]
    assert len(made.choice.pool) == len(sure or maybe)
    if sure:
        better = [t for t, _, _ in maybe if t < min(sure)[0]]
        assert [each.goal.value for each in made.choice.maybe] == sorted(better)[:3]


def noisy(rank: int, *accuracy: float, gib: float = 1.0) -> list[Result]:
    return [
        result(
            trial(rank=rank),
            repeat=repeat,
            accuracy__sort=value,
            peak_tensor_bytes=int(gib * GIB),
            step_seconds=1.0,
        )
        for repeat, value in enumerate(accuracy)
    ]


def test_points_within_the_noise_of_the_best_are_named_the_smaller_first() -> None:
    run = run_of(
        *noisy(1, 0.80, 0.84, gib=3),
        *noisy(2, 0.79, 0.83, gib=2),
        *noisy(3, 0.78, 0.83, gib=1),
        *noisy(4, 0.20, 0.22),
    )
    made = asked(run, maximize="accuracy.sort")

    assert best(made) == "lora r1"
    assert [each.candidate.name for each in made.choice.alike] == ["lora r3", "lora r2"]
    assert [each.candidate.name for each in made.choice.runners] == ["lora r4"]
    assert sum(made.choice.chances.values()) == pytest.approx(1, abs=0.01)
    assert "Cannot be told apart from it by accuracy on sort, by their noise" in shown(made, 200)
    assert "the best of them with a probability of" in words.sentence(made)
    assert "measured on the reference model in 2 runs" in words.sentence(made)


def test_an_order_without_any_known_noise_says_so() -> None:
    made = asked(run_of(*noisy(1, 0.8), *noisy(2, 0.7)), maximize="accuracy.sort")

    assert made.choice.chances == {}
    assert "probability" not in words.sentence(made)
    assert any("Nothing is known of the noise" in note for note in made.notes)


def test_a_bound_within_the_interval_is_possibly_kept() -> None:
    edge = (0.9 * GIB, GIB, 1.2 * GIB)
    run = run_of(
        result(trial(rank=1), kind="predicted", peak_process_bytes=edge, step_seconds=1.0),
        result(trial(rank=2), kind="predicted", peak_process_bytes=GIB / 2, step_seconds=2.0),
    )
    made = asked(run, "peak_process_bytes<=1.1GiB", minimize="step_seconds")
    alone = asked(run, "peak_process_bytes<=1.1GiB", "step_seconds<=1.5s")

    assert best(made) == "lora r2"
    assert "lora r1 would be better and possibly keeps to it" in shown(made, 300)
    assert alone.met == "possibly"
    assert words.sentence(alone).startswith("Possibly lora r1: nothing certainly keeps to")


def test_a_repeat_that_took_more_counts_against_a_limit_on_memory() -> None:
    first, second = (
        result(trial(), repeat=repeat, peak_tensor_bytes=size, step_seconds=1.0)
        for repeat, size in enumerate((GIB, 3 * GIB))
    )
    made = asked(run_of(first, second), "peak_tensor_bytes<=2.5GiB")

    assert made.met == "possibly"


def test_memory_is_that_of_the_worst_phase() -> None:
    run = run_of(
        result(trial(), peak_tensor_bytes=GIB, peak_tensor_bytes__load=4 * GIB, step_seconds=1.0)
    )

    assert asked(run, "peak_tensor_bytes<=2GiB").met == "no"
    assert asked(run, "peak_tensor_bytes<=4GiB").met == "yes"


def test_the_nearest_miss_is_named_with_what_it_lacks() -> None:
    run = run_of(*noisy(1, 0.5, gib=3), *noisy(2, 0.6, gib=2.2))
    made = asked(run, "peak_tensor_bytes<=2GiB", "accuracy.sort>=80%")

    assert best(made) is None
    assert words.sentence(made) == (
        "Nothing keeps to peak tensor memory ≤ 2 GiB and accuracy on sort ≥ 80 %. "
        "Nearest is lora r2: peak tensor memory 2.20 GiB, 205 MiB (10 %) over and "
        "accuracy on sort 60.0 %, 20.0 points short."
    )


def test_limits_of_the_suite_hold_unless_said_otherwise() -> None:
    run = run_of(
        *noisy(1, 0.9, gib=3),
        *noisy(2, 0.6, gib=1),
        limits={"peak_tensor_bytes": 2 * GIB, "peak_reserved_bytes": GIB},
    )

    assert best(asked(run)) == "lora r2"
    assert best(asked(run, "peak_tensor_bytes<=3GiB")) == "lora r1"
    assert best(asked(run, limits=False)) == "lora r1"
    assert any("limit on peak reserved memory" in note for note in asked(run).notes)


def test_points_that_ended_badly_or_lack_a_figure_are_counted_and_left_out() -> None:
    run = run_of(
        *noisy(1, 0.5),
        result(trial(rank=2), status="oom"),
        result(trial(rank=3), peak_tensor_bytes=GIB),
    )
    made = asked(run, maximize="accuracy.sort")

    assert dict(made.choice.out) == {"out of memory": 1, "without accuracy.sort": 1}
    with pytest.raises(NothingToCompareError, match="no point ended well"):
        asked(run_of(result(trial(), status="oom")))


# Kinds of evidence.


def planned(
    rank: int, gib: float, seconds: float, verdict: Any = "fits", **slots: Mapping[str, Any]
) -> Result:
    size = int(gib * GIB)
    return result(
        trial(LLAMA, rank, **slots),
        kind="predicted",
        hardware={"predicted_for": "NVIDIA H100 80GB HBM3"},
        peak_process_bytes=(0.99 * size, size, 1.02 * size),
        peak_reserved_bytes=size,
        step_seconds=(0.8 * seconds, seconds, 1.5 * seconds),
        tokens_per_second=1000 / seconds,
        fit=Fit(
            device="h100-80gb",
            verdict=verdict,
            needed=(int(0.99 * size), int(1.02 * size)),
            capacity=(79 * GIB, 79 * GIB + 1),
            phase="train",
        ),
    )


def plan(*results: Result) -> Run:
    return run_of(
        *results, objectives=["peak_reserved_bytes"], limits={"peak_process_bytes": 79 * GIB}
    )


NF4 = {"quantization": {"method": "nf4"}}


def test_a_plan_is_ranked_by_what_it_predicts_and_says_so() -> None:
    run = plan(
        planned(4, 40, 3, **NF4), planned(8, 60, 2, **NF4), planned(16, 90, 1, "does not fit")
    )
    made = asked(run)

    assert best(made) == "nf4 + lora r8"
    assert "predicted for meta-llama/Llama-3.3-70B-Instruct" in words.sentence(made)
    assert "not measured" in words.sentence(made)
    assert "79 GiB of h100-80gb" in words.sentence(made)
    assert "2.00 s (1.60 to 3.00 s)" in words.sentence(made)


def test_a_larger_rank_for_a_hair_more_is_named_beside_the_cheapest() -> None:
    made = asked(plan(planned(4, 40, 2.0), planned(16, 40, 2.01), planned(64, 40, 2.5)))

    assert best(made) == "lora r4"
    assert "lora r16 comes within 5 % of it by step time, and has rank 16 rather than 4." in (
        made.notes
    )


def test_what_is_tight_on_the_device_is_possible() -> None:
    assert asked(plan(planned(4, 79, 3, "tight"))).met == "possibly"


def test_published_accuracies_stand_beside_predictions_and_are_never_the_points() -> None:
    made = asked(plan(planned(4, 40, 3, **NF4)), maximize="accuracy.mmlu")
    text = shown(made, 250)

    assert made.asked == "accuracy.mmlu"
    assert made.choice.goal.name == "step_seconds"
    assert (
        "No point has accuracy.mmlu: it was not measured, and accuracy is never predicted" in text
    )
    assert "Accuracy of other models with these techniques, published, not measured" in text
    assert "LLaMA 65B 61.8 to 63.9 %" in text
    assert "arXiv:2305.14314" in text
    figures = words.payload(made, None)["answer"]["figures"]
    assert not [name for name in figures if name.startswith("accuracy")]


def test_accuracy_of_one_model_is_never_that_of_another() -> None:
    with pytest.raises(UserError, match="different models"):
        asked(together([run_of(*noisy(1, 0.9)), plan(planned(4, 40, 3))]), maximize="accuracy.sort")


def test_an_unknown_task_is_refused_on_a_plan_as_well() -> None:
    with pytest.raises(UserError, match=r"unknown measurement 'accuracy\.mmul'"):
        asked(plan(planned(4, 40, 3)), maximize="accuracy.mmul")


def test_measured_accuracy_meets_predicted_memory() -> None:
    """Trained on a CPU, planned for a GPU: each figure says what it is, and which memory counts."""
    measured = [
        result(
            trial(LLAMA, rank),
            accuracy__mmlu=score,
            peak_process_bytes=200 * GIB,
            step_seconds=900.0,
        )
        for rank, score in ((4, 0.6), (8, 0.7))
    ]
    run = together(
        [run_of(*measured), plan(planned(4, 40, 3), planned(8, 60, 2), planned(16, 50, 1))]
    )
    made = asked(run, "peak_process_bytes<=70GiB", maximize="accuracy.mmlu")
    text = words.sentence(made)

    assert best(made) == "lora r8"
    assert "accuracy on mmlu measured and peak process memory predicted" in text
    assert "peak process memory ≤ 70 GiB (here 60.0 GiB)" in text
    assert made.published == ()
    assert dict(made.choice.out) == {"without accuracy.mmlu": 1}


def test_measured_points_compete_with_measured_ones_only() -> None:
    run = together(
        [
            run_of(result(trial(rank=1), step_seconds=2.0, peak_tensor_bytes=GIB)),
            run_of(result(trial(rank=2), kind="predicted", step_seconds=1.0)),
        ]
    )
    made = asked(run, minimize="step_seconds")

    assert best(made) == "lora r1"
    assert made.choice.unmeasured == 1
    assert any("only predicted" in note for note in made.notes)


def test_a_sharded_prediction_that_leaves_little_says_what_such_were_off_by() -> None:
    two = {"sharding": {"method": "fsdp2", "degree": 2}}
    bold, roomy = planned(8, 75, 1, **two), planned(4, 20, 2, **two)
    off = f"{100 * sharded_error():.1f} %"

    (note,) = [each for each in asked(plan(bold, roomy)).notes if "sharded memory" in each]
    assert note.startswith("It leaves ")
    assert note.endswith(
        f"sharded memory was off by {off} where others measured it. The best that leaves as much, "
        "or is on one GPU, is lora r4 + fsdp2 x2."
    )
    (note,) = [each for each in asked(plan(bold)).notes if "sharded memory" in each]
    assert note.endswith(f"sharded memory was off by {off} where others measured it.")
    for made in (asked(plan(roomy)), asked(plan(planned(8, 75, 1)))):
        assert not any("sharded memory" in each for each in made.notes)


def test_the_same_trial_of_two_machines_counts_once() -> None:
    here, there = (
        run_of(result(trial(), hardware={"cpu": cpu}, step_seconds=seconds, peak_tensor_bytes=GIB))
        for cpu, seconds in (("a", 1.0), ("b", 3.0))
    )
    made = asked(together([here, there]), minimize="step_seconds")

    assert made.choice.best is not None
    assert made.choice.best.goal.value in (1.0, 3.0)


# Money and GPUs.


def test_of_predictions_that_read_the_same_the_one_on_fewest_gpus_is_best() -> None:
    many = planned(4, 20, 2.3399, sharding={"method": "fsdp2", "degree": 1024})
    few = planned(4, 40, 2.3401, sharding={"method": "fsdp2", "degree": 8})
    made = asked(plan(many, few), minimize="step_seconds")

    assert best(made) == "lora r4 + fsdp2 x8"
    assert [each.candidate.ranks for each in made.choice.alike] == [1024]
    assert "the shortest step time, 2.34 s" in words.sentence(made)
    assert "which 1 other shares, of the 2 points" in words.sentence(made)
    assert any("a step on more of them trains on more" in note for note in made.notes)


def test_a_job_is_priced_and_gpus_are_counted() -> None:
    eight = {"sharding": {"method": "fsdp2", "degree": 8}}
    run = plan(planned(4, 40, 3), planned(8, 30, 1, **eight))
    job = Job(tokens=3_600_000, price=2.0)

    assert best(asked(run, job=job)) == "lora r4"  # cheaper; the other is faster on eight
    assert best(asked(run, job=job, minimize="hours")) == "lora r8 + fsdp2 x8"
    assert best(asked(run, job=job, minimize="hours", gpus=1)) == "lora r4"
    made = asked(run, "money<=5", job=job)
    (candidate,) = [each for each in candidates(groups(run), job) if each.ranks == 1]
    hours, money = candidate.figure("hours"), candidate.figure("money")

    assert hours is not None
    assert money is not None
    assert hours.value == pytest.approx(3_600_000 / (1000 / 3) / 3600)
    assert (hours.low, hours.high) == pytest.approx((0.8 * hours.value, 1.5 * hours.value))
    assert money.value == pytest.approx(2 * hours.value)
    assert made.met == "possibly" if money.high > 5 > money.low else made.met == "no"


# The suite file.


def test_the_suite_runs_exactly_that_point(tmp_path: Path) -> None:
    run = plan(planned(4, 40, 3, **NF4), planned(8, 90, 1))
    made = asked(run, "peak_reserved_bytes<=48GiB")
    file = tmp_path / "next.yaml"
    file.write_text(suite_text(made, run, tmp_path), encoding="utf-8")
    (point,) = Suite.load(file).trials()

    assert made.choice.best is not None
    assert point.id == made.choice.best.candidate.trial
    assert Suite.load(file).limits == {"peak_reserved_bytes": 48 * GIB}
    assert "peak_reserved_bytes: 48GiB" in file.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((ROOT / "suites").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_point_of_every_suite_is_written_and_read_back(file: Path, tmp_path: Path) -> None:
    suite = Suite.load(file)
    for each in suite.trials():
        text = one_point(each, tmp_path, question="What?", objectives=suite.objectives, repeats=2)
        (back,) = Suite.parse(text, tmp_path / "one.yaml").trials()

        assert each.id == back.id


def test_paths_are_written_as_they_open_from_the_suite(tmp_path: Path) -> None:
    rows = tmp_path / "data" / "mine.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"text": "a"}\n')
    source = tmp_path / "suite.yaml"
    source.write_text("model: reference\nbudget: {data: {file: data/mine.jsonl}}\ngrid: {}\n")
    (point,) = Suite.load(source).trials()
    folder = tmp_path / "elsewhere"
    text = one_point(point, folder, question="What?")
    (back,) = Suite.parse(text, folder / "one.yaml").trials()

    assert "file: ../data/mine.jsonl" in text
    assert point.id == back.id


def test_a_point_of_another_tool_has_no_suite() -> None:
    foreign = replace(
        run_of(*noisy(1, 0.5)),
        results=(
            noisy(1, 0.5)[0].model_copy(
                update={"settings": {"adapters": {"method": "unheard of"}}}
            ),
        ),
    )
    with pytest.raises(UserError, match="no suite can run it"):
        suite_text(asked(foreign), foreign, Path())


# What is printed.


def test_json_holds_everything_and_markdown_escapes() -> None:
    hostile = noisy(1, 0.5)[0].model_copy(update={"label": "<b>|*x*`"})
    made = asked(run_of(hostile, *noisy(2, 0.4)), maximize="accuracy.sort")
    told = json.loads(json.dumps(words.payload(made, "text"), allow_nan=False))

    assert told["met"] == "yes"
    assert told["answer"]["label"] == "<b>|*x*`"
    assert told["answer"]["figures"]["accuracy.sort"]["kind"] == "measured"
    assert [each["label"] for each in told["runners_up"]] == ["lora r2"]
    assert told["suite"] == "text"
    assert "<b>" not in words.markdown(made, None)


@pytest.mark.parametrize("width", [80, 160])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    text = shown(asked(plan(planned(4, 40, 3, **NF4), planned(8, 60, 2))), width)

    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "run this" in text


def test_the_accuracy_of_the_reference_model_says_whose_it_is() -> None:
    made = asked(run_of(*noisy(1, 0.5)), maximize="accuracy.sort")

    assert any("not the accuracy of a larger model" in note for note in made.notes)


# Published accuracies.


def test_every_published_accuracy_has_a_source_and_a_method_of_the_catalogue() -> None:
    assert len({each.id for each in accuracies()}) == len(accuracies())
    for each in accuracies():
        assert 0 < each.value < 1
        assert each.source
        for slot, method in zip(SLOTS, each.methods, strict=True):
            assert method is None or method in catalogue()[slot]


def test_a_range_is_of_the_same_methods_only() -> None:
    lora = {"adapters": {"method": "lora"}, "checkpointing": {"method": "full"}}
    both = {**lora, "quantization": {"method": "nf4"}}

    assert {each.model for each in spans(both)} == {
        *(f"LLaMA {size}B" for size in (7, 13, 33, 65)),
        *("Llama-2-7B", "Llama-3-8B", "Llama-3.2-1B"),
    }
    assert ("Llama-3.2-3B", "gsm8k") in {(each.model, each.task) for each in spans(lora)}
    assert spans({**both, "pruning": {"method": "magnitude"}}) == ()
    assert all(each.low <= each.high for each in spans(lora))
    assert LABEL == "published, not measured"


# The command.


def recommend(*words_: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tradebench", "recommend", *words_],
        cwd=folder,
        capture_output=True,
        text=True,
    )


QUICK = "results/quickstart-full/example"
PLANNED = "results/llama-3.3-70b.plan/example"


@pytest.mark.slow
def test_the_command_answers_from_a_run_and_writes_a_suite(tmp_path: Path) -> None:
    file = tmp_path / "next.yaml"
    done = recommend(QUICK, "--under", "peak_tensor_bytes<=24MiB", "-o", str(file))

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Run ")
    assert len(Suite.load(file).trials()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words_", "code", "said"),
    [
        ((QUICK, "--under", "peak_tensor_bytes<=1MiB"), 1, "Nothing keeps to"),
        ((QUICK, "--under", "peak_tensor_byte<=1MiB"), 2, "did you mean 'peak_tensor_bytes'?"),
        ((QUICK, PLANNED), 2, "different models"),
        ((QUICK, "--gpu", "h100-80gb"), 2, "--gpu is for a suite"),
        ((QUICK, "--maximize", "accuracy.sort", "--minimize", "step_seconds"), 2, "give one of"),
        (("nowhere",), 2, "nowhere is not a run"),
        (("nowhere.yaml",), 2, "nowhere.yaml"),
        ((PLANNED, "--maximize", "accuracy.mmlu", "--gpus", "1"), 0, "published, not measured"),
    ],
)
def test_how_the_command_ends(words_: Sequence[str], code: int, said: str) -> None:
    done = recommend(*words_)

    assert done.returncode == code, done.stderr
    assert said in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_json_is_the_only_thing_on_standard_output() -> None:
    told = json.loads(recommend(PLANNED, "--gpus", "1", "--format", "json").stdout)

    assert told["schema"] == "tradebench.recommend/1"
    assert told["answer"]["evidence"] == ["predicted"]
    (point,) = Suite.parse(told["suite"], "one.yaml").trials()
    assert point.id == told["answer"]["trial"]
    assert YAML(typ="safe").load(told["suite"])["grid"]


def test_a_suite_is_planned_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(planned(4, 40, 3, **NF4))
    calls: list[Any] = []

    def plans(suite: Suite, aim: Any, out: Path, **options: Any) -> tuple[Path, None]:
        calls.append((suite.name, aim.device.id, options["gpus"]))
        return out, None

    monkeypatch.setattr("tradebench.commands.planning.plan", plans)
    monkeypatch.setattr("tradebench.store.load", lambda _: made)
    suite = str(ROOT / "suites" / "llama-3.3-70b-qlora.yaml")
    found = recommending.gather([suite], tmp_path, gpu="a100-80gb", gpus=2, out=tmp_path)

    assert calls == [("llama-3.3-70b-qlora", "a100-80gb", 2)]
    assert math.isclose(found.results[0].value("peak_reserved_bytes") or 0, 40 * GIB)
