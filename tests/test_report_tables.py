"""What reports compute: pooled points, standings, series, findings, and how numbers are spelled."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from tradebench import store
from tradebench.published.held import sharded_error
from tradebench.report import (
    content,
    curves,
    findings,
    fronts,
    predictions,
    series,
    style,
    tables,
    terminal,
    units,
)
from tradebench.result import (
    SCHEMA,
    Environment,
    Fit,
    Kind,
    Measurement,
    Result,
    Status,
    Verdict,
    digest,
)
from tradebench.store import Run

RESULTS = Path(__file__).parents[1] / "results"
FP32: dict[str, Any] = {"precision": {"method": "fp32"}}
BF16: dict[str, Any] = {"precision": {"method": "bf16"}}
NF4: dict[str, Any] = {"quantization": {"method": "nf4"}}
UNITS = {"peak_tensor_bytes": "B", "peak_tensor_bytes.load": "B", "step_seconds": "s"}


def numbers(
    intervals: dict[str, tuple[float, float]] | None = None, **values: float
) -> dict[str, Measurement]:
    """Measurements by name; `memory`, `load`, `step` and task names are short for theirs."""
    long = {
        "memory": "peak_tensor_bytes",
        "load": "peak_tensor_bytes.load",
        "step": "step_seconds",
    }
    found = {}
    for short, value in values.items():
        name = long.get(short, f"accuracy.{short}")
        found[name] = Measurement(
            value=value,
            unit=UNITS.get(name, "1"),
            better="more" if name.startswith("accuracy") else "less",
            interval=(intervals or {}).get(short),
        )
    return found


def result(
    settings: dict[str, Any],
    measurements: dict[str, Measurement] | None = None,
    *,
    label: str | None = None,
    repeat: int = 0,
    status: Status = "ok",
    reason: str | None = None,
    kind: Kind = "measured",
    model: dict[str, Any] | None = None,
    budget: dict[str, Any] | None = None,
) -> Result:
    return Result(
        schema=SCHEMA,
        kind=kind,
        suite="s",
        trial=digest([settings, model, budget]),
        repeat=repeat,
        label=" + ".join(f["method"] for f in settings.values()) if label is None else label,
        model=model or {"name": "reference"},
        budget={"steps": 1, **(budget or {})},
        evaluate={"tasks": ["qa"]},
        settings=settings,
        status=status,
        reason=reason,
        measurements=measurements or {},
    )


def run_of(*results: Result, **header: Any) -> Run:
    return Run(directory=Path("run"), header=header, results=results, attempts=results, problems=())


def group_of(*results: Result, **header: Any) -> fronts.Group:
    (group,) = fronts.groups(run_of(*results, **header))
    return group


def lora(rank: int, **fields: Any) -> dict[str, Any]:
    return FP32 | {"adapters": {"method": "lora", "rank": rank, **fields}}


@pytest.mark.parametrize(
    ("name", "value", "unit", "expected"),
    [
        ("peak_tensor_bytes", 3 * 2**30, "B", "3.00 GiB"),
        ("peak_tensor_bytes", 1536, "B", "1.50 KiB"),
        ("peak_tensor_bytes", 0, "B", "0 B"),
        ("step_seconds", 0.2117, "s", "212 ms"),
        ("step_seconds", 12.0, "s", "12.0 s"),
        ("step_seconds", 3e-5, "s", "30.0 µs"),
        ("accuracy.qa", 0.7971, "1", "79.7 %"),
        ("trainable_parameters", 41_943_040, "1", "41.9 M"),
        ("tokens_per_second", 4910.4, "1/s", "4910 tokens/s"),
        ("train_loss", 2.34567, "nat", "2.35 nat"),
        ("train_loss", math.inf, "nat", "inf nat"),
    ],
)
def test_values_are_shown_in_the_unit_that_fits(
    name: str, value: float, unit: str, expected: str
) -> None:
    assert units.show(name, value, unit) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("peak_tensor_bytes", "Peak tensor memory"),
        ("peak_reserved_bytes.evaluate_before", "Peak reserved memory while evaluate before"),
        ("accuracy.gsm8k", "Accuracy on gsm8k"),
        ("accuracy.gsm8k.strict", "Accuracy on gsm8k, strict"),
        ("accuracy_before.qa", "Accuracy on qa before training"),
        ("peak_optimizer_bytes", "Optimizer at the peak"),
        ("some_other_thing", "some other thing"),
    ],
)
def test_names_are_said_as_a_reader_would(name: str, expected: str) -> None:
    assert units.title(name) == expected


def test_long_texts_lose_their_middle() -> None:
    assert units.shorten("abcdefghij", 7) == "abcd…ij"
    assert units.shorten("abc", 7) == "abc"


def test_control_and_direction_characters_are_dropped() -> None:
    assert units.clean("a\u202eb\n\tc\x00d") == "ab cd"


def test_words_are_listed_as_in_a_sentence() -> None:
    assert [units.listed(words) for words in ("", "a", "ab", "abc")] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_repeats_count_once_each() -> None:
    found = [
        result(FP32, numbers({"qa": (0.3, 0.7)}, qa=0.5, step=1.0)),
        result(FP32, numbers({"qa": (0.5, 0.9)}, qa=0.7, step=3.0), repeat=1),
    ]
    (point,) = tables.points(found)
    estimate = point.estimates["accuracy.qa"]

    assert estimate.value == pytest.approx(0.6)
    assert estimate.spread == (0.5, 0.7)
    assert estimate.interval == pytest.approx((0.4, 0.8))
    assert point.value("step_seconds") == 2.0
    assert point.value("nothing") is None


def test_one_repeat_has_no_spread() -> None:
    (point,) = tables.points([result(FP32, numbers(step=1.0))])

    assert point.estimates["step_seconds"].spread is None


@pytest.mark.parametrize(
    ("statuses", "status", "text"),
    [
        (("ok", "ok"), "ok", "ok"),
        (("ok", "killed"), "ok", "ok 1 of 2, killed 1 of 2"),
        (("ok", "oom"), "oom", "out of memory 1 of 2, ok 1 of 2"),
        (("killed",), "killed", "killed"),
        (("oom", "failed"), "failed", "failed 1 of 2, out of memory 1 of 2"),
    ],
)
def test_a_point_has_the_status_a_reader_must_hear_first(
    statuses: tuple[Status, ...], status: Status, text: str
) -> None:
    found = [result(FP32, status=each, repeat=at) for at, each in enumerate(statuses)]
    (point,) = tables.points(found)

    assert (point.status, point.status_text) == (status, text)


def test_reasons_are_said_once_each() -> None:
    found = [
        result(FP32, status="skipped", reason="one reason\nanother"),
        result(FP32, status="skipped", reason="another", repeat=1),
        result(FP32, status="killed", repeat=2),
    ]
    (point,) = tables.points(found)

    assert point.reasons == ("one reason", "another", "no reason was recorded")


def test_equal_labels_are_told_apart_by_their_settings() -> None:
    found = [result(lora(8, alpha=alpha), label="lora r8") for alpha in (None, 4.0)]

    assert [point.name for point in tables.points(found)] == [
        "lora r8 (adapters.alpha=None)",
        "lora r8 (adapters.alpha=4.0)",
    ]


def test_limits_on_memory_hold_in_every_phase() -> None:
    small = result(FP32, numbers(memory=10, load=50))
    large = result(BF16, numbers(memory=20, load=20))
    group = group_of(small, large, limits={"peak_tensor_bytes": 40})

    assert [group.meets_limits(point) for point in group.points] == [False, True]


def test_limits_where_more_is_better_are_lower_bounds() -> None:
    group = group_of(
        result(FP32, numbers(qa=0.8)),
        result(BF16, numbers(qa=0.6)),
        result(lora(1), status="oom"),
        limits={"accuracy.qa": 0.7},
    )

    assert [group.meets_limits(point) for point in group.points] == [True, False, False]
    assert group.limits[0].limit_text == "≥ 70 %"


OBJECTIVES = ["peak_tensor_bytes", "accuracy.qa"]


def test_standings_follow_the_noise() -> None:
    near = (0.48, 0.72)
    group = group_of(
        result(FP32, numbers({"qa": near}, memory=100, qa=0.60)),
        result(BF16, numbers({"qa": near}, memory=90, qa=0.60)),
        result(lora(1), numbers(memory=10, qa=0.3)),
        result(lora(2), numbers(memory=200, qa=0.1)),
        objectives=OBJECTIVES,
    )

    assert [group.standing(point).label for point in group.points] == [
        "possible",
        "front",
        "front",
        "dominated",
    ]
    assert group.standing(group.points[0]).probability == pytest.approx(0.5, abs=0.05)


def test_exact_ties_are_all_on_the_front() -> None:
    same = numbers(memory=100, qa=0.6)
    group = group_of(result(FP32, same), result(BF16, same), objectives=OBJECTIVES)

    assert len(group.labelled("front")) == 2


def test_incomplete_points_say_what_they_lack() -> None:
    group = group_of(
        result(FP32, numbers(memory=100, qa=0.6)),
        result(BF16, numbers(memory=90)),
        result(lora(1), status="oom", reason="too big"),
        objectives=OBJECTIVES,
    )
    reasons = [group.standing(point).reason for point in group.points]

    assert reasons == ["", "no value for Accuracy on qa", "out of memory"]
    assert group.ordered[0].name == "fp32"


def test_an_objective_that_no_point_has_is_named_and_left_out() -> None:
    group = group_of(
        result(FP32, numbers(memory=100, qa=0.6)),
        objectives=["peak_reserved_bytes", *OBJECTIVES],
    )

    assert group.absent == ("peak_reserved_bytes",)
    assert len(group.labelled("front")) == 1
    assert "No point of this run has a value for peak reserved memory." in findings.findings(group)


def test_a_run_without_objectives_gets_the_usual_ones() -> None:
    group = group_of(result(FP32, numbers(memory=100, step=1.0, qa=0.5)))

    assert [each.name for each in group.objectives] == [
        "peak_tensor_bytes",
        "step_seconds",
        "accuracy.qa",
    ]


def test_models_are_never_compared_with_each_other() -> None:
    found = fronts.groups(
        run_of(
            result(FP32, numbers(memory=1), model={"name": "a"}),
            result(FP32, numbers(memory=2), model={"name": "b", "weights": "random"}),
            result(FP32, numbers(memory=2), model={"name": "a"}, kind="published"),
        )
    )

    assert [group.title for group in found] == [
        "measured on a",
        "measured on b, random weights",
        "published for a",
    ]


def test_the_spread_between_repeats_is_pooled_over_points() -> None:
    found = [
        tables.pool([Measurement(value=value, unit="s") for value in values])
        for values in ((0.9, 1.1), (1.8, 2.2), (5.0,))
    ]

    assert fronts.relative_sd(found) == pytest.approx(math.sqrt(0.04 / 2))
    assert fronts.relative_sd(found[2:]) == 0.0


def test_the_evaluators_error_does_not_shrink_with_repeats() -> None:
    one = Measurement(value=0.5, unit="1", interval=(0.4, 0.6))
    estimates = [tables.pool([one] * count) for count in (1, 9)]
    errors = [fronts.standard_error(estimate, relative=0.0) for estimate in estimates]

    assert errors == pytest.approx([0.1 / 1.96] * 2, rel=1e-3)


def lines(*results: Result) -> dict[str, list[tuple[str, list[float]]]]:
    """Axis to the name and the places of every series."""
    return {
        axis.field: [(line.name, [x for x, _ in line.points]) for line in found]
        for axis, found in series.series(group_of(*results)).items()
    }


def test_points_that_differ_in_one_setting_make_a_series() -> None:
    found = lines(*(result(lora(rank), numbers(qa=0.5), label="lora") for rank in (16, 4, 8)))

    assert found == {"rank": [("lora", [4, 8, 16])]}


def test_points_that_differ_in_two_settings_make_none() -> None:
    found = lines(
        result(lora(4, dropout="no"), numbers(qa=0.5)),
        result(lora(8, dropout="yes"), numbers(qa=0.5)),
    )

    assert found == {}


def test_a_slot_that_is_off_is_a_place_where_that_is_a_number() -> None:
    full = {"checkpointing": {"method": "full", "ratio": 0.5}}
    found = lines(
        result(FP32, numbers(qa=0.5)),
        result(FP32 | full, numbers(qa=0.5)),
        result(lora(4), numbers(qa=0.5)),
    )

    assert found == {"ratio": [("fp32", [0, 0.5])]}


def shaped(sequence: int, batch: int, accumulation: int, **values: float) -> Result:
    budget = {"sequence": sequence, "batch": batch, "accumulation": accumulation}
    return result(FP32, numbers(None, **values), budget=budget)


def test_a_budget_that_the_grid_varies_is_an_axis() -> None:
    found = lines(*(shaped(length, 4, 1, qa=0.5) for length in (64, 16, 32)))

    assert found == {"sequence": [("fp32", [16, 32, 64])]}


def test_a_step_cut_into_micro_batches_is_a_line_of_its_own() -> None:
    found = lines(
        *(shaped(32, *split, qa=0.5) for split in ((8, 1), (4, 2), (1, 8))),
        shaped(32, 4, 1, qa=0.5),
    )

    assert found == {
        "batch": [("fp32", [4, 8]), ("fp32, always 8 sequences a step", [1, 4, 8])],
        "accumulation": [("fp32", [1, 2])],
    }


def test_points_that_train_on_less_are_not_compared_in_silence() -> None:
    points = [shaped(32, 8, 1, memory=100, qa=0.5), shaped(16, 4, 1, memory=50, qa=0.4)]
    group = group_of(*points)
    note = "Points train on sequences of at most 16 and 32 tokens and on 4 and 8 sequences a step."
    told = findings.findings(group)

    assert group.training_note == note
    assert group.accuracy_notes[-1] == note
    assert f"{note} {tables.TRAINING}" in told
    assert not any("less than" in sentence for sentence in told)


@pytest.mark.parametrize(("other", "shown"), [(64.0, False), (32.0, True)])
def test_what_a_step_trains_on_has_a_column_where_it_differs(other: float, shown: bool) -> None:
    steps = [Measurement(value=tokens, unit="1", better="more") for tokens in (64.0, other)]
    group = group_of(
        *(
            result(settings, numbers(memory=1.0) | {"tokens_per_step": tokens})
            for settings, tokens in zip((FP32, BF16), steps, strict=True)
        )
    )

    assert ("Tokens per step" in [each.head for each in content.columns(group)]) == shown


@pytest.mark.parametrize("split", [(8, 1), (2, 4)])
def test_the_same_sequences_in_other_micro_batches_need_no_note(split: tuple[int, int]) -> None:
    group = group_of(shaped(32, 8, 1, memory=100), shaped(32, *split, memory=50))

    assert group.training_note == ""


def test_points_without_values_are_in_no_series() -> None:
    assert lines(result(lora(4), numbers(qa=0.5)), result(lora(8), status="oom")) == {}


def test_unknown_numeric_settings_are_axes_too() -> None:
    found = lines(
        *(result({"loss": {"method": "c", "tokens": t}}, numbers(qa=0.5)) for t in (1, 2))
    )

    assert found == {"tokens": [("c", [1, 2])]}


def quantized(method: str, precision: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return precision | {"quantization": {"method": method, **fields}}


def test_bits_go_from_precision_to_quantization() -> None:
    found = lines(
        *(
            result(each, numbers(qa=0.5))
            for each in (FP32, BF16, quantized("int8", BF16), quantized("nf4", BF16))
        )
    )

    assert found == {"bits": [("no other technique", [4, 8, 16, 32])]}


def test_bits_never_jump_over_a_second_difference() -> None:
    found = lines(
        result(FP32, numbers(qa=0.5)),
        result(quantized("nf4", BF16), numbers(qa=0.5)),
        result(quantized("int8", BF16), numbers(qa=0.5)),
    )

    assert found == {"bits": [("bf16", [4, 8])]}


def test_a_prediction_of_which_little_is_known_flattens_no_other() -> None:
    """LLM.int8() may take ten times as long, by its values; the others' curves stay readable."""
    plan = store.load(RESULTS / "llama-3.3-70b-claims.plan" / "example")
    (group,) = (each for each in fronts.groups(plan) if each.kind == "predicted")
    part = curves.Part(group=group, axis=series.BITS, lines=series.series(group)[series.BITS])
    steps = [p.estimates["step_seconds"] for line in part.drawn for _, p in line.points]
    longest = max(each.value for each in steps)
    axes = Figure().subplots()
    curves._series_panel(axes, part, "step_seconds")

    assert max(each.interval[1] for each in steps if each.interval) > curves.BEYOND * longest
    assert longest < axes.get_ylim()[1] <= 1.2 * curves.BEYOND * longest
    assert axes.get_xlabel().endswith("(bars that leave the top go on)")


