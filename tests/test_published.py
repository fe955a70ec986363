"""Published evidence: what the sources say, said as trials, and predictions held against it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from statistics import median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tradebench import configs, devices
from tradebench.published import (
    Expressed,
    expressed,
    expression,
    promise,
    results,
    rows,
    unexpressed,
)
from tradebench.published.comparison import Prediction, compare, errors, grouped
from tradebench.published.deltas import Delta, deltas, differing
from tradebench.published.validation import COUNTERS, NOTHING, TITLES, render
from tradebench.result import Result
from tradebench.trial import Trial

GIB = 1024**3
ROWS = {row.id: row for row in rows()}
EXPRESSED = {found.row.id: found for found in expressed()}

# Written down here as well, so that a change of the promise is a change of two files.
PROMISED = (
    *("M055", "M057", "M059", "M061", "M063", "M065"),
    *("M067", "M069", "M071", "M073", "M075", "M077"),
    *("M085", "M086", "M087", "M088", "M089", "M090"),
)


def name(found: Expressed) -> str:
    return found.row.id


def slot(found: Expressed, of: str) -> Mapping[str, Any]:
    return found.trial.settings.get(of, {})


# The rows.


def test_every_row_has_a_source_and_an_id_of_its_own() -> None:
    assert len(ROWS) == len(rows())
    assert all(row.source for row in rows())


def test_all_memory_rows_are_here() -> None:
    # The number of memory rows in the collection that this file is taken from.
    assert [row.kind for row in rows()].count("memory") == 159


def test_a_row_is_a_trial_or_says_why_not_and_never_both() -> None:
    trials = [found.row.id for found in expressed()]
    others = [found.row.id for found in unexpressed()]

    assert sorted([*trials, *others]) == sorted(ROWS)


def test_why_a_row_is_no_trial_is_a_sentence() -> None:
    reasons = [found.reason for found in unexpressed()]

    assert [reason for reason in reasons if not re.fullmatch(r"\S[^\n]* [^\n]*\.", reason)] == []


def test_columns_are_read_as_what_they_are() -> None:
    row = ROWS["M085"]

    assert (row.rank, row.weight_bits, row.n_gpus, row.value) == (32, 16, 1, 22.29)
    assert ROWS["M055"].rank is None
    assert ROWS["M216"].gpu is None


# The trials.


@pytest.mark.parametrize("found", expressed(), ids=name)
def test_a_trial_is_legal_complete_and_of_a_shipped_shape(found: Expressed) -> None:
    assert found.trial.conflicts() == ()
    assert Trial.from_payload(found.trial.payload()) == found.trial
    assert found.trial.model.config in configs.names()
    assert found.trial.model.weights == "random"
    assert found.trial.budget.data == "random"
    assert found.trial.method("precision") is not None
    assert found.device is None or found.device in devices.DEVICES
    assert all(re.fullmatch(r"[^\n]*\.", sentence) for sentence in found.differences)
    assert re.fullmatch(r"[^\n]*\.", found.cause)


@pytest.mark.parametrize("found", expressed(), ids=name)
def test_a_trial_says_what_the_columns_of_its_row_say(found: Expressed) -> None:
    row, trial = found.row, found.trial
    adapters, quantization = slot(found, "adapters"), slot(found, "quantization")
    scheme = row.quant_scheme or ""
    shared = {"lora": "lora", "qlora": "lora", "rslora": "rslora", "dora": "dora"}

    assert shape_words(row.model) == shape_words(str(trial.model.config))
    assert adapters.get("method") == shared.get(row.method)
    assert adapters.get("rank") == row.rank
    assert bool(quantization) == (row.weight_bits == 4)
    if quantization:
        assert quantization["method"] == "nf4"
        # torchao's NF4 quantizes its scales as well, whether the source says so or not.
        doubled = "torchao" in scheme or bool(re.search(r"(?<!no )double", scheme))
        assert quantization["double"] == doubled
    if row.targets in TARGETS:
        given = adapters["targets"]
        assert (given if given == "all-linear" else sorted(given)) == TARGETS[row.targets]
    if row.batch_per_gpu and row.batch_per_gpu.isdigit():
        assert trial.budget.batch == int(row.batch_per_gpu)
    if row.seq_len and (length := re.match(r"<?=?(\d+)", row.seq_len)):
        assert trial.budget.sequence == int(length[1])


ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
TARGETS = {
    "q,v": ["q_proj", "v_proj"],
    "q,v (PEFT default)": ["q_proj", "v_proj"],
    "PEFT default": ["q_proj", "v_proj"],
    "q,k,v": ["k_proj", "q_proj", "v_proj"],
    "gate,up,down": ["down_proj", "gate_proj", "up_proj"],
    "k,q,v,gate,up,down (no o)": [
        "down_proj",
        "gate_proj",
        "k_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ],
    "q,k,v,o,gate,up,down": "all-linear",
    "all-linear": "all-linear",
    "c_attn,c_proj,w1,w2": "all-linear",  # every linear layer of the first Qwen
    "q,k,v,o,gate,up,down,lm_head": sorted(
        [*ATTENTION, "gate_proj", "up_proj", "down_proj", "lm_head"]
    ),
}


def shape_words(model: str) -> str:
    return re.sub(r"-instruct|-hf", "", model.lower())


@pytest.mark.parametrize("found", expressed(), ids=name)
def test_a_trial_recomputes_and_shards_as_its_row_does(found: Expressed) -> None:
    row = found.row
    checkpointing, sharding = slot(found, "checkpointing"), slot(found, "sharding")
    ratio = {"full": 1.0, "selective (every 2nd layer)": 0.5, "none": None}[
        re.sub(r" \(.*default.*\)", "", row.ckpt or "none")
    ]

    assert checkpointing.get("ratio") == ratio
    if row.sharding in (None, "none", "ddp (FSDP NO_SHARD)"):
        assert not sharding
    else:
        assert sharding["degree"] == row.n_gpus
        assert sharding["offload"] == (row.offload == "params to CPU")


METRICS = {
    "peak_memory_allocated": ("allocated", "training"),
    "peak_memory_reserved": ("reserved", "training"),
    "max_memory_reserved": ("reserved", "training"),
    "peak_reserved_training": ("reserved", "training"),
    "peak_memory_active": ("active", "training"),
    "allocated_after_forward": ("allocated", "after_forward"),
    "peak_reserved_after_model_init": ("reserved", "load"),
    "peak_allocated_after_model_init": ("allocated", "load"),
    "gpu_memory_used": ("device", "training"),
    "gpu_memory_used_low": ("device", "training"),
}


@pytest.mark.parametrize("found", expressed(), ids=name)
def test_a_reading_is_the_metric_of_its_row(found: Expressed) -> None:
    reading = found.reading
    if found.row.kind == "throughput":
        assert (reading.counter, reading.unit) == ("step", "s")
    elif found.row.metric in METRICS:
        counter, moment = METRICS[found.row.metric]
        # The notebook never steps, so that its peak is of forward and backward alone.
        moment = "forward_backward" if found.row.id in ("M075", "M077") else moment
        assert (reading.counter, reading.moment) == (counter, moment)
        assert reading.stated
    else:
        assert found.row.metric in ("peak_memory_per_gpu", "peak_memory")
        assert not reading.stated


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ("M003", 16.2 * GIB),
        ("M010", 21_300_000_000),  # GB of 10^9 bytes
        ("M118", 51.6 * GIB),  # said to be GB, but then less than what it holds
        ("M055", 3_605_000_000),
        ("T009", 4 * 2048 / 3155),  # tokens of a step over tokens per second
        ("T155", 1.2),  # the source's iteration is eight micro-batches, as the step is
        ("T036", 875 / (1024 / (2 * 8))),  # 1,024 sequences, eight on either GPU
    ],
)
def test_units_are_converted_as_by_hand(row: str, value: float) -> None:
    assert EXPRESSED[row].value == pytest.approx(value, rel=1e-12)


SAID = {
    "name": "an experiment",
    "family": "a family",
    "cause": "A cause.",
    "differences": [],
    "counter": "allocated",
    "moment": "training",
    "model": {"name": "m", "config": "llama-2-7b"},
    "budget": {},
}


@pytest.mark.parametrize(
    ("row", "more", "value"),
    [
        # 2,904 tokens per second on each of 64 GPUs, each with one sequence of 8,192
        ("T112", {"budget": {"batch": 1, "sequence": 8192}}, 8192 / 2904),
        # 1,388 on four GPUs together
        ("T013", {"budget": {"batch": 4, "sequence": 2048}}, 4 * 4 * 2048 / 1388),
        # 667 s for 1,024 sequences, eight on each of four GPUs
        ("T054", {"budget": {"batch": 8, "sequence": 2048}, "sequences": 1024}, 667 * 32 / 1024),
    ],
)
def test_times_of_several_gpus_are_those_of_a_step_of_all(
    row: str, more: dict[str, Any], value: float
) -> None:
    found = expression.express(ROWS[row], {**SAID, "counter": "step", "settings": {}, **more}, {})

    assert isinstance(found, Expressed)
    assert found.value == pytest.approx(value, rel=1e-12)


def test_a_unit_is_overruled_only_where_it_contradicts_arithmetic() -> None:
    parameters = 6_738_415_616
    held = 4 * 2 * parameters  # weights, gradients and two moments in 16 bits

    assert ROWS["M118"].value * 1e9 < held < EXPRESSED["M118"].value


@pytest.mark.parametrize(("row", "parameters"), [("M112", 3_212_749_824), ("M115", 1_235_814_400)])
def test_a_peak_below_what_it_must_hold_is_refused(row: str, parameters: int) -> None:
    reasons = {found.row.id: found.reason for found in unexpressed()}

    assert ROWS[row].value * GIB < 8 * parameters  # whichever GB is meant
    assert f"{8 * parameters / 1e9:.1f} GB for {row}" in reasons[row]


def test_an_unknown_technique_or_a_conflict_refuses_a_row_with_its_reason() -> None:
    unknown = {"precision": {"method": "bf16"}, "quantization": {"method": "dreamt"}}
    illegal = {"precision": {"method": "bf16"}, "quantization": {"method": "nf4"}}
    reasons = [
        found.reason
        for found in (
            expression.express(ROWS["M096"], {**SAID, "settings": settings}, {})
            for settings in (unknown, illegal)
        )
        if not isinstance(found, Expressed)
    ]

    assert reasons[0] == "quantization: dreamt is not a technique yet."
    assert reasons[1].startswith("Nf4 weights are packed integers")
    assert len(reasons) == 2


KEYS = {
    *("name", "family", "cause", "differences", "code", "beyond", "counter", "moment", "stated"),
    "unit",
    *("sequences", "model", "budget", "settings", "groups", "rows", "refused"),
}


def test_the_file_has_no_key_that_nothing_reads() -> None:
    document = YAML(typ="safe").load(expression.FILE)

    def nodes(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        yield node
        for inner in (*node.get("groups", ()), *node.get("rows", {}).values()):
            yield from nodes(inner)

    found = {key for each in document["experiments"] for node in nodes(each) for key in node}

    assert found == KEYS
    assert set(document["devices"]) <= {row.gpu for row in rows()}


# The promise.


def test_the_promise_is_the_list_that_was_fixed() -> None:
    assert tuple(promise().included) == PROMISED


def test_the_promised_errors_are_those_that_were_fixed() -> None:
    assert promise().at_most == {"allocated": 0.05, "reserved": 0.10}


def test_the_promise_holds_what_its_rule_says() -> None:
    for row in PROMISED:
        found = EXPRESSED[row]
        assert (found.family, found.gpus, found.row.kind) == ("transformers", 1, "memory")
        assert found.reading.counter in ("allocated", "reserved")
        assert found.reading.stated
        assert "own code" not in " ".join(found.differences)


def test_every_memory_row_that_is_a_trial_is_promised_or_is_excluded_with_a_reason() -> None:
    said = promise()
    memory = {row for row, found in EXPRESSED.items() if found.row.kind == "memory"}

    assert memory <= set(said.included) | set(said.excluded) <= set(ROWS)
    assert not set(said.included) & set(said.excluded)
    assert all(reason.endswith(".") for reason in said.excluded.values())
    assert {row for row, found in EXPRESSED.items() if found.family == "transformers"} == set(
        PROMISED
    )


# The Results.


def test_a_result_is_the_published_figure_with_its_source() -> None:
    found = {json.loads(result.to_json())["row"]: result for result in results()}

    assert set(found) == set(EXPRESSED)
    for row, result in found.items():
        published = EXPRESSED[row]
        assert (result.kind, result.status) == ("published", "ok")
        assert result.trial == published.trial.id
        assert result.value(published.reading.measurement) == published.value
        assert json.loads(result.to_json())["source"] == ROWS[row].source
        assert result.warnings == published.differences
        assert Result.model_validate_json(result.to_json()) == result


def test_two_rows_of_one_trial_are_two_results() -> None:
    keys = [(result.trial, result.repeat) for result in results()]
    trials = [result.trial for result in results()]

    assert len(set(keys)) == len(keys)
    assert len(set(trials)) < len(trials)  # allocated and reserved bytes of one run, for one


# Comparisons.


def scaled(factor: float) -> dict[str, Prediction | str]:
    return {
        row: Prediction(value=factor * found.value, interval=(0.9 * found.value, found.value))
        for row, found in EXPRESSED.items()
    }


def test_a_prediction_is_compared_with_its_figure() -> None:
    (found,) = (one for one in compare(scaled(1.25)) if one.published.row.id == "M055")

    assert found.ratio == pytest.approx(1.25)
    assert found.error == pytest.approx(0.25)
    assert found.inside
    assert found.promised
    assert found.refusal is None


def test_what_is_not_predicted_says_so() -> None:
    found = {one.published.row.id: one for one in compare({"M055": "There is no such kernel."})}

    assert found["M055"].refusal == "There is no such kernel."
    assert found["M057"].refusal == "It was not predicted."
    assert {one.ratio for one in found.values()} == {None}
    assert errors(found.values()).count == 0


def test_a_prediction_for_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="no expressed rows: M001, M999"):
        compare({"M999": Prediction(value=1.0), "M001": Prediction(value=1.0)})


@given(st.lists(st.floats(0.25, 4.0), min_size=1, max_size=12))
@settings(derandomize=True, max_examples=25)
def test_medians_are_those_of_the_distances_from_one(factors: list[float]) -> None:
    chosen = list(EXPRESSED.values())[: len(factors)]
    predictions: dict[str, Prediction | str] = {
        found.row.id: Prediction(value=found.value * factor, interval=(0.0, found.value * factor))
        for found, factor in zip(chosen, factors, strict=True)
    }
    found = errors(compare(predictions, chosen))
    distances = [max(factor, 1.0) - min(factor, 1.0) for factor in factors]
    held = [
        float(found.value * factor) >= found.value
        for found, factor in zip(chosen, factors, strict=True)
    ]

    assert found.median == pytest.approx(median(distances))
    assert found.largest == pytest.approx(max(distances))
    assert (found.count, found.refused, found.intervals) == (len(factors), 0, len(factors))
    assert found.inside == sum(held)


def test_groups_keep_every_comparison_in_order() -> None:
    every = compare({})
    groups = grouped(every, lambda one: one.published.family)

    assert list(groups) == list(dict.fromkeys(one.published.family for one in every))
    assert sorted(name(one.published) for group in groups.values() for one in group) == sorted(
        EXPRESSED
    )


# Deltas.


def pairs(found: tuple[Delta, ...]) -> dict[tuple[str, str], Delta]:
    return {(one.first.published.row.id, one.second.published.row.id): one for one in found}


FOUND = pairs(deltas(compare(scaled(1.1))))


def leaves(value: object, path: str = "") -> dict[str, object]:
    """Every number and word of a JSON value by its path."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in leaves(inner, f"{path}.{key}").items()
    }


