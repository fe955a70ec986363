"""Plans: verdicts against every phase by itself, prices against arithmetic, tables cell by cell."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from tradebench import store
from tradebench.devices import GIB, find
from tradebench.plan import plan
from tradebench.plan.alternatives import alternatives
from tradebench.plan.cache import Cache
from tradebench.plan.fit import advise, fit
from tradebench.plan.price import Price, Range, of_suite, of_tokens, parse_count, step
from tradebench.plan.table import (
    MAX_ROWS,
    ORDER,
    Question,
    draw,
    heads,
    markdown,
    over_budget,
    rows,
    summary,
)
from tradebench.plan.watcher import Watcher
from tradebench.result import PHASES, Fit, Measurement, Result, Verdict
from tradebench.target import Target
from tradebench.techniques.checkpointing import Checkpointing
from tradebench.trial import Budget, Trial

H100 = find("h100-80gb")
Settings = Mapping[str, Mapping[str, Any]]

BF16: Settings = {"precision": {"method": "bf16"}}
LORA: Settings = {"adapters": {"method": "lora", "rank": 4}}
NF4: Settings = {"quantization": {"method": "nf4"}}
RECOMPUTED: Settings = {"checkpointing": {"method": "full", "ratio": 1.0}}
STEPS = 100


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def trial_of(settings: Settings) -> Trial:
    return Trial.from_payload(
        {
            "model": {"name": "reference"},
            "budget": {"steps": STEPS, "data": "random"},
            "evaluate": {},
            "settings": settings,
        }
    )


def process(low: float, high: float) -> Measurement:
    """What the device sees of a process, in GiB."""
    middle = (low + high) / 2
    return Measurement(
        value=int(middle * GIB), unit="B", interval=(int(low * GIB), int(high * GIB))
    )


def seconds(value: float) -> Measurement:
    return Measurement(value=value, unit="s", interval=(value * 0.8, value * 1.5))


def point(
    settings: Settings,
    *,
    needs: float | None = None,
    takes: float | None = None,
    rate: float | None = None,
    **more: Any,
) -> Result:
    """A predicted Result: GiB it needs, give or take one, seconds of a step, tokens a second."""
    trial = trial_of(settings)
    measurements = {"peak_weights_bytes": Measurement(value=7 * GIB, unit="B")}
    if needs is not None:
        measurements["peak_process_bytes"] = process(needs - 1, needs + 1)
    if takes is not None:
        measurements["step_seconds"] = seconds(takes)
    if rate is not None:
        measurements["tokens_per_second"] = Measurement(value=rate, unit="1/s", better="more")
    fields = {"status": "ok", "measurements": measurements, "fit": fit(measurements, H100)}
    return Result(
        kind="predicted",
        suite="small",
        trial=trial.id,
        label=trial.label,
        **trial.payload(),
        **(fields | more),
    )


# Whether a point fits.


spans = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda ends: tuple(sorted(ends)))


@given(needs=st.dictionaries(st.sampled_from(PHASES), spans, min_size=1), capacity=spans)
@settings(derandomize=True, max_examples=200, deadline=None)
def test_a_point_fits_where_every_phase_does_whatever_is_not_known(
    needs: dict[Any, tuple[int, int]], capacity: tuple[int, int]
) -> None:
    measurements = {
        f"peak_process_bytes.{phase}".removesuffix(".train"): Measurement(
            value=low, unit="B", interval=(low, high)
        )
        for phase, (low, high) in needs.items()
    }
    expected: Verdict = "tight"
    if all(high <= room for _, high in needs.values() for room in capacity):
        expected = "fits"
    elif any(all(low > room for room in capacity) for low, _ in needs.values()):
        expected = "does not fit"
    found = fit(measurements, replace(H100, id="a-card", reported_bytes=capacity))

    assert found is not None
    assert (found.device, found.verdict, found.capacity) == ("a-card", expected, capacity)
    assert found.needed == tuple(map(max, zip(*needs.values(), strict=True)))
    assert needs[found.phase][1] == found.needed[1]
    assert found.advice is None


@pytest.mark.parametrize(
    ("needs", "verdict"),
    [
        ((6, 9), "fits"),
        ((6, 10), "fits"),
        ((6, 11), "tight"),
        ((11, 14), "tight"),
        ((12, 14), "tight"),
        ((13, 14), "does not fit"),
    ],
)
def test_ends_that_meet_leave_room(needs: tuple[int, int], verdict: Verdict) -> None:
    device = replace(H100, reported_bytes=(10 * GIB, 12 * GIB))
    found = fit({"peak_process_bytes": process(*needs)}, device)

    assert found is not None
    assert found.verdict == verdict


def test_what_is_known_for_certain_is_an_interval_of_one_value() -> None:
    found = fit({"peak_process_bytes.load": Measurement(value=7, unit="B")}, H100)

    assert found is not None
    assert (found.needed, found.phase) == ((7, 7), "load")


def test_nothing_fits_or_not_where_no_device_was_predicted_for() -> None:
    assert fit({"peak_tensor_bytes": Measurement(value=7, unit="B")}, H100) is None


def test_a_fit_travels_with_its_result() -> None:
    result = point(BF16, needs=200)

    assert Result.model_validate_json(result.to_json()) == result
    assert tuple(get_args(Verdict)) == ORDER
    with pytest.raises(ValidationError):
        Fit.model_validate({**dict(result.fit or ()), "verdict": "fits perhaps"})


# Advice.


def advice(results: Sequence[Result]) -> dict[str, str | None]:
    return {result.label: result.fit.advice for result in advise(results) if result.fit is not None}


def test_the_nearest_point_that_fits_is_advised() -> None:
    """One slot is nearer than two, however much faster those are."""
    found = advice(
        [
            point({**BF16, **LORA}, needs=120, takes=1),
            point({**BF16, **LORA, **RECOMPUTED}, needs=60, takes=3),
            point({**BF16, **LORA, **RECOMPUTED, **NF4}, needs=20, takes=0.1),
        ]
    )

    assert found["bf16 + lora r4"] == "checkpointing 1 saves 60 GiB: fits with 18 GiB to spare"


def test_of_points_as_near_the_fastest_is_advised() -> None:
    results = [
        point({**BF16, **LORA}, needs=120),
        point({**BF16, **LORA, **RECOMPUTED}, needs=60),
        point({**BF16, **LORA, **NF4}, needs=50, takes=2),
        point({**NF4, **LORA}, needs=40, takes=1),
    ]

    assert advice(results)["bf16 + lora r4"] == "nf4 saves 70 GiB: fits with 28 GiB to spare"


def test_a_technique_that_has_to_go_is_named() -> None:
    results = [point({**LORA, **RECOMPUTED}, needs=120), point(RECOMPUTED, needs=60)]

    assert advice(results)["lora r4 + checkpointing 1"] == (
        "adapters off saves 60 GiB: fits with 18 GiB to spare"
    )


def test_several_changes_are_named_together() -> None:
    results = [point({}, needs=90), point({**NF4, **LORA}, needs=10)]

    assert advice(results)["baseline"] == ("nf4 and lora r4 save 80 GiB: fits with 68 GiB to spare")


def test_only_points_that_are_in_need_are_advised() -> None:
    results = [point({}, needs=79.2), point(BF16, needs=40), point(RECOMPUTED, status="failed")]
    tight, fitting, failed = advise(results)

    assert [result.fit.verdict for result in (tight, fitting) if result.fit] == ["tight", "fits"]
    assert tight.fit is not None
    assert tight.fit.advice == "bf16 saves 39 GiB: fits with 38 GiB to spare"
    assert (fitting, failed) == tuple(results[1:])


def reshaped(
    needs: float, *, takes: float | None = None, rate: float | None = None, **budget: int
) -> Result:
    """A point of another shape."""
    made = point(BF16, needs=needs, takes=takes, rate=rate)
    whole = Trial.from_payload({**trial_of(BF16).payload(), "budget": {**made.budget, **budget}})
    return made.model_copy(update={**whole.payload(), "trial": whole.id})


def test_as_many_sequences_in_smaller_batches_are_a_change_like_any_other() -> None:
    first, _ = advise([reshaped(120, batch=8), reshaped(60, batch=2, accumulation=4)])

    assert first.fit is not None
    assert first.fit.advice == (
        "batch 2 x accumulation 4 instead of 8 x 1 saves 60 GiB: fits with 18 GiB to spare"
    )


@pytest.mark.parametrize(
    ("budget", "tried"),
    [
        ({"batch": 8}, {(1, 8)}),
        ({"batch": 2, "accumulation": 4}, {(1, 8)}),
        ({"batch": 8192}, set()),  # a prediction goes through every micro-batch
        ({"batch": 1}, set()),
        ({"batch": 2, "accumulation": 64}, set()),
    ],
)
def test_a_step_is_tried_in_smaller_batches_as_long_as_they_are_few(
    budget: dict[str, int], tried: set[tuple[int, int]]
) -> None:
    over = reshaped(120, **budget)
    found = {
        (trial.budget.batch, trial.budget.accumulation)
        for trial in alternatives([over], lambda trial: False)
    }

    assert found - {(over.budget["batch"], over.budget["accumulation"])} == tried


def test_training_on_less_is_the_last_resort_and_is_said() -> None:
    short, several = reshaped(30, sequence=256), point({**NF4, **LORA, **RECOMPUTED}, needs=60)
    lone, beside = advise([reshaped(120), short])[0], advise([reshaped(120), short, several])[0]

    assert lone.fit is not None
    assert lone.fit.advice == (
        "sequence 256 instead of 512 saves 90 GiB: fits with 48 GiB to spare, "
        "but a step trains on 1 x 256 tokens at most, not 1 x 512"
    )
    assert beside.fit is not None
    assert beside.fit.advice is not None
    assert beside.fit.advice.startswith(
        "precision off and nf4 and lora r4 and checkpointing 1 save"
    )


def test_shorter_sequences_are_tried_where_no_technique_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(trials: Iterable[Trial], *_: Any, **__: Any) -> Iterator[tuple[Trial, Any]]:
        for trial in trials:
            made = prediction(trial.budget.sequence / 4)
            # However long it takes, what trains on most comes first.
            step = seconds(trial.budget.sequence).model_dump(mode="json")
            made["measurements"]["step_seconds"] = step
            yield trial, made

    monkeypatch.setattr(plan, "predict", ask)
    large = trial_of(BF16).model_copy(update={"budget": Budget(steps=STEPS, sequence=1024)})
    (over,) = plan.make("small", [large], TARGET, H100).results

    assert over.fit is not None
    assert over.fit.advice is not None
    assert over.fit.advice.startswith("sequence 256 instead of 1024 saves 192 GiB")
    assert over.fit.advice.endswith("at most, not 1 x 1024 (not in the suite)")


def test_nothing_is_advised_where_nothing_fits() -> None:
    results = [point({}, needs=100), point(BF16, needs=90)]

    assert advise(results) == results


# Prices.


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("20000", 20_000),
        ("50M", 50 * 10**6),
        (" 1.5b ", 1_500_000_000),
        ("0.25k", 250),
        ("3 T", 3 * 10**12),
        ("1e8", 10**8),
        ("2.5E6", 2_500_000),
    ],
)
def test_tokens_are_counted_as_people_write_them(text: str, tokens: int) -> None:
    assert parse_count(text) == tokens


@pytest.mark.parametrize(
    "text", ["", "M", "0", "0.0B", "-5M", "1e6M", "1e", "1e-3", "5 million", "1.B", "50MB"]
)
def test_anything_else_is_no_number_of_tokens(text: str) -> None:
    with pytest.raises(ValueError, match=r"write 50M, 1\.5B or 20000") as told:
        parse_count(text)

    assert repr(text) in str(told.value)


def test_a_run_takes_its_tokens_at_the_predicted_rate() -> None:
    """7.2 million tokens at a thousand a second: two hours, on four GPUs at 2.50 an hour."""
    found = of_tokens(point({}, takes=0.5, rate=1000), 4, 7_200_000, 2.5)

    assert found == Price(
        hours=Range(1.6, 2.0, 3.0), gpu_hours=Range(6.4, 8.0, 12.0), money=Range(16.0, 20.0, 30.0)
    )


def test_a_run_has_no_price_where_there_is_none() -> None:
    found = of_tokens(point({}, takes=0.5, rate=1000), 1, 10**6, None)

    assert found is not None
    assert found.money is None


@pytest.mark.parametrize("known", [{}, {"takes": 0.5}, {"rate": 1000}])
def test_a_point_of_unknown_speed_has_no_price(known: dict[str, float]) -> None:
    assert of_tokens(point({}, **known), 1, 10**6, 2.0) is None


def test_a_suite_takes_all_steps_of_every_point_that_may_fit() -> None:
    results = [
        point({}, needs=40, takes=36),
        point(BF16, needs=79.2, takes=72),
        point(LORA, needs=120, takes=360),
        point(RECOMPUTED, needs=20),
        point(NF4, status="skipped", measurements={}, fit=None),
    ]
    found = of_suite(results, 3.0, {})

    assert found is not None
    for price, value in ((found.hours, 3.0), (found.gpu_hours, 3.0), (found.money, 9.0)):
        assert price is not None
        assert [price.low, price.value, price.high] == pytest.approx(
            [0.8 * value, value, 1.5 * value]
        )


def test_every_gpu_of_a_point_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpointing, "ranks", 8)
    found = of_suite([point({}, takes=36), point(RECOMPUTED, takes=36)], 1.0, {})

    assert found is not None
    assert (found.hours.value, found.gpu_hours.value) == (2.0, 9.0)
    assert found.money == found.gpu_hours


def test_a_suite_of_unknown_speed_has_no_price() -> None:
    assert of_suite([point({}, needs=40)], 3.0, {}) is None
    assert step(point({}, needs=40)) is None


# The table.

PLAIN = Question()
ASKED = Question(tokens=7_200_000, price=2.5)
SUITE = [
    point(LORA, needs=120, takes=1.0, rate=2000.0),
    point({**LORA, **NF4}, needs=30, takes=3.0, rate=500.0),
    point({}, needs=79.2, takes=0.25, rate=4000.0),
    point(BF16, needs=40, takes=0.5, rate=1000.0),
    point(NF4, status="skipped", measurements={}, fit=None, reason="It takes no gradient."),
    point(RECOMPUTED, status="failed", measurements={}, fit=None, reason="It could not be."),
]


def test_points_that_fit_come_first_and_the_fastest_of_them_first() -> None:
    found = rows(advise(SUITE), PLAIN)

    assert [(row.cells[0], row.verdict) for row in found] == [
        ("bf16", "fits"),
        ("nf4 + lora r4", "fits"),
        ("baseline", "tight"),
        ("lora r4", "does not fit"),
    ]
    assert found[-1].note == "nf4 saves 90 GiB: fits with 48 GiB to spare"
    assert {row.note for row in found[:2]} == {""}


def test_points_that_do_not_fit_are_sorted_by_what_they_need() -> None:
    found = rows([point({}, needs=200, takes=1), point(BF16, needs=100, takes=2)], PLAIN)

    assert [row.cells[0] for row in found] == ["bf16", "baseline"]


def test_a_row_says_what_was_asked_for() -> None:
    assert dict(zip(heads(SUITE, ASKED), rows(SUITE, ASKED)[0].cells, strict=True)) == {
        "point": "bf16",
        "verdict": "fits",
        "needs (GiB)": "39.0-41.0",
        "weights (GiB)": "7.00",
        "step (s)": "0.500 (0.400-0.750)",
        "hours": "2.00 (1.60-3.00)",
        "GPU-hours": "2.00 (1.60-3.00)",
        "money": "5.00 (4.00-7.50)",
    }


def test_without_a_device_a_row_has_its_tensors_and_no_verdict() -> None:
    sizes = {"peak_tensor_bytes": 5 * GIB, "peak_activations_bytes": GIB, "peak_other_bytes": GIB}
    measurements = {name: Measurement(value=size, unit="B") for name, size in sizes.items()}
    results = [point({}, measurements=measurements, fit=None)]

    assert dict(zip(heads(results, ASKED), rows(results, ASKED)[0].cells, strict=True)) == {
        "point": "baseline",
        "verdict": "",
        "needs (GiB)": "5.00",
        "activations (GiB)": "1.00",
    }
    assert summary(results, ASKED) == []


def test_a_point_of_unknown_speed_leaves_its_cells_empty() -> None:
    results = [point({}, needs=30, takes=1.0, rate=1000.0), point(BF16, needs=40)]
    _, untimed = rows(results, ASKED)

    assert len(untimed.cells) == len(heads(results, ASKED))
    assert untimed.cells[-4:] == ("", "", "", "")


def test_points_that_cannot_be_predicted_are_counted_by_reason() -> None:
    """And no empty table is drawn where no point could be."""
    reasons = ["set rank", "set rank", "read it"]
    results = [point({}, status="failed", measurements={}, fit=None, reason=r) for r in reasons]

    assert printed(results, PLAIN, 80) == [
        "2 points could not be predicted: set rank.",
        "1 point could not be predicted: read it.",
    ]


def test_the_summary_counts_every_point() -> None:
    fits, skipped, failed, cost = summary(SUITE, Question(price=2.0))
    taken = (0.25 + 0.5 + 3.0) * STEPS / 3600  # what is tight may fit

    assert fits == (
        "4 points on h100-80gb (79.1-79.4 GiB of it usable): 2 fit, 1 is tight and 1 does not fit."
    )
    assert skipped == "1 point skipped, with the reason in the report."
    assert failed == "1 point could not be predicted: It could not be."
    assert cost == (
        "Training every point that may fit once: "
        f"{taken:.3f} ({0.8 * taken:.4f}-{1.5 * taken:.3f}) GPU-hours, "
        f"{2 * taken:.3f} ({1.6 * taken:.3f}-{3 * taken:.3f}) in money, loading and "
        "evaluation not counted."
    )


@pytest.mark.parametrize(
    ("needs", "sentence"),
    [
        ([40, 40, 120, 120], "2 fit, 0 are tight and 2 do not fit."),
        ([40, 79.2, 79.2, 120], "1 fits, 2 are tight and 1 does not fit."),
        ([79.2], "0 fit, 1 is tight and 0 do not fit."),
    ],
)
def test_verdicts_are_counted_in_words(needs: list[float], sentence: str) -> None:
    points: list[Settings] = [{}, BF16, LORA, RECOMPUTED]
    (line,) = summary(
        [point(each, needs=size) for each, size in zip(points, needs, strict=False)], PLAIN
    )

    assert line.endswith(sentence)


def test_markdown_is_a_table_of_the_same_cells() -> None:
    results = advise(SUITE)
    table, _, told = markdown(results, ASKED).partition("\n\n")
    head, rule, *lines = (line.strip("| ").split(" | ") for line in table.splitlines())

    assert head == [*heads(results, ASKED), "nearest change that fits"]
    assert set(rule) == {"---"}
    assert [line[: len(head) - 1] for line in lines] == [
        [cell for cell in row.cells if cell] for row in rows(results, ASKED)
    ]
    assert lines[-1][-1] == "nf4 saves 90 GiB: fits with 48 GiB to spare"
    assert told.splitlines() == summary(results, ASKED)


def test_points_that_train_on_different_amounts_stand_by_throughput() -> None:
    """A short sequence takes a short step, and may still train slowly."""
    slow = reshaped(40, sequence=256, takes=1.0, rate=200.0)
    fast = reshaped(60, sequence=512, takes=2.0, rate=250.0)
    found = rows([slow, fast], PLAIN, categories=False)

    assert heads([slow, fast], PLAIN, categories=False)[-1] == "throughput (tokens/s)"
    assert [row.cells[-1] for row in found] == ["250", "200"]
    assert summary([slow, fast], PLAIN)[1].startswith(
        "Points train on sequences of at most 256 and 512 tokens. Compare throughput"
    )
    assert heads([fast], PLAIN, categories=False)[-1] == "step (s)"


def test_a_label_breaks_no_cell() -> None:
    result = point({}, needs=40).model_copy(update={"label": "this | that"})

    assert "| this \\| that | fits |" in markdown([result], PLAIN)


def printed(results: Sequence[Result], question: Question, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(draw(results, question, width))
    file = console.file
    assert isinstance(file, io.StringIO)
    return [line.strip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 120, 172, 173, 240])
def test_the_terminal_shows_every_cell_the_advice_and_the_summary(width: int) -> None:
    results = advise(SUITE)
    lines = printed(results, ASKED, width)
    text = " ".join(" ".join(lines).split())
    table = lines[0].startswith("needs") or lines[1].startswith("point")
    found = rows(results, ASKED, categories=table)
    names = [row.cells[0] for row in found]
    others = [line for line in lines if " saves " not in line]
    starts = [name for line in others for name in names if f"{line} ".startswith(f"{name} ")]

    assert starts == names
    for row in found:
        assert [cell for cell in row.cells if cell not in text] == []
    assert any(line.startswith("nf4 saves 90 GiB: fits with 48 GiB") for line in lines)
    assert text.endswith(" ".join(summary(results, ASKED)))
    assert table == (width >= 173)  # what its widest cells and a readable name come to


@pytest.mark.parametrize("width", [80, 240])
def test_a_long_table_says_how_much_it_leaves_out(width: int) -> None:
    results = [
        point({"adapters": {"method": "lora", "rank": rank}}, needs=40, takes=1.0)
        for rank in range(1, MAX_ROWS + 6)
    ]
    lines = printed(results, PLAIN, width)

    assert sum(line.startswith("lora r") for line in lines) == MAX_ROWS
    assert "and 5 more, all of them in the report" in lines


def test_a_budget_is_exceeded_where_it_may_be() -> None:
    """A step of 36 seconds makes an hour, and perhaps an hour and a half."""
    results = [point({}, takes=36)]

    assert over_budget(results, 1.5, {}) is None
    assert over_budget(results, 1.4, {}) == (
        "the suite takes 1.00 (0.800-1.50) GPU-hours, more than the budget of 1.40: leave points "
        "out, or take fewer steps or repeats"
    )


def test_no_budget_and_no_time_exceed_nothing() -> None:
    assert over_budget([point({}, takes=36)], None, {}) is None
    assert over_budget([point({}, needs=30)], 0.0, {}) is None


# Making a plan.


def prediction(gib: float, **more: Any) -> dict[str, Any]:
    measured = process(gib - 1, gib + 1).model_dump(mode="json")
    return {
        "status": "ok",
        "measurements": {"peak_process_bytes": measured},
        "warnings": [],
        "timeline": {"moments": [{"at": 0.0, "weights": int(gib)}]},
        **more,
    }


UNKNOWN = {"status": "failed", "reason": "Nobody knows."}


class Oracle:
    """Stands for the pool: answers by label, last trial first, and remembers who asked.

    Of points that it has no answer for it remembers apart that they were asked for.
    """

    def __init__(self, answers: Mapping[str, Mapping[str, Any]]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.beyond: list[str] = []

    def __call__(
        self, trials: Iterable[Trial], target: Target, **options: Any
    ) -> Iterator[tuple[Trial, Mapping[str, Any]]]:
        for trial in reversed(list(trials)):
            known = trial.label in self.answers
            (self.asked if known else self.beyond).append(trial.label)
            yield trial, self.answers.get(trial.label, UNKNOWN)


class Told(Watcher):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.of: list[str] = []
        self.more = 0

    def expect(self, more: int) -> None:
        self.more += more

    def predicted(self, label: str) -> None:
        self.of.append(label)


TRIALS = [trial_of(settings) for settings in (BF16, NF4, {**NF4, **LORA}, RECOMPUTED)]
TARGET = Target(device=H100.id)


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    answers = {
        "bf16": prediction(120, warnings=["One cannot know.", "One cannot know."]),
        "nf4 + lora r4": prediction(20),
        "checkpointing 1": {"status": "failed", "reason": "It could not be."},
    }
    asked = Oracle(answers)
    monkeypatch.setattr(plan, "predict", asked)
    return asked


def test_every_point_ends_as_a_result_in_the_order_of_the_suite(oracle: Oracle) -> None:
    made = plan.make("small", TRIALS, TARGET, H100)
    results = {result.label: result for result in made.results}

    assert [result.trial for result in made.results] == [trial.id for trial in TRIALS]
    assert {label: result.status for label, result in results.items()} == {
        "bf16": "ok",
        "nf4": "skipped",
        "nf4 + lora r4": "ok",
        "checkpointing 1": "failed",
    }
    assert {(result.kind, result.suite) for result in made.results} == {("predicted", "small")}
    assert oracle.asked == ["checkpointing 1", "nf4 + lora r4", "bf16"]
    assert results["nf4"].reason == " ".join(TRIALS[1].conflicts())
    assert results["checkpointing 1"].reason == "It could not be."
    assert results["bf16"].warnings == ("One cannot know.",)


def test_a_plan_says_what_it_was_made_for_and_what_would_fit(oracle: Oracle) -> None:
    over, _, fitting, failed = plan.make("small", TRIALS, TARGET, H100).results

    assert over.environment.hardware == {"predicted_for": "NVIDIA H100 80GB HBM3"}
    assert {"precision.bf16", "program"} <= set(over.environment.code)
    assert [result.fit.verdict for result in (over, fitting) if result.fit] == [
        "does not fit",
        "fits",
    ]
    assert over.fit is not None
    assert over.fit.advice is not None
    assert over.fit.advice.startswith("precision off and nf4 and lora r4 save 100 GiB")
    assert failed.fit is None


def test_without_a_device_nothing_fits_or_not(oracle: Oracle) -> None:
    made = plan.make("small", TRIALS, Target(), None)

    assert [(result.fit, result.environment.hardware) for result in made.results] == [
        (None, {})
    ] * 4


def test_a_plan_can_be_run_again_from_its_results(oracle: Oracle) -> None:
    for trial, result in zip(TRIALS, plan.make("small", TRIALS, TARGET, H100).results, strict=True):
        raw = json.loads(result.to_json())

        assert Trial.from_payload(raw).id == trial.id
        assert Result.model_validate(raw) == result


def test_points_that_need_more_gpus_than_there_are_are_skipped(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpointing, "ranks", 8)
    few, enough = (
        plan.make("small", TRIALS, TARGET, H100, gpus=count).results[-1] for count in (4, 8)
    )

    assert (few.status, few.reason) == (
        "skipped",
        "checkpointing 1 needs 8 GPUs, and --gpus says 4.",
    )
    assert enough.status == "failed"  # as the oracle says


def test_each_prediction_is_told_of_once(oracle: Oracle) -> None:
    told = Told()
    plan.make("small", TRIALS, TARGET, H100, watch=told)

    assert told.of == [*oracle.asked, *oracle.beyond]
    assert told.more == len(oracle.beyond) > 0


def test_what_is_known_is_not_asked_again_and_failures_are(oracle: Oracle) -> None:
    told = Told()
    first = plan.make("small", TRIALS, TARGET, H100, cache=Cache())
    oracle.asked.clear()
    again = plan.make("small", TRIALS, TARGET, H100, cache=Cache(), watch=told)

    assert (first.known, again.known) == (0, 2)
    assert oracle.asked == ["checkpointing 1"]
    assert sorted(set(told.of) - set(oracle.beyond)) == ["bf16", "checkpointing 1", "nf4 + lora r4"]
    assert again.results == first.results
    assert again.timelines == first.timelines


def test_a_plan_that_is_wholly_known_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache()
    for trial in TRIALS:
        cache.put(trial, TARGET, prediction(20))
    monkeypatch.setattr(plan, "predict", None)

    assert plan.make("small", TRIALS, TARGET, H100, cache=cache).known == 3  # nf4 alone is illegal


def test_a_kept_plan_reads_as_a_run(oracle: Oracle, tmp_path: Path) -> None:
    made = plan.make("small", TRIALS, TARGET, H100)
    directory = store.create_run(tmp_path, "small.plan", {})
    plan.keep(made, directory)
    loaded = store.load(directory)

    assert loaded.results == made.results
    assert loaded.problems == ()
    timelines = {
        result.label: json.loads(gzip.decompress((directory / file).read_bytes()))
        for result in loaded.results
        for file in result.artifacts.values()
    }
    assert timelines == {
        "bf16": {"moments": [{"at": 0.0, "weights": 120}]},
        "nf4 + lora r4": {"moments": [{"at": 0.0, "weights": 20}]},
    }


def test_a_plan_kept_twice_stands_once(oracle: Oracle, tmp_path: Path) -> None:
    directory = store.create_run(tmp_path, "small.plan", {})
    for _ in range(2):
        made = plan.make("small", TRIALS, TARGET, H100)
        plan.keep(made, directory)

    assert store.load(directory).attempts == made.results


def test_what_will_not_fit_is_a_sentence_with_a_way_out(oracle: Oracle) -> None:
    made = plan.make("small", TRIALS, TARGET, H100)

    assert plan.unfit(made) == {
        TRIALS[0].id: (
            "bf16 is predicted to need 119.0 to 121.0 GiB while train runs, and h100-80gb has "
            "79.4; precision off and nf4 and lora r4 save 100 GiB: fits with 58 GiB to spare. "
            "--try-unfit runs it all the same."
        )
    }
    assert plan.unfit(plan.make("small", TRIALS, Target(), None)) == {}
