"""Ladders in reports: what each row adds, what it changes, and when a row may not be compared."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

import pytest

from tradebench import report
from tradebench.report import changes, figures, fronts, ladder, tables
from tradebench.result import Kind, Measurement, Result, Status, digest
from tradebench.store import Run

Settings = Mapping[str, Mapping[str, Any]]
Effects = Mapping[str, Mapping[str, Any]]

FP32 = {"method": "fp32"}
LORA = {"method": "lora", "rank": 16}
NF4 = {"method": "nf4", "double": False}
FULL = {"method": "full", "ratio": 1.0}
BASE: Settings = {"precision": FP32}
ADAPTED: Settings = {**BASE, "adapters": LORA}
QUANTIZED: Settings = {**ADAPTED, "quantization": NF4}
RECOMPUTED: Settings = {**QUANTIZED, "checkpointing": FULL}
ROWS = (BASE, ADAPTED, QUANTIZED, RECOMPUTED)
EFFECTS: Mapping[str, Mapping[str, Any]] = {
    "precision": {"parameters": {"float32": 1000}},
    "adapters": {"layers": 28, "trainable_parameters": 160},
    "quantization": {"layers": 28, "weight_bytes": 500},
    "checkpointing": {"layers": 4, "recomputations": 484},
}
MEMORY, TIME, ACCURACY = "peak_tensor_bytes", "step_seconds", "accuracy.guilds"
PEAKS = (400.0, 300.0, 150.0, 75.0)
TIMES = (1.0, 0.8, 1.0, 1.3)
TASK = "guilds"
ITEMS = 200


def effects_of(settings: Settings) -> Effects:
    found = {slot: EFFECTS[slot] for slot in settings}
    if "quantization" in settings:  # packed weights are no parameters any more
        found["precision"] = {"parameters": {"float32": 260}}
    return found


def result(
    settings: Settings,
    *,
    repeat: int = 0,
    peak: float = 100.0,
    seconds: float = 1.0,
    accuracy: float | None = None,
    kind: Kind = "measured",
    status: Status = "ok",
    effects: Effects | None = None,
    budget: Mapping[str, Any] | None = None,
) -> Result:
    found = {
        MEMORY: Measurement(value=int(peak * 2**20), unit="B"),
        TIME: Measurement(value=seconds, unit="s", interval=(seconds * 0.99, seconds * 1.01)),
    }
    if accuracy is not None:
        found[ACCURACY] = Measurement(
            value=accuracy, unit="1", better="more", interval=(accuracy - 0.1, accuracy + 0.1)
        )
    trial = digest(settings if budget is None else [settings, budget])
    proven = effects_of(settings) if effects is None else effects
    return Result(
        kind=kind,
        suite="ladder",
        trial=trial,
        repeat=repeat,
        label=" + ".join(str(fields["method"]) for fields in settings.values()),
        model={"name": "reference"},
        budget=budget or {"steps": 4},
        evaluate={},
        settings=settings,
        status=status,
        reason=None if status == "ok" else "it went wrong; mend it",
        measurements=found if status == "ok" else {},
        effects=proven if kind == "measured" and status == "ok" else {},
        artifacts={"items_after": f"items/{trial}.{repeat}.jsonl.gz"},
    )


def climbed(**fields: Any) -> list[Result]:
    return [
        result(settings, peak=peak, seconds=seconds, **fields)
        for settings, peak, seconds in zip(ROWS, PEAKS, TIMES, strict=True)
    ]


def run_of(results: Sequence[Result], directory: Path = Path("nowhere"), **header: Any) -> Run:
    order = list(dict.fromkeys(each.trial for each in results))
    full = {"suite": "ladder", "design": "ladder", "ladder": order, "started": None, "ended": None}
    full |= header
    return Run(
        directory=directory,
        header=full,
        results=tuple(results),
        attempts=tuple(results),
        problems=(),
    )


def rungs_of(results: Sequence[Result], **header: Any) -> tuple[ladder.Rung, ...]:
    run = run_of(results, **header)
    (group,) = fronts.groups(run)
    found = ladder.ladder(run, group)
    assert found is not None
    return found.rungs


def point(result: Result) -> tables.Point:
    return tables.points([result])[0]


def refusal(before: Result, after: Result) -> str:
    return changes.step(point(before), point(after)).refusal


# Rows.


def test_every_row_says_what_it_adds() -> None:
    added = [rung.row.added for rung in rungs_of(climbed())]

    assert added == ["the baseline", "lora r16", "nf4", "checkpointing 1"]


def test_changes_are_against_the_row_before_and_row_0() -> None:
    rungs = rungs_of(climbed())
    memory = [rung.rises[0] for rung in rungs]
    before = [each.before.value for each in memory if each.before]
    baseline = [each.baseline.value for each in memory if each.baseline]

    assert before == pytest.approx([-0.25, -0.5, -0.5])
    assert baseline == pytest.approx([-0.25, -0.625, -0.8125])


def test_rows_stand_in_the_order_of_the_suite_not_of_the_results() -> None:
    results = climbed()
    order = [each.trial for each in results]
    rungs = rungs_of(results[::-1], ladder=order)

    assert [rung.row.point.trial for rung in rungs] == order


def test_an_exact_memory_has_no_interval_and_a_time_has_one() -> None:
    memory, time = rungs_of(climbed())[1].rises[:2]

    assert memory.before is not None
    assert not memory.before.error
    assert time.before is not None
    # Both means are known to 1 % with 95 %: their ratio to the root of twice that.
    assert time.before.error == pytest.approx(0.8 * math.hypot(0.01, 0.01), rel=1e-6)


def test_predictions_have_changes_without_intervals_and_need_no_effects() -> None:
    rungs = rungs_of(climbed(kind="predicted"))
    rises = [rise.before for rung in rungs[1:] for rise in rung.rises]

    assert all(each is not None and each.error is None for each in rises)


def test_kinds_are_never_mixed() -> None:
    measured, predicted = climbed()[:2], climbed(kind="predicted")[2:]
    run = run_of([*measured, *predicted])
    found = [ladder.ladder(run, group) for group in fronts.groups(run)]

    assert [len(each.rungs) if each else 0 for each in found] == [2, 2]
    assert all(
        rung.row.point.kind == kind
        for each, kind in zip(found, ("measured", "predicted"), strict=True)
        if each
        for rung in each.rungs
    )


def test_another_design_has_no_ladder() -> None:
    run = run_of(climbed(), design="product")

    assert ladder.ladder(run, fronts.groups(run)[0]) is None


# Rows that may not be compared.


def test_a_quantization_that_was_dropped_in_silence_is_refused() -> None:
    dropped = {slot: EFFECTS[slot] for slot in ("precision", "adapters")}
    sentence = refusal(result(ADAPTED), result(QUANTIZED, effects=dropped))

    assert "has quantization in its settings and shows no effect of it" in sentence


def test_a_technique_that_is_lost_on_the_way_up_is_refused() -> None:
    fewer = {**effects_of(RECOMPUTED), "quantization": {"layers": 14, "weight_bytes": 250}}
    sentence = refusal(result(QUANTIZED), result(RECOMPUTED, effects=fewer))

    assert "the effect quantization.layers is 28 in one and 14 in the other" in sentence


def test_an_effect_nobody_asked_for_is_refused() -> None:
    more = {**effects_of(ADAPTED), "quantization": EFFECTS["quantization"]}
    sentence = refusal(result(BASE), result(ADAPTED, effects=more))

    assert "shows an effect of quantization, which is not in its settings" in sentence


def test_counts_may_follow_from_the_technique_but_not_vanish() -> None:
    assert refusal(result(ADAPTED), result(QUANTIZED)) == ""
    gone = {**effects_of(QUANTIZED), "precision": {"parameters": {"bfloat16": 260}}}

    assert "precision.parameters.float32 is 1000 in one and off in the other" in refusal(
        result(ADAPTED), result(QUANTIZED, effects=gone)
    )


def test_a_row_that_adds_two_techniques_is_refused_and_names_them() -> None:
    sentence = refusal(result(BASE), result(QUANTIZED))

    assert "more than one technique differs: lora r16 and nf4" in sentence


def test_a_row_on_another_budget_is_refused() -> None:
    sentence = refusal(result(BASE), result(ADAPTED, budget={"steps": 8}))

    assert "budget.steps is 4 in one and 8 in the other" in sentence


def test_a_row_may_change_the_shape_of_the_budget_and_says_what_is_trained_on() -> None:
    shapes: list[dict[str, Any]] = [
        {"sequence": 32, "batch": 8, "accumulation": 1},
        {"sequence": 32, "batch": 2, "accumulation": 4},
        {"sequence": 16, "batch": 2, "accumulation": 4},
    ]
    results = [result(BASE, peak=100.0 / 2**n, budget=b) for n, b in enumerate(shapes)]
    rungs = rungs_of(results)
    run = run_of(results)
    found = ladder.ladder(run, fronts.groups(run)[0])

    assert [rung.row.added for rung in rungs[1:]] == [
        "batch 2 x accumulation 4 instead of batch 8 x accumulation 1",
        "sequence 16 instead of sequence 32",
    ]
    assert [rung.row.refusal for rung in rungs] == [""] * 3
    assert [rung.rises[0].before.value for rung in rungs[1:] if rung.rises[0].before] == [-0.5] * 2
    assert found is not None
    assert found.note.endswith(
        f"Points train on sequences of at most 16 and 32 tokens. {tables.TRAINING}"
    )


def test_a_row_of_another_shape_that_adds_a_technique_is_refused() -> None:
    before, after = {"sequence": 32}, {"sequence": 16}
    sentence = refusal(result(BASE, budget=before), result(ADAPTED, budget=after))

    assert "lora r16 and sequence 16 instead of sequence 32" in sentence


def test_a_row_that_changes_two_settings_is_refused() -> None:
    other = {**BASE, "adapters": {"method": "dora", "rank": 8}}
    effects = {**effects_of(other)}
    sentence = refusal(result(ADAPTED), result(other, effects=effects))

    assert "adapters.method is lora in one and dora in the other" in sentence
    assert "adapters.rank is 16 in one and 8 in the other" in sentence


def test_what_a_method_alone_has_to_choose_comes_with_it() -> None:
    fewer = {**ADAPTED, "quantization": {"method": "int8"}}
    more = {**ADAPTED, "quantization": {**NF4, "double": True}}

    assert refusal(result(fewer), result(QUANTIZED)) == ""
    assert "quantization.double is off in one and True in the other" in refusal(
        result(fewer), result(more)
    )


def test_one_setting_may_change() -> None:
    rank = {**BASE, "adapters": {**LORA, "rank": 8}}

    assert refusal(result(ADAPTED), result(rank)) == ""


def test_after_a_refused_row_nothing_is_compared_with_row_0() -> None:
    results = climbed()
    results[2] = result(QUANTIZED, effects={"precision": EFFECTS["precision"]})
    rungs = rungs_of(results)

    assert "shows no effect" in rungs[2].row.remark
    assert all(rise.before is None and rise.baseline is None for rise in rungs[2].rises)
    assert all(rise.baseline is None for rise in rungs[3].rises)


def test_a_row_without_values_says_why_and_the_next_has_none_before_it() -> None:
    results = climbed()
    results[2] = result(QUANTIZED, status="skipped")
    rungs = rungs_of(results)

    assert rungs[2].row.remark == "it went wrong; mend it"
    assert rungs[3].row.remark == "the row before has no values to compare with."
    assert all(rise.before is None for rise in rungs[3].rises)
    assert all(rise.baseline is not None for rise in rungs[3].rises)


# Accuracy, item by item.


def write_items(folder: Path, result: Result, scores: Sequence[float]) -> None:
    path = folder / result.artifacts["items_after"]
    path.parent.mkdir(exist_ok=True)
    lines = [
        json.dumps(
            {
                "task": TASK,
                "doc_id": number,
                "doc_hash": f"d{number}",
                "target_hash": f"t{number}",
                "metrics": {"acc": score, "acc_norm": 1.0},
                "nll": None,
            }
        )
        for number, score in enumerate(scores)
    ]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


def answered(folder: Path, flips: int) -> tuple[Run, list[Result], list[float], list[float]]:
    """Two rows that answer the same items; the second gets `flips` more of them right."""
    source = random.Random(1)
    ones = [float(source.random() < 0.5) for _ in range(ITEMS)]
    wrong = [number for number, score in enumerate(ones) if not score]
    others = [1.0 if number in wrong[:flips] else score for number, score in enumerate(ones)]
    results = [
        result(BASE, accuracy=fmean(ones)),
        result(ADAPTED, accuracy=fmean(others)),
    ]
    for each, scores in zip(results, (ones, others), strict=True):
        write_items(folder, each, scores)
    return run_of(results, folder), results, ones, others


def difference(run: Run) -> changes.Change:
    (group,) = fronts.groups(run)
    before, after = group.points
    found = changes.change(group, run.directory, before, after, ACCURACY)
    assert found is not None
    return found


def test_accuracy_is_compared_item_by_item(tmp_path: Path) -> None:
    run, _, ones, others = answered(tmp_path, flips=12)
    found = difference(run)
    apart = [theirs - ours for ours, theirs in zip(ones, others, strict=True)]
    z95 = NormalDist().inv_cdf(0.975)

    assert found.paired
    assert found.value == pytest.approx(12 / ITEMS)
    assert found.error == pytest.approx(z95 * stdev(apart) / math.sqrt(ITEMS), rel=1e-5)
    # Two intervals of ± 10 points by themselves could not tell the two apart.
    assert found.bounds[0] > 0


def test_without_the_items_two_accuracies_are_compared_as_they_are(tmp_path: Path) -> None:
    run, results, _, _ = answered(tmp_path, flips=12)
    (tmp_path / results[1].artifacts["items_after"]).unlink()
    found = difference(run)

    assert not found.paired
    assert found.error == pytest.approx(math.hypot(0.1, 0.1), rel=1e-5)


def test_other_items_are_not_paired(tmp_path: Path) -> None:
    run, results, ones, _ = answered(tmp_path, flips=0)
    write_items(tmp_path, results[1], [*ones, *ones])

    assert not difference(run).paired


def test_equal_answers_leave_the_rule_of_three(tmp_path: Path) -> None:
    found = difference(answered(tmp_path, flips=0)[0])

    assert found.value == 0
    assert found.error == pytest.approx(3 / ITEMS)


def test_changes_are_spelled_with_their_sign_and_unit() -> None:
    assert changes.Change(value=-0.18).text == "-18.0 %"
    assert changes.Change(value=0.0040, error=0.013).text == "+0.40 ± 1.3 %"
    assert changes.Change(value=0.012, error=0.008, points=True).text == "+1.20 ± 0.80 points"


# Page, Markdown and figure.


class Words(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ladder")
    results = climbed()
    results[3] = result(RECOMPUTED, effects={"precision": EFFECTS["precision"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda *_: [])  # drawn and looked at elsewhere
        report.write(run_of(results, objectives=[MEMORY, TIME]), folder)
    return folder


def test_page_and_markdown_tell_the_same(out: Path) -> None:
    page = " ".join(Words((out / "index.html").read_text(encoding="utf-8")).words)
    text = (out / "report.md").read_text(encoding="utf-8")

    for shown in (page, text):
        plain = shown.replace("\\", "")
        assert "One technique more with every row" in plain
        assert "+ lora r16" in plain
        assert "-25.0 %" in plain
        assert "has checkpointing in its settings and shows no effect of it" in plain


def test_the_figure_names_rows_and_changes(out: Path) -> None:
    svg = (out / "ladder.svg").read_text(encoding="utf-8")

    assert (out / "ladder.png").stat().st_size > 10_000
    for words in (
        "+ lora r16",
        "+ nf4",
        "\N{MINUS SIGN}25.0 %",
        "\N{MINUS SIGN}50.0 %",
        "+25.0 ± 1.8 %",
    ):
        assert f">{words}<" in svg