@pytest.mark.parametrize("pair", FOUND, ids="-".join)
def test_a_pair_differs_in_one_knob_and_in_nothing_else(pair: tuple[str, str]) -> None:
    delta = FOUND[pair]
    first, second = (one.published for one in (delta.first, delta.second))
    ours, theirs = (leaves(one.trial.payload()) for one in (first, second))
    paths = {path for path in {**ours, **theirs} if ours.get(path) != theirs.get(path)}
    paths.discard(".model.name")  # goes with the shape
    slots = {path.split(".")[2] for path in paths if path.startswith(".settings.")}

    # Either one leaf, or all leaves of one slot, which is on in one row only.
    assert len(paths) == 1 or (
        len(slots) == 1
        and all(path.startswith(".settings.") for path in paths)
        and (slots.pop() in first.trial.settings) != (delta.knob in second.trial.settings)
    )
    assert first.experiment == second.experiment
    assert first.reading == second.reading
    assert first.row.gpu == second.row.gpu
    assert first.beyond == second.beyond


@pytest.mark.parametrize(
    ("pair", "knob"),
    [
        (("M055", "M057"), "budget.sequence"),
        (("M055", "M059"), "adapters"),
        (("M059", "M063"), "checkpointing"),
        (("M061", "M069"), "quantization"),
        (("M085", "M086"), "adapters.rank"),
        (("M085", "M089"), "adapters.method"),
        (("M095", "M098"), "budget.batch"),
        (("M096", "M097"), "quantization.double"),
        (("M097", "M101"), "model"),
        (("M023", "M024"), "adapters.targets"),
        (("M030", "M031"), "checkpointing"),
        (("T155", "T156"), "budget.sequence"),
    ],
)
def test_a_pair_is_found(pair: tuple[str, str], knob: str) -> None:
    assert FOUND[pair].knob == knob