@pytest.mark.parametrize(
    ("value", "text"),
    [(99.99, "100"), (99.94, "99.9"), (-99.99, "-100"), (0.9999, "1.00"), (1234.5, "1234")],
)
def test_what_rounds_up_to_another_digit_has_as_many_as_any(value: float, text: str) -> None:
    assert units.significant(value) == text


def test_two_methods_of_the_same_width_are_two_series() -> None:
    found = lines(
        *(result(each, numbers(qa=0.5)) for each in (BF16, *(quantized(m, BF16) for m in "ab"))),
        result(quantized("nf4", BF16), numbers(qa=0.5)),
        result(quantized("fp4", BF16), numbers(qa=0.5)),
    )

    assert found == {
        "bits": [
            ("bf16 + nf4", [4, 16]),
            ("bf16 + fp4", [4, 16]),
        ]
    }


def test_a_method_that_is_told_its_bits_shares_no_line_with_others() -> None:
    found = lines(
        *(
            result(each, numbers(qa=0.5))
            for each in (
                BF16,
                quantized("int8", BF16),
                quantized("nf4", BF16, double=False),
                quantized("nf4", BF16, double=True),
                quantized("gptq", BF16, bits=3, group=128),
            )
        )
    )

    assert found == {
        "bits": [
            ("bf16 + nf4, int8", [4, 8, 16]),
            ("bf16 + nf4 double", [4, 16]),
            ("bf16 + gptq", [3, 16]),
        ]
    }


