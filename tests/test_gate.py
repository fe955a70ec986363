"""Verdicts on samples made by hand, and the promises of the gate as a whole."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tradebench.regression import evidence
from tradebench.regression.baseline import Baseline
from tradebench.regression.evidence import decide
from tradebench.regression.gate import Check, Verdict, confirmed, judge
from tradebench.regression.outcomes import Answers, Outcomes
from tradebench.regression.policy import Policy
from tradebench.regression.sample import Head, Point, Sample, Series
from tradebench.result import Kind, Status

MIB = 2**20
CPU: Mapping[str, Any] = {
    "software": {"torch": "2.13"},
    "hardware": {"gpus": [], "cpu": "A", "usable_cpus": 2},
}
H100 = {"name": "H100", "memory_bytes": 80 * 2**30, "mig": False}
UNITS = {"step_seconds": "s", "peak_tensor_bytes": "B", "peak_process_bytes": "B"}
Values = Mapping[str, Sequence[float | None]]


def point(
    metrics: Values,
    trial: str = "t",
    *,
    kind: Kind = "measured",
    statuses: Sequence[Status | None] | None = None,
    reasons: Sequence[str | None] = (),
    repeats: tuple[int, ...] = (0,),
    **fields: Any,
) -> Point:
    count = len(statuses) if statuses is not None else len(next(iter(metrics.values())))
    more = ("accuracy",)
    return Point(
        kind=kind,
        trial=trial,
        label=fields.pop("label", trial),
        suite="s",
        statuses=tuple(statuses or ("ok",) * count),
        reasons=tuple(reasons),
        environments=("e",) * count,
        repeats=(repeats,) * count,
        metrics={
            name: Series(
                unit=UNITS.get(name, "nat" if name.startswith("answer_nll") else "1"),
                better="more" if name.startswith(more) else "less",
                values=tuple(values),
            )
            for name, values in metrics.items()
        },
        **fields,
    )


def sample(
    *points: Point,
    prefix: str = "b",
    environment: Mapping[str, Any] = CPU,
    code: Mapping[str, str | None] | None = None,
) -> Sample:
    heads = tuple(Head(run=f"{prefix}{n}", code=code or {}) for n in range(len(points[0].statuses)))
    return Sample(runs=heads, environments={"e": environment}, points=points)


def check(
    base: Sample | Point,
    new: Sample | Point,
    *,
    policy: Policy | None = None,
    items: Outcomes | None = None,
    new_items: Outcomes | None = None,
    **options: Any,
) -> Check:
    before = base if isinstance(base, Sample) else sample(base)
    after = new if isinstance(new, Sample) else sample(new, prefix="n")
    held = Baseline(sample=before, items=items or {}, policy=policy or Policy())
    return judge(held, after, new_items or {}, **options)


def only(found: Check) -> Verdict:
    (verdict,) = found.verdicts
    return verdict


def answers(run: str, values: Sequence[float], items: str = "i") -> Outcomes:
    return {(run, "t", "accuracy.facts"): Answers(items=items, values=tuple(values))}


# How points end.


@pytest.mark.parametrize(
    ("before", "now", "outcome"),
    [
        ("ok", "oom", "regressed"),
        ("ok", "diverged", "regressed"),
        ("ok", "timeout", "regressed"),
        ("ok", "failed", "regressed"),
        ("ok", "killed", "missing"),
        ("ok", "skipped", "missing"),
        ("oom", "oom", "ok"),
        ("skipped", "skipped", "ok"),
        ("oom", "ok", "improved"),
        ("oom", "failed", "missing"),
    ],
)
def test_how_a_point_ends_is_a_verdict(before: Status, now: Status, outcome: str) -> None:
    found = only(check(point({}, statuses=[before]), point({}, statuses=[now])))

    assert (found.metric, found.outcome) == ("status", outcome)


def test_an_ok_point_that_is_now_out_of_memory_stops_the_check_with_its_reason() -> None:
    now = point({}, statuses=["oom"], reasons=["18.2 GiB were asked for and 1.1 GiB were free"])
    found = check(point({"step_seconds": [1.0]}), now)

    assert found.exit_code() == 1
    assert "now out of memory: 18.2 GiB were asked for" in only(found).why


def test_a_point_that_was_out_of_memory_now_and_then_is_inconclusive_where_it_is_again() -> None:
    before = point({"step_seconds": [1.0, None, 1.0]}, statuses=["ok", "oom", "ok"])
    found = only(check(before, point({}, statuses=["oom"])))

    assert found.outcome == "inconclusive"
    assert "1 of 3 baseline runs" in found.why


def test_out_of_memory_that_does_not_come_again_is_not_confirmed() -> None:
    again = point({"step_seconds": [None, 1.0]}, statuses=["oom", "ok"])

    assert only(check(point({"step_seconds": [1.0]}), again, confirmations=1)).outcome == (
        "inconclusive"
    )


def test_a_point_that_is_gone_is_missing_and_one_that_came_is_new() -> None:
    found = check(
        sample(point({"step_seconds": [1.0]}, "old")),
        sample(point({"step_seconds": [1.0]}, "young"), prefix="n"),
    )

    assert {each.point: each.outcome for each in found.verdicts} == {
        "old": "missing",
        "young": "new",
    }
    assert found.exit_code() == 3


def test_a_point_with_another_budget_is_incomparable_and_the_field_is_named() -> None:
    base = point({"step_seconds": [1.0]}, "t1", label="bf16", budget={"steps": 20, "batch": 4})
    new = point({"step_seconds": [1.0]}, "t2", label="bf16", budget={"steps": 30, "batch": 4})
    found = only(check(base, new))

    assert (found.outcome, found.why) == ("incomparable", "budget.steps: 20 -> 30")


# Metrics.


def test_metrics_that_nobody_judges_are_left_alone() -> None:
    found = check(point({"load_seconds": [1.0]}), point({"load_seconds": [9.0]}))

    assert found.verdicts == ()
    assert found.exit_code() == 3


def test_a_metric_that_is_gone_is_missing() -> None:
    before = point({"step_seconds": [1.0], "peak_tensor_bytes": [100]})
    found = check(before, point({"step_seconds": [1.0]}))

    assert [each.metric for each in found.of("missing")] == ["peak_tensor_bytes"]
    assert found.exit_code() == 3
    assert found.exit_code(allow_missing=True) == 0


def test_memory_takes_a_margin_and_a_floor() -> None:
    def process(before: int, now: int) -> str:
        return only(
            check(point({"peak_process_bytes": [before]}), point({"peak_process_bytes": [now]}))
        ).outcome

    assert process(600 * MIB, 660 * MIB) == "ok"
    assert process(600 * MIB, 665 * MIB) == "regressed"
    assert process(80_000 * MIB, 80_700 * MIB) == "ok"
    assert process(80_000 * MIB, 80_900 * MIB) == "regressed"


def test_a_peak_that_grew_says_by_which_category() -> None:
    def peak(total: int, activations: int, weights: int) -> Point:
        return point(
            {
                "peak_tensor_bytes": [total * MIB],
                "peak_activations_bytes": [activations * MIB],
                "peak_weights_bytes": [weights * MIB],
            }
        )

    found = only(check(peak(100, 60, 40), peak(130, 92, 38)))

    assert found.outcome == "regressed"
    assert found.why == "activations +32 MiB, weights -2 MiB"


def test_what_is_predicted_has_no_noise() -> None:
    found = only(
        check(
            point({"step_seconds": [1.0]}, kind="predicted"),
            point({"step_seconds": [1.06]}, kind="predicted"),
        )
    )

    assert (found.outcome, found.p) == ("regressed", None)
    assert found.point == "t (predicted)"


def test_advice_never_stops_a_check() -> None:
    policy = Policy(metrics={"peak_tensor_bytes": {"gate": False}})
    found = check(
        point({"peak_tensor_bytes": [100]}), point({"peak_tensor_bytes": [200]}), policy=policy
    )

    assert only(found).outcome == "regressed"
    assert found.exit_code() == 0


def test_the_detectable_change_is_always_there() -> None:
    names = ("step_seconds", "peak_tensor_bytes", "peak_process_bytes", "accuracy.facts")
    metrics: Values = {name: [1.0] for name in names}

    assert all(each.detectable for each in check(point(metrics), point(metrics)).verdicts)


def test_one_of_many_tests_may_be_chance_until_it_is_run_again() -> None:
    base = sample(
        *(point({"step_seconds": [1, 1.01, 0.99, 1.01, 0.99]}, f"t{n}") for n in range(40))
    )
    new = [point({"step_seconds": [1.08 if n == 0 else 1.0]}, f"t{n}") for n in range(40)]
    found = check(base, sample(*new, prefix="n"))

    assert [each.outcome for each in found.verdicts][:2] == ["inconclusive", "ok"]
    assert "one of 40 tests" in found.verdicts[0].why
    assert check(base, sample(*new, prefix="n"), confirmations=1).exit_code() == 1


def test_a_confirmation_replaces_only_what_had_regressed() -> None:
    base = sample(point({"step_seconds": [1.0] * 5}, "a"), point({"step_seconds": [1.0] * 5}, "b"))
    first = check(
        base, sample(point({"step_seconds": [1.3]}, "a"), point({"step_seconds": [1.0]}, "b"))
    )
    again = check(base, sample(point({"step_seconds": [1.3, 1.0]}, "a")), confirmations=1)
    found = confirmed(first, again)

    assert first.exit_code() == 1
    assert [each.outcome for each in found.verdicts] == ["inconclusive", "ok"]
    assert found.verdicts[0].why == "1 of 2 runs show it"
    assert found.confirmations == 1


# Items.


def test_accuracy_is_paired_by_items() -> None:
    base = point({"accuracy.facts": [1.0]})
    found = only(
        check(
            base,
            point({"accuracy.facts": [0.9]}),
            items=answers("b0", [1.0] * 200),
            new_items=answers("n0", [0.0] * 20 + [1.0] * 180),
        )
    )

    assert found.outcome == "regressed"
    assert found.rule == "paired over 200 items, 20 lost and 0 won"


def test_other_items_are_no_pairs() -> None:
    found = only(
        check(
            point({"accuracy.facts": [1.0]}),
            point({"accuracy.facts": [0.5]}),
            items=answers("b0", [1.0] * 4),
            new_items=answers("n0", [0.0, 1.0] * 2, items="j"),
        )
    )

    assert (found.outcome, found.why) == ("incomparable", "the test items are others")


def test_without_items_accuracy_rests_on_runs_and_says_so() -> None:
    found = only(check(point({"accuracy.facts": [0.5]}), point({"accuracy.facts": [0.8]})))
    same = only(check(point({"accuracy.facts": [0.5]}), point({"accuracy.facts": [0.5]})))

    assert found.outcome == "improved"
    assert found.rule.endswith("for want of per-item outcomes")
    assert same.outcome == "ok"


def test_another_number_of_repeats_is_another_mean() -> None:
    found = only(
        check(
            point({"accuracy.facts": [1.0]}, repeats=(0, 1, 2)),
            point({"accuracy.facts": [0.5]}, repeats=(0,)),
        )
    )

    assert (found.outcome, found.why) == ("incomparable", "repeats: 3 -> 1")


# What may be compared.


def on(**hardware: Any) -> dict[str, Any]:
    return {"software": CPU["software"], "hardware": {**CPU["hardware"], **hardware}}


ALL: Values = {
    "step_seconds": [1.0],
    "peak_tensor_bytes": [100],
    "peak_process_bytes": [100],
    "accuracy.facts": [0.5],
}


@pytest.mark.parametrize(
    ("before", "now", "barred"),
    [
        ({}, {}, set()),
        ({}, {"cpu": "B"}, {"step_seconds"}),
        ({}, {"usable_cpus": 4}, {"step_seconds"}),
        (
            {"gpus": [H100]},
            {"gpus": [{**H100, "name": "A100"}]},
            {"step_seconds", "peak_tensor_bytes", "peak_process_bytes"},
        ),
        (
            {"gpus": [H100]},
            {"gpus": [{**H100, "mig": True}]},
            {"step_seconds", "peak_tensor_bytes", "peak_process_bytes"},
        ),
        ({"gpus": [H100]}, {"gpus": [H100], "cpu": "B", "usable_cpus": 64}, set()),
    ],
)
def test_other_hardware_bars_what_depends_on_it(
    before: Mapping[str, Any], now: Mapping[str, Any], barred: set[str]
) -> None:
    found = check(
        sample(point(ALL), environment=on(**before)),
        sample(point(ALL), environment=on(**now), prefix="n"),
    )

    assert {each.metric for each in found.of("incomparable")} == barred
    # One metric that is barred is a notice; the others still gate.
    assert found.exit_code() == 0
    assert found.exit_code(strict=True) == 4


def test_a_barrier_is_named() -> None:
    found = only(
        check(
            sample(point({"step_seconds": [1.0]})),
            sample(point({"step_seconds": [1.0]}), environment=on(cpu="B"), prefix="n"),
        )
    )

    assert found.why == "hardware.cpu: A -> B"


def test_only_the_baseline_runs_of_like_hardware_count() -> None:
    base = point({"step_seconds": [1.0, 1.0, 2.0]}).model_copy(
        update={"environments": ("e", "e", "f")}
    )
    both = Sample(
        runs=tuple(Head(run=f"b{n}") for n in range(3)),
        environments={"e": CPU, "f": on(cpu="B")},
        points=(base,),
    )
    found = only(check(both, point({"step_seconds": [1.0]})))

    assert (found.baseline_runs, found.base) == (2, 1.0)
    assert "2 of 3 baseline runs are comparable" in found.why


def test_other_questions_bar_accuracy_alone() -> None:
    found = check(
        sample(point(ALL), code={"reference": "a"}),
        sample(point(ALL), code={"reference": "b"}, prefix="n"),
    )

    assert [each.metric for each in found.of("incomparable")] == ["accuracy.facts"]


def test_software_that_differs_is_a_possible_cause() -> None:
    newer = {**CPU, "software": {"torch": "2.14"}}
    found = check(sample(point(ALL)), sample(point(ALL), environment=newer, prefix="n"))

    assert found.causes == ("software.torch: 2.13 -> 2.14",)
    assert not found.of("incomparable")


def test_predictions_for_another_device_are_incomparable() -> None:
    found = only(
        check(
            point(ALL, kind="predicted", device="h100-80gb"),
            point(ALL, kind="predicted", device="a100-80gb"),
        )
    )

    assert (found.outcome, found.why) == ("incomparable", "device: h100-80gb -> a100-80gb")


# Exit codes.


def test_a_regression_weighs_more_than_what_is_missing() -> None:
    base = sample(point({"peak_tensor_bytes": [100]}, "a"), point({"peak_tensor_bytes": [1]}, "b"))
    found = check(base, sample(point({"peak_tensor_bytes": [200]}, "a"), prefix="n"))

    assert found.exit_code(allow_missing=True) == 1
    assert found.exit_code() == 1


def test_inconclusive_is_green_unless_strict() -> None:
    found = check(point({"step_seconds": [1.0]}), point({"step_seconds": [1.04]}))

    assert only(found).outcome == "inconclusive"
    assert (found.exit_code(), found.exit_code(strict=True)) == (0, 4)


# The promises, simulated with a seed: base and new runs drawn alike, or the new ones slower.


def alarms(count: int, *, runs: int, noise: float, slower: float, seed: int) -> float:
    """The share of single verdicts that are `regressed` after a confirmation."""
    drawn = random.Random(seed)
    hits = 0
    for _ in range(count):
        base = [drawn.gauss(1, noise) for _ in range(runs)]
        made = [(1 + slower) * drawn.gauss(1, noise) for _ in range(2)]
        margin = 0.05 * sum(base) / runs
        hits += all(
            decide(evidence.runs(base, new, margin, 0.02, more=False), margin) == "regressed"
            for new in (made[:1], made)
        )
    return hits / count


def whole_checks(count: int, *, runs: int, noise: float, slower: float, seed: int) -> float:
    """The same through samples, policies and exit codes."""
    drawn = random.Random(seed)
    hits = 0
    for _ in range(count):
        base = sample(point({"step_seconds": [drawn.gauss(1, noise) for _ in range(runs)]}))
        made = [(1 + slower) * drawn.gauss(1, noise) for _ in range(2)]
        first = check(base, point({"step_seconds": made[:1]}))
        if first.exit_code() == 1:
            again = check(base, point({"step_seconds": made}), confirmations=1)
            hits += confirmed(first, again).exit_code() == 1
    return hits / count


@pytest.mark.parametrize(
    ("runs", "noise", "slower"), [(5, 0.01, 0.1), (8, 0.01, 0.07), (5, 0.03, 0.0)]
)
def test_a_whole_check_calls_what_its_evidence_calls(
    runs: int, noise: float, slower: float
) -> None:
    drawn = {"runs": runs, "noise": noise, "slower": slower, "seed": 1}

    assert whole_checks(200, **drawn) == alarms(200, **drawn)  # type: ignore[arg-type]


def test_slower_by_a_tenth_is_found_in_99_of_100_checks() -> None:
    """At 1 % noise between runs; 99.08 % with five runs in 400,000 draws."""
    assert alarms(10_000, runs=5, noise=0.01, slower=0.1, seed=5) >= 0.99


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_no_change_raises_an_alarm_in_one_of_a_thousand_checks(noise: float) -> None:
    assert alarms(10_000, runs=5, noise=noise, slower=0.0, seed=5) <= 0.001


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "noise", "slower", "low", "high"),
    [
        (5, 0.01, 0.0, 0.0, 0.0),
        (8, 0.01, 0.1, 0.999, 1.0),
        (8, 0.03, 0.0, 0.0, 0.001),
        (3, 0.02, 0.0, 0.0, 0.001),  # as noisy as declared
        (1, 0.02, 0.0, 0.0, 0.001),
        (3, 0.04, 0.0, 0.0, 0.01),  # twice as noisy as declared: 0.53 %
    ],
)
def test_error_rates_stay_in_their_bounds(
    runs: int, noise: float, slower: float, low: float, high: float
) -> None:
    assert low <= alarms(100_000, runs=runs, noise=noise, slower=slower, seed=runs) <= high


@pytest.mark.parametrize("lost", [0.5, 0.9])
def test_answers_that_change_by_chance_raise_no_alarm_and_losses_do(lost: float) -> None:
    """Of 500 items eight in a hundred change; by chance, as many are lost as won."""
    drawn = random.Random(3)
    hits = 0
    for _ in range(500):
        changes = [
            0 if drawn.random() > 0.08 else 1 if drawn.random() < lost else -1 for _ in range(500)
        ]
        before = [1.0 if change >= 0 else 0.0 for change in changes]
        after = [1.0 if change <= 0 else 0.0 for change in changes]
        hits += decide(evidence.items(before, after, 0.01, more=True), 0.01) == "regressed"

    assert hits / 500 <= 0.006 if lost == 0.5 else hits / 500 >= 0.95