@pytest.mark.parametrize(
    "pair",
    [
        ("M028", "M030"),  # a chunked loss, and torch.compile besides
        ("M173", "M175"),  # 512 tokens lie between
        ("M086", "M089"),  # another method, and another rank
        ("M075", "M071"),  # another moment
        ("M019", "M020"),  # another counter
        ("M010", "M095"),  # another source
    ],
)
def test_what_differs_in_more_or_in_nothing_is_no_pair(pair: tuple[str, str]) -> None:
    assert pair not in FOUND
    assert pair[::-1] not in FOUND


def test_every_pair_that_one_setting_tells_apart_is_found() -> None:
    def alike(first: Expressed, second: Expressed) -> bool:
        return (
            first.experiment == second.experiment
            and first.reading == second.reading
            and first.beyond == second.beyond
            and first.row.gpu == second.row.gpu
            and first.gpus == second.gpus
            and len(differing(first, second)) == 1
        )

    missing = {
        (first.row.id, second.row.id)
        for first, second in combinations(expressed(), 2)
        if alike(first, second)
        and (first.row.id, second.row.id) not in FOUND
        and (second.row.id, first.row.id) not in FOUND
    }

    # Only pairs of numbers with another number between them.
    for first, second in missing:
        (knob,) = differing(EXPRESSED[first], EXPRESSED[second])
        assert knob in ("budget.sequence", "budget.batch", "adapters.rank")