def test_the_methods_of_one_context_are_drawn_before_other_contexts() -> None:
    found = [
        result(each | extra, numbers(qa=0.5), label=f"bf16{plus}")
        for plus, extra in ((" + lora", {"adapters": {"method": "lora", "rank": 4}}), ("", {}))
        for each in (BF16, quantized("nf4", BF16), quantized("gptq", BF16, bits=4))
    ]
    every = series.series(group_of(*found))[series.BITS]

    assert [line.name for line in series.ranked(every)] == [
        "bf16 + nf4",
        "bf16 + gptq",
        "bf16 + lora + nf4",
        "bf16 + lora + gptq",
    ]
    assert series.ranked([]) == []


def part_of(*results: Result) -> curves.Part:
    group = group_of(*results)
    ((axis, found),) = series.series(group).items()
    return curves.Part(group=group, axis=axis, lines=found)


def kinds(*values: tuple[str, float, float]) -> list[Result]:
    """A point at ranks 1 and 2 for each kind, which use so much memory."""
    return [
        result(
            FP32 | {"adapters": {"method": kind, "rank": rank}}, numbers(memory=size), label="fp32"
        )
        for kind, *sizes in values
        for rank, size in enumerate(sizes, start=1)
    ]


def test_lines_that_lie_on_each_other_are_one_with_both_names() -> None:
    apart = part_of(*kinds(("a", 100, 200), ("b", 100, 150)))
    alike = part_of(*kinds(("a", 100, 200), ("b", 101, 201), ("c", 50, 60)))

    assert [line.name for line in apart.drawn] == ["fp32 + a", "fp32 + b"]
    assert [line.name for line in alike.drawn] == ["fp32 + a, b", "fp32 + c"]


def test_only_so_many_lines_are_drawn() -> None:
    part = part_of(*kinds(*((kind, 100.0 * at, 10.0) for at, kind in enumerate("abcdefgh"))))

    assert len(part.lines) == 8
    assert len(part.drawn) == curves.MAX_SERIES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((100, 80), "peak tensor memory 20 % less"),
        ((100, 110), "peak tensor memory 10 % more"),
        ((100, 450), "peak tensor memory 4.5 times as much"),
        ((1000, 1001), "peak tensor memory 0.10 % more"),
        ((100, 100), "peak tensor memory the same"),
    ],
)
def test_the_title_of_a_curve_says_what_the_first_line_does(
    values: tuple[float, float], expected: str, tmp_path: Path
) -> None:
    part = part_of(*kinds(("lora", *values)))
    picture = curves.series_figure([part], "series", style.Folder(tmp_path))

    assert picture is not None
    assert picture.title == f"Adapter rank from 1 to 2 (fp32): {expected}"


@pytest.mark.slow
def test_the_title_of_a_curve_names_the_methods_of_its_line(tmp_path: Path) -> None:
    part = part_of(*kinds(("a", 100, 200), ("b", 101, 201)))
    picture = curves.series_figure([part], "series", style.Folder(tmp_path))

    assert picture is not None
    assert picture.title.startswith("Adapter rank from 1 to 2 (fp32 with a and b adapters): ")
    assert "fp32 + a, b" in picture.svg