def test_a_slope_is_the_change_for_one_more() -> None:
    delta = FOUND["M055", "M057"]

    assert (delta.before, delta.after, delta.step) == (512, 2048, 1536)
    assert delta.published == pytest.approx(7.493e9 - 3.605e9)
    assert delta.per_unit(delta.published) == pytest.approx((7.493e9 - 3.605e9) / 1536)
    assert FOUND["M059", "M063"].per_unit(1.0) is None


def test_a_scale_common_to_all_predictions_scales_their_changes() -> None:
    for delta in FOUND.values():
        assert delta.predicted == pytest.approx(1.1 * delta.published, rel=1e-9)


def test_a_change_without_both_predictions_has_none() -> None:
    one = {"M055": Prediction(value=1.0)}

    assert pairs(deltas(compare(one)))["M055", "M057"].predicted is None


# The page.


def tables(page: str) -> list[list[str]]:
    """The lines of every table."""
    blocks = (block.splitlines() for block in page.split("\n\n"))
    return [lines for lines in blocks if lines[0].startswith("|")]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.fixture(scope="module")
def page() -> str:
    return render({**scaled(1.1), "M055": "Too long | for a laptop."})


def test_every_row_is_on_the_page(page: str) -> None:
    first = [cells(line)[0].removesuffix("\\*") for table in tables(page) for line in table]
    last = {
        word for table in tables(page) for line in table for word in cells(line)[-1].split(", ")
    }

    assert [row for row in first if row in EXPRESSED] == unique(first, EXPRESSED)
    assert {row for row in first if row in EXPRESSED} == set(EXPRESSED)
    assert {found.row.id for found in unexpressed()} <= last