def test_given_bits_count() -> None:
    (point,) = tables.points([result(quantized("gptq", BF16, bits=3), numbers(qa=0.5))])

    assert series.bits(point) == 3


def test_mixed_precision_has_no_width_of_its_own() -> None:
    (point,) = tables.points([result({"precision": {"method": "fp16"}}, numbers(qa=0.5))])

    assert series.bits(point) is None


def test_series_of_one_name_are_told_apart_by_what_differs() -> None:
    found = [
        result(
            {"adapters": {"method": "lora", "rank": rank, "kind": kind}},
            numbers(qa=0.5),
            label="lora",
        )
        for kind in "abcdefgh"
        for rank in (1, 2)
    ]
    (every,) = series.series(group_of(*found)).values()

    assert len(every) == 8
    assert len({line.name for line in every}) == 8
    assert every[0].name == "lora + lora kind a"
    assert [line.name for line in series.ranked(every)] == [line.name for line in every]


def test_findings_name_the_best_within_the_limits_and_its_smaller_twins() -> None:
    near = {"qa": (0.55, 0.65)}
    group = group_of(
        result(FP32, numbers({"qa": (0.85, 0.95)}, memory=400 * 2**20, qa=0.9)),
        result(BF16, numbers(near, memory=200 * 2**20, qa=0.61)),
        result(lora(4), numbers(near, memory=100 * 2**20, qa=0.60), label="lora r4"),
        objectives=OBJECTIVES,
        limits={"peak_tensor_bytes": 300 * 2**20},
    )

    *told, covered = findings.findings(group)

    # (1 - 100/300) x 0.60 and (1 - 200/300) x 0.01 of the box; what is too large covers nothing.
    assert "better than peak tensor memory 300 MiB and accuracy on qa 0 % which" in covered
    assert "the front reaches: 40.3 % (" in covered
    assert told == [
        "3 points, measured on the reference model: 3 ok.",
        "The Pareto front over peak tensor memory and accuracy on qa has 2 points (1 of them "
        "within the limits), and the noise of the measurements does not rule out 1 more (all of "
        "them within the limits).",
        "Smallest peak tensor memory: lora r4 with 100 MiB, 75 % less than fp32.",
        "Best accuracy on qa within peak tensor memory ≤ 300 MiB: bf16 (61.0 ± 5.0 %, 200 MiB). "
        "Smaller and not distinguishable from it: lora r4 (60.0 ± 5.0 %, 100 MiB).",
    ]


def test_a_terminal_folds_the_names_of_points_and_cuts_none() -> None:
    """What sets two points apart may stand in the middle of a long name."""
    label = "bf16 + nf4 double + lora r4 + checkpointing 1 + fsdp2 x8 + chunked tokens 512"
    single = label.replace(" + fsdp2 x8", "")
    run = run_of(
        result(lora(4), numbers(memory=2**30, step=1.0), label=label),
        result(lora(8), numbers(memory=2**31, step=0.5), label=single),
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal.table(run, 80))
    lines = console.export_text().splitlines()

    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert sum("fsdp2" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("error", "text"), [(0.0, "0.00%"), (-1e-9, "0.00%"), (0.012, "+1.20%"), (-0.3, "-30.00%")]
)
def test_an_error_that_rounds_to_nothing_has_no_sign(error: float, text: str) -> None:
    found = predictions.PredictionError(
        name="a", measurement="b", predicted="c", measured="d", error=error
    )

    assert found.error_text == text


def test_a_front_says_how_many_of_its_points_fit_on_the_device() -> None:
    """Of a plan what the device has is a limit of its own, and the verdict speaks for it."""
    verdicts: tuple[Verdict, ...] = ("does not fit", "tight", "fits", "fits")

    def planned(**limits: float) -> fronts.Group:
        return group_of(
            *(
                result(
                    lora(rank),
                    numbers(memory=2**30 * rank, step=9.0 - rank)
                    | {"peak_process_bytes": Measurement(value=2**30 * rank, unit="B")},
                    kind="predicted",
                ).model_copy(
                    update={
                        "fit": Fit(
                            device="h100-80gb",
                            verdict=verdict,
                            needed=(2**30, 2**30),
                            capacity=(2**30, 2**30),
                            phase="train",
                        )
                    }
                )
                for rank, verdict in zip((4, 3, 2, 1), verdicts, strict=True)
            ),
            objectives=["peak_tensor_bytes", "step_seconds"],
            limits=limits,
        )

    names = "over peak tensor memory and step time"
    told = "4 points (2 of them fit on h100-80gb, 1 tightly)."
    group = planned(peak_process_bytes=2**31)
    assert f"The Pareto front {names} has {told}" in findings.findings(group)
    assert terminal.summary(group) == f"Front {names}: {told}"
    assert terminal.summary(planned(step_seconds=7.0)) == (
        f"Front {names}: 4 points (1 of them fits on h100-80gb within the limits, 1 tightly)."
    )


def test_findings_say_when_no_point_meets_the_limits() -> None:
    group = group_of(
        result(FP32, numbers(memory=2**30, step=1.0)), limits={"peak_tensor_bytes": 2**20}
    )

    assert findings.findings(group)[-1] == "No point meets peak tensor memory ≤ 1 MiB."