def unique(names: list[str], known: Mapping[str, object]) -> list[str]:
    return list(dict.fromkeys(row for row in names if row in known))


def test_tables_are_whole(page: str) -> None:
    for table in tables(page):
        assert {len(cells(line)) for line in table} == {len(cells(table[0]))}


def test_promised_rows_are_marked_and_no_others(page: str) -> None:
    marked = set(re.findall(r"^\| ([MT]\d+)\\\* \|", page, re.MULTILINE))

    assert marked == set(PROMISED)


def test_changes_come_before_figures_and_figures_before_causes(page: str) -> None:
    heads = re.findall(r"^## (.*)$", page, re.MULTILINE)

    read = {found.reading.counter for found in expressed()}

    assert heads == [
        "What is promised",
        "What one knob changes",
        "Medians of errors",
        *(TITLES[counter] for counter in COUNTERS if counter in read),
        "Why sources differ",
        "Rows that are no trials",
    ]
    assert all(found.cause in page for found in expressed())


def test_a_refusal_stands_where_the_prediction_would(page: str) -> None:
    (line,) = re.findall(r"^\| M055\\\* \|.*$", page, re.MULTILINE)

    assert cells(line)[4:] == ["Too long \\| for a laptop.", NOTHING, NOTHING]


def test_figures_are_printed_in_gibibytes_and_seconds(page: str) -> None:
    (memory,) = re.findall(r"^\| M003 \|.*$", page, re.MULTILINE)
    (time,) = re.findall(r"^\| T155 \|.*$", page, re.MULTILINE)

    assert cells(memory)[3:] == ["16.20 GiB", "17.82 GiB", "14.58 GiB to 16.20 GiB", "1.100"]
    assert cells(time)[3:] == ["1.200 s", "1.320 s", "1.080 s to 1.200 s", "1.100"]