def test_without_accuracy_the_fastest_is_named() -> None:
    group = group_of(
        result(FP32, numbers(memory=2**30, step=2.0)),
        result(BF16, numbers(memory=2**29, step=1.0)),
    )

    assert "Fastest step: bf16 (1.00 s, 512 MiB)." in findings.findings(group)


def test_predictions_are_shown_with_their_error() -> None:
    found = fronts.groups(
        run_of(
            result(FP32, numbers(memory=200 * 2**20)),
            result(FP32, numbers(memory=210 * 2**20), kind="predicted"),
            result(BF16, numbers(memory=90 * 2**20), kind="predicted"),
        )
    )
    (error,) = predictions.prediction_errors(found)

    assert (error.name, error.predicted, error.measured) == ("fp32", "210 MiB", "200 MiB")
    assert error.error == pytest.approx(0.05)


def test_errors_of_predictions_are_summed_up_by_quantity() -> None:
    measured, predicted = (FP32, BF16, NF4), (1.1, 0.98, 1.0)
    found = fronts.groups(
        run_of(
            *(result(each, numbers(memory=100 * 2**20, step=1.0)) for each in measured),
            *(
                result(each, numbers(memory=100 * 2**20 * by, step=2.0), kind="predicted")
                for each, by in zip(measured, predicted, strict=True)
            ),
        )
    )

    assert predictions.summary(predictions.prediction_errors(found)) == [
        "Step time of 3 points: median error 100.00%, largest +100.00% (fp32).",
        "Peak tensor memory of 3 points: median error 2.00%, largest +10.00% (fp32).",
    ]


def test_a_rehearsal_has_no_section_of_its_own_and_a_plan_has() -> None:
    """What was predicted for a device, or was not measured, has more to tell than its error."""

    def kinds(*predicted: Result) -> list[str]:
        both = run_of(result(FP32, numbers(memory=2, step=1.0)), *predicted)
        return [group.kind for group in predictions.apart(fronts.groups(both))]

    assert kinds(result(FP32, numbers(memory=2), kind="predicted")) == ["measured"]
    assert kinds(result(FP32, numbers(memory=2, step=1.0), kind="predicted")) == [
        "measured",
        "predicted",
    ]
    assert kinds(
        result(FP32, numbers(memory=2), kind="predicted"),
        result(BF16, numbers(memory=1), kind="predicted"),
    ) == ["measured", "predicted"]


def test_kinds_are_not_warned_of_as_different_environments() -> None:
    """Predictions are made on another machine than they are for, and are compared with none."""

    def warned(*results: Result) -> bool:
        run = run_of(*results)
        return any(
            "come from different environments" in text
            for text in content.cautions(run, fronts.groups(run))
        )

    here, there = (Environment(hardware={"cpu": name}) for name in ("a", "b"))
    first = result(FP32, numbers(memory=2)).model_copy(update={"environment": here})
    other = first.model_copy(update={"environment": there})

    assert not warned(first, other.model_copy(update={"kind": "predicted"}))
    assert warned(first, other.model_copy(update={"repeat": 1}))


def test_what_is_not_known_of_all_predictions_alike_puts_none_of_them_first() -> None:
    wide = {"step": (1.0, 9.0)}
    faster = numbers(wide, memory=100, step=3.0)
    slower = numbers(wide, memory=100, step=4.0)

    def labels(kind: Kind) -> list[str]:
        group = group_of(
            result(FP32, faster, kind=kind),
            result(BF16, slower, kind=kind),
            objectives=["peak_tensor_bytes", "step_seconds"],
        )
        return [group.standing(point).label for point in group.ordered]

    assert labels("predicted") == ["front", "dominated"]
    assert labels("measured") == ["possible", "possible"]


def test_a_plan_says_what_fits_and_what_is_nearest_to_the_rest() -> None:
    def planned(settings: dict[str, Any], verdict: Verdict, advice: str | None) -> Result:
        fit = Fit(
            device="h100-80gb",
            verdict=verdict,
            needed=(1, 2),
            capacity=(1, 2),
            phase="train",
            advice=advice,
        )
        made = result(settings, numbers(memory=100), kind="predicted")
        return made.model_copy(update={"fit": fit})

    group = group_of(
        planned(FP32, "fits", None),
        planned(BF16, "does not fit", "nf4 saves 9 GiB: fits"),
        planned(lora(4), "tight", None),
    )

    assert {point.status_text for point in group.points} == {"fits", "tight", "does not fit"}
    assert {(each.status, each.reason) for each in content.unfit(group)} == {
        ("does not fit", "nf4 saves 9 GiB: fits"),
        ("tight", "no other point of the suite fits either"),
    }


def test_a_sharded_plan_is_tight_where_it_leaves_less_than_such_were_off_by() -> None:
    def verdict(degree: int, share: float) -> str | None:
        fit = Fit(
            device="h100-80gb",
            verdict="fits",
            needed=(1, int(1000 * share)),
            capacity=(1000, 1001),
            phase="train",
        )
        sharding = {"sharding": {"method": "fsdp2", "degree": degree}} if degree > 1 else {}
        made = result({**FP32, **sharding}, numbers(memory=100), kind="predicted")
        return group_of(made.model_copy(update={"fit": fit})).points[0].verdict

    off = sharded_error()
    assert 0 < off < 0.5
    assert [verdict(2, share) for share in (0.99 - off, 1.01 - off)] == ["fits", "tight"]
    assert verdict(1, 0.999) == "fits"


def test_reasons_are_grouped_with_their_points() -> None:
    skipped = [
        result(lora(rank), status="skipped", reason="no", label=f"r{rank}") for rank in (1, 2)
    ]
    group = group_of(*skipped, result(FP32, status="failed", reason="bug"))

    assert [(each.status, each.reason, each.names) for each in content.endings(group)] == [
        ("failed", "bug", ("fp32",)),
        ("skipped", "no", ("r1", "r2")),
    ]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/some/bin/tradebench", "run", "my suite.yaml"], "tradebench run 'my suite.yaml'"),
        (["run", "s.yaml"], "tradebench run s.yaml"),
        ([], ""),
    ],
)
def test_the_command_can_be_pasted(argv: list[str], expected: str) -> None:
    assert content.command(run_of(argv=argv)) == expected


def test_different_environments_are_a_caution() -> None:
    first = result(FP32, numbers(memory=1))
    second = result(BF16, numbers(memory=1)).model_copy(
        update={"environment": first.environment.model_copy(update={"hardware": {"cpu": "b"}})}
    )
    run = run_of(first, second)

    assert len(content.places(run)) == 2
    assert "different environments" in content.cautions(run, fronts.groups(run))[0]


def test_times_of_trials_that_ran_beside_each_other_are_a_caution() -> None:
    def cautions(**variables: str) -> str:
        shared = Environment(variables=variables)
        made = result(FP32, numbers(step=1)).model_copy(update={"environment": shared})
        run = run_of(made)
        return " ".join(content.cautions(run, fronts.groups(run)))

    assert "1 result came about while up to 4 trials ran at once" in cautions(jobs="4")
    assert "at once" not in cautions(threads="1")
    assert "at once" not in cautions(jobs="4", CUDA_VISIBLE_DEVICES="3")


def test_code_that_changed_is_a_caution_and_more_techniques_are_not() -> None:
    def with_code(settings: dict[str, Any], **code: str) -> Result:
        made = result(settings, numbers(memory=1))
        return made.model_copy(
            update={"environment": made.environment.model_copy(update={"code": code})}
        )

    same = run_of(with_code(FP32, program="a"), with_code(BF16, program="a", lora="c"))
    changed = run_of(with_code(FP32, program="a"), with_code(BF16, program="b"))
    sentence = "The code changed between points of this run: program."

    assert sentence not in content.cautions(same, fronts.groups(same))
    assert sentence in content.cautions(changed, fronts.groups(changed))
    assert [len(content.places(run)) for run in (same, changed)] == [1, 1]


def test_a_run_without_repeats_says_so() -> None:
    once = run_of(result(FP32, numbers(memory=1)))
    twice = run_of(*(result(FP32, numbers(memory=1), repeat=repeat) for repeat in range(2)))

    assert [
        any("Every point ran once" in each for each in content.cautions(run, fronts.groups(run)))
        for run in (once, twice)
    ] == [True, False]


def test_full_training_is_the_reference_of_a_rank_curve() -> None:
    group = group_of(
        result(FP32, numbers(qa=0.5)), *(result(lora(r), numbers(qa=0.5)) for r in (1, 2))
    )
    ((line,),) = series.series(group).values()

    assert [x for x, _ in line.points] == [1, 2]
    assert line.reference is not None
    assert line.reference.name == "fp32"


def test_the_frame_keeps_bytes_whole_and_every_result() -> None:
    found = tables.frame(
        [result(FP32, numbers(memory=2**53 + 1)), result(BF16, status="oom", reason="no")]
    )

    assert found["value"].iloc[0] == 2**53 + 1
    assert list(found["status"]) == ["ok", "oom"]