def test_the_page_counts_the_promise_by_counter(page: str) -> None:
    promised = next(table for table in tables(page) if "Median error" in table[0])

    assert [[*cells(line)[:2], *cells(line)[3:6]] for line in promised[2:]] == [
        ["Allocated memory", "5.0%", "11", "1", "10.0%"],
        ["Reserved memory", "10.0%", "6", "0", "10.0%"],
    ]


@pytest.mark.parametrize(("factor", "kept"), [(1.04, "yes"), (1.06, "no"), (0.94, "no")])
def test_the_page_says_whether_the_promise_is_kept(factor: float, kept: str) -> None:
    promised = next(t for t in tables(render(scaled(factor))) if "Median error" in t[0])

    assert cells(promised[2])[:3] == ["Allocated memory", "5.0%", kept]


def test_a_promise_is_not_kept_while_a_promised_row_is_refused(page: str) -> None:
    promised = next(table for table in tables(page) if "Median error" in table[0])

    assert cells(promised[2])[2] == NOTHING


def test_the_page_says_which_promised_rows_are_no_blind_test(page: str) -> None:
    dated = [row for row in PROMISED if EXPRESSED[row].code]

    assert dated == [row for row in PROMISED if EXPRESSED[row].reading.counter == "allocated"]
    assert f"{len(dated)} of these rows are predicted with what libraries kept in 2024-01" in page
