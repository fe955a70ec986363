"""Suites: what they read, what they expand to, and the line that says what is wrong with one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from tradebench import configs
from tradebench.errors import UserError
from tradebench.suite import Suite, parse_seconds, parse_size, suite_schema
from tradebench.suite.source import paragraphs
from tradebench.suite.suite import keys
from tradebench.techniques import catalogue
from tradebench.trial import FileData, HubData, Trial

SUITES = sorted((Path(__file__).parent.parent / "suites").glob("*.yaml"))
HEAD = "# Why?\nmodel: reference\n"
MEBIBYTE = 1024**2


def suite(body: str, head: str = HEAD) -> Suite:
    return Suite.parse(head + body, "suites/x.yaml")


def labels(body: str) -> list[str]:
    return [trial.label for trial in suite(body).trials()]


def error(text: str) -> str:
    with pytest.raises(UserError) as caught:
        Suite.parse(text, "x.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What a suite holds.


def test_a_suite_has_the_name_of_its_file_and_the_question_of_its_header(tmp_path: Path) -> None:
    path = tmp_path / "cheap.yaml"
    path.write_text("# Is it\n# cheap?\n#\n# Some more.\nmodel: reference\ngrid: {}\n")

    loaded = Suite.load(path)

    assert (loaded.name, loaded.question) == ("cheap", "Is it cheap?")
    assert loaded.text == path.read_text()
    assert loaded.path == path


def test_what_follows_the_question_is_kept_by_paragraph() -> None:
    text = "#!/usr/bin/env x\n# Is it\n# cheap?\n#\n#\n# Mostly.\n# So far.\n#\n# No.\n\n# not"

    assert paragraphs(text) == ["Is it cheap?", "Mostly. So far.", "No."]
    assert paragraphs("model: reference") == []


@pytest.mark.parametrize(
    ("header", "question"),
    [
        ("", ""),
        ("\n# Later?\n", ""),
        ("# yaml-language-server: $schema=x.json\n# Why?\n", "Why?"),
        ("#!/usr/bin/env tradebench\n#\n#   Why?\n", "Why?"),
    ],
)
def test_the_question_is_the_first_paragraph_of_the_comment(header: str, question: str) -> None:
    assert suite("grid: {}\n", header + "model: reference\n").question == question


def test_everything_but_model_and_grid_has_a_default() -> None:
    loaded = suite("grid: {}\n")

    assert loaded.model.name == "reference"
    assert (loaded.design, loaded.repeats, loaded.timeout) == ("product", 1, None)
    assert loaded.objectives == ("peak_tensor_bytes", "step_seconds")
    assert (loaded.limits, loaded.resources.memory) == ({}, None)


def test_a_suite_is_frozen() -> None:
    with pytest.raises(ValidationError):
        suite("grid: {}\n").__setattr__("repeats", 3)


def test_the_first_task_is_an_objective_unless_the_suite_says() -> None:
    tasks = "grid: {}\nevaluate: {tasks: [facts, sort]}\n"

    assert suite(tasks).objectives[-1] == "accuracy.facts"
    assert suite(tasks + "objectives: [accuracy.sort, accuracy.sort]\n").objectives == (
        "accuracy.sort",
    )


def test_limits_are_in_base_units() -> None:
    limits = suite(
        "grid: {}\nevaluate: {tasks: [mmlu]}\n"
        "limits: {peak_reserved_bytes: 1.5 GB, peak_tensor_bytes.train: 1MiB, step_seconds: 500ms,"
        " accuracy.mmlu_anatomy: 0.5, tokens_per_second: 10}\n"
    ).limits

    assert limits == {
        "peak_reserved_bytes": 1_500_000_000,
        "peak_tensor_bytes.train": MEBIBYTE,
        "step_seconds": 0.5,
        "accuracy.mmlu_anatomy": 0.5,
        "tokens_per_second": 10,
    }


def test_resources_and_timeout_take_units() -> None:
    loaded = suite("grid: {}\nresources: {memory: 8GiB}\ntimeout: 45m\n")

    assert (loaded.resources.memory, loaded.timeout) == (8 * 1024**3, 2700.0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 * 1024**3),
        ("1.5 GB", 1_500_000_000),
        (1024, 1024),
        ("1024", 1024),
        ("1 kib", 1024),
        ("0.1 TB", 10**11),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["80G", "GiB", "-1GB", 0, True, None, "1e3", "9" * 40, [1]])
def test_what_is_not_a_size_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="not a size; write 80GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2.0), ("500ms", 0.5), ("45m", 2700.0), ("12h", 43200.0), (1.5, 1.5), ("20us", 2e-5)],
)
def test_times(text: object, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["2 parsecs", 0, False, "", "1h30m"])
def test_what_is_not_a_time_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="not a time; write 500ms"):
        parse_seconds(text)


def test_yaml_is_read_as_1_2() -> None:
    loaded = suite("grid: {checkpointing: off}\nbudget: {learning_rate: 1e-4, steps: 2e3}\n")

    assert (loaded.budget.learning_rate, loaded.budget.steps) == (1e-4, 2000)
    assert [trial.label for trial in loaded.trials()] == ["baseline"]


def test_anchors_and_merges_are_read() -> None:
    text = (
        "design: list\n"
        "grid:\n"
        "  - &base {precision: bf16}\n"
        "  - &more {<<: *base, checkpointing: full}\n"
        "  - {<<: [*base, *more], precision: fp32}\n"
    )

    assert labels(text) == ["bf16", "bf16 + checkpointing 1", "fp32 + checkpointing 1"]


def test_a_date_is_text() -> None:
    assert suite("grid: {}\n", "model: {name: x, revision: 2026-11-22}\n").model.revision == (
        "2026-11-22"
    )


# Models and data.


def test_a_config_with_random_weights_needs_no_name() -> None:
    model = suite("grid: {}\n", "model: {config: llama-3.2-1b, weights: random}\n").model

    assert (model.name, model.config, model.weights) == ("llama-3.2-1b", "llama-3.2-1b", "random")


def test_a_random_model_may_be_cut_short() -> None:
    model = suite("grid: {}\n", "model: {config: llama-3.2-1b, weights: random, layers: 2}\n").model

    assert (model.config, model.layers) == ("llama-3.2-1b", 2)


def test_paths_are_relative_to_the_suite_and_carried_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "suites"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "x.yaml").write_text(
        "model: {name: ./model, config: ./model}\nbudget: {data: {file: rows.jsonl}}\ngrid: {}\n"
    )

    monkeypatch.chdir(tmp_path)
    loaded = Suite.load("suites/x.yaml")

    assert loaded.budget.data == FileData(file="suites/rows.jsonl")
    assert (loaded.model.name, loaded.model.config) == ("suites/model", "suites/model")
    # Wherever a project lies, its trials have the same id.
    assert Suite.load(folder / "x.yaml").trials()[0].id == loaded.trials()[0].id
    monkeypatch.chdir(folder)
    assert Suite.load("x.yaml").budget.data == FileData(file="rows.jsonl")


def test_an_absolute_path_stays_as_it_is(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.touch()

    assert suite(f"grid: {{}}\nbudget: {{data: {{file: {rows}}}}}\n").budget.data == FileData(
        file=str(rows)
    )


def test_data_may_come_from_the_hub_or_be_random() -> None:
    hub = suite("grid: {}\nbudget: {data: {hub: me/rows, split: test}}\n").budget.data

    assert hub == HubData(hub="me/rows", split="test")
    assert suite("grid: {}\nbudget: {data: random}\n").budget.data == "random"


# Grids.


def test_a_product_has_every_combination_in_the_order_of_the_file() -> None:
    assert labels("grid: {precision: [bf16, fp32], checkpointing: [off, {ratio: [0.5, 1]}]}\n") == [
        "bf16",
        "bf16 + checkpointing 0.5",
        "bf16 + checkpointing 1",
        "fp32",
        "fp32 + checkpointing 0.5",
        "fp32 + checkpointing 1",
    ]


def test_each_changes_one_slot_at_a_time() -> None:
    assert labels(
        "design: each\n"
        "grid: {precision: [fp32, bf16], pruning: [off, {sparsity: [0.3, 0.5]}],"
        " checkpointing: full}\n"
    ) == [
        "fp32 + checkpointing 1",
        "bf16 + checkpointing 1",
        "fp32 + magnitude 30% + checkpointing 1",
        "fp32 + magnitude 50% + checkpointing 1",
    ]


def test_a_list_has_the_listed_points_spread_out() -> None:
    assert labels(
        "design: list\n"
        "grid:\n"
        "  - {}\n"
        "  - {precision: bf16, adapters: {method: [lora, rslora], rank: [4, 8]}}\n"
        "  - {precision: off}\n"
    ) == [
        "baseline",
        "bf16 + lora r4",
        "bf16 + lora r8",
        "bf16 + rslora r4",
        "bf16 + rslora r8",
    ]


def test_an_empty_grid_is_the_baseline() -> None:
    assert labels("grid: {}\n") == ["baseline"]
    assert labels("design: each\ngrid: {}\n") == ["baseline"]


def test_points_that_are_written_twice_are_one_point() -> None:
    assert labels("grid: {checkpointing: [full, {ratio: [1, 1.0]}, off, off]}\n") == [
        "checkpointing 1",
        "baseline",
    ]


def test_a_field_that_takes_a_list_is_spread_only_by_a_list_of_lists() -> None:
    def targets(value: str) -> list[Any]:
        loaded = suite(f"grid: {{adapters: {{method: lora, targets: {value}}}}}\n")
        return [trial.settings["adapters"]["targets"] for trial in loaded.trials()]

    assert targets("[q_proj, v_proj]") == [["q_proj", "v_proj"]]
    assert targets("all-linear") == ["all-linear"]
    assert targets("[[q_proj], all-linear]") == [["q_proj"], "all-linear"]


def test_a_slot_with_one_default_needs_no_method() -> None:
    (trial,) = suite("grid: {checkpointing: {ratio: 0.5}}\n").trials()

    assert trial.settings == {"checkpointing": {"method": "full", "ratio": 0.5}}


def test_an_alias_is_read_as_its_method(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = catalogue()["checkpointing"]["full"]
    monkeypatch.setattr(kind, "aliases", {"whole": "full"})
    monkeypatch.setitem(catalogue()["checkpointing"], "whole", kind)

    loaded = suite(
        "grid: {checkpointing: [off, whole]}\nexclude: [{checkpointing: {method: whole}}]\n"
    )

    assert [trial.label for trial in loaded.trials()] == ["baseline"]
    assert labels("grid: {checkpointing: whole}\n") == ["checkpointing 1"]


def test_illegal_points_are_kept_for_the_runner_to_explain() -> None:
    (trial,) = suite("grid: {quantization: nf4}\n").trials()

    assert trial.conflicts()


@given(
    precisions=st.lists(st.sampled_from(["fp32", "bf16"]), min_size=1, unique=True),
    ratios=st.lists(st.integers(1, 100).map(lambda n: n / 100), max_size=4, unique=True),
    ranks=st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True),
    off=st.booleans(),
)
def test_a_product_has_as_many_points_as_the_product_of_its_alternatives(
    precisions: list[str], ratios: list[float], ranks: list[int], off: bool
) -> None:
    grid = {
        "precision": precisions,
        "checkpointing": ["off", *([{"ratio": ratios}] if ratios else [])],
        "adapters": [{"method": "lora", "rank": ranks}, *(["off"] if off else [])],
    }
    trials = suite(f"grid: {json.dumps(grid)}\n").trials()

    assert len(trials) == len(precisions) * (1 + len(ratios)) * (len(ranks) + off)
    assert len({trial.id for trial in trials}) == len(trials)


@given(st.randoms())
def test_ids_survive_reordered_yaml(random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        items = [(key, shuffled(inner)) for key, inner in value.items()]
        random.shuffle(items)
        return dict(items)

    data = {
        "model": {"name": "me/x", "revision": "main"},
        "budget": {"steps": 7, "batch": 2, "seed": 1},
        "evaluate": {"tasks": ["facts"], "limit": 3},
        "grid": {
            "precision": {"method": "bf16"},
            "adapters": {"rank": [4, 8], "method": "lora", "merge": False},
            "checkpointing": ["off", {"ratio": 0.5}],
        },
    }

    def ids(value: Any) -> set[str]:
        return {trial.id for trial in Suite.parse(json.dumps(value), "x.yaml").trials()}

    assert ids(shuffled(data)) == ids(data)


def test_a_trial_of_a_suite_survives_its_payload() -> None:
    for trial in suite("grid: {adapters: {method: lora, rank: [4, 8]}}\n").trials():
        assert Trial.from_payload(json.loads(json.dumps(trial.payload()))) == trial


# Budgets that a grid varies.

SHAPED = "budget: {sequence: 32, batch: 8}\n"


def test_a_grid_may_vary_the_shape_of_the_budget() -> None:
    trials = suite(f"{SHAPED}grid: {{budget: {{sequence: [16, 32], batch: [4, 8]}}}}\n").trials()

    assert [(t.budget.sequence, t.budget.batch, t.budget.accumulation) for t in trials] == [
        (16, 4, 1),
        (16, 8, 1),
        (32, 4, 1),
        (32, 8, 1),
    ]
    assert [trial.label for trial in trials] == [
        "sequence 16 + batch 4",
        "sequence 16",
        "batch 4",
        "baseline",
    ]
    assert len({trial.id for trial in trials}) == 4


def test_a_budget_in_a_grid_goes_with_every_slot() -> None:
    grid = f"{SHAPED}grid: {{precision: [fp32, bf16], budget: [{{}}, {{sequence: 16}}]}}\n"

    assert labels(grid) == ["fp32", "fp32 + sequence 16", "bf16", "bf16 + sequence 16"]
    assert labels(f"{grid}design: each\n") == ["fp32", "bf16", "fp32 + sequence 16"]


def test_points_of_a_list_may_have_budgets_of_their_own() -> None:
    grid = "design: list\ngrid:\n  - {precision: bf16}\n  - {precision: bf16, budget: {batch: 2}}\n"

    assert labels(f"{SHAPED}{grid}") == ["bf16", "bf16 + batch 2"]


def test_a_point_is_the_same_whether_suite_or_grid_names_its_budget() -> None:
    (one,) = suite("budget: {sequence: 16}\ngrid: {precision: bf16}\n").trials()
    (other,) = suite("grid: {precision: bf16, budget: {sequence: 16}}\n").trials()

    assert (one.id, one.label) == (other.id, "bf16")
    assert other.label == "bf16 + sequence 16"


def test_exclude_and_repeats_know_budgets() -> None:
    loaded = suite(
        f"{SHAPED}grid: {{checkpointing: [off, full], budget: {{sequence: [16, 32, 64]}}}}\n"
        "exclude: [{budget: {sequence: [64]}, checkpointing: off}]\n"
        "repeats_where: [{match: {budget: {sequence: 32, batch: 8}}, repeats: 3}]\n"
    )

    assert {trial.label: loaded.repeats_of(trial) for trial in loaded.trials()} == {
        "sequence 16": 1,
        "baseline": 3,
        "checkpointing 1 + sequence 16": 1,
        "checkpointing 1": 3,
        "checkpointing 1 + sequence 64": 1,
    }


# Exclude and repeats.

GRID = "grid: {precision: [fp32, bf16], adapters: [off, {method: lora, rank: [1, 4, 16]}]}\n"


@pytest.mark.parametrize(
    ("part", "left"),
    [
        ("{adapters: off}", 6),
        ("{adapters: lora}", 2),
        ("{adapters: {rank: 4}}", 6),
        ("{adapters: {rank: [1, 4]}}", 4),
        ("{precision: bf16, adapters: {rank: 4.0}}", 7),
        ("{precision: [bf16, off], adapters: [off, {rank: 1}]}", 6),
        ("{adapters: {merge: false, targets: all-linear}}", 2),
    ],
)
def test_exclude_leaves_out_what_holds_all_that_is_named(part: str, left: int) -> None:
    assert len(suite(f"{GRID}exclude: [{part}]\n").trials()) == left


def test_exclude_compares_a_list_as_one_value() -> None:
    grid = "grid: {adapters: {method: lora, targets: [[q_proj], [q_proj, v_proj]]}}\n"

    assert len(suite(f"{grid}exclude: [{{adapters: {{targets: [q_proj]}}}}]\n").trials()) == 1


def test_the_first_rule_that_matches_sets_the_repeats() -> None:
    loaded = suite(
        f"{GRID}repeats: 2\n"
        "repeats_where:\n"
        "  - {match: {adapters: {rank: [1, 4]}, precision: bf16}, repeats: 5}\n"
        "  - {match: {precision: bf16}, repeats: 3}\n"
    )

    assert {trial.label: loaded.repeats_of(trial) for trial in loaded.trials()} == {
        "fp32": 2,
        "fp32 + lora r1": 2,
        "fp32 + lora r4": 2,
        "fp32 + lora r16": 2,
        "bf16": 3,
        "bf16 + lora r1": 5,
        "bf16 + lora r4": 5,
        "bf16 + lora r16": 3,
    }


def test_true_is_not_one() -> None:
    text = f"{GRID}exclude: [{{adapters: {{merge: 0}}}}]\n"

    assert error(HEAD + text).startswith("x.yaml:4: exclude: no point of the grid")


# Errors: one line, with the line of what must be mended.


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "x.yaml:1: the file is empty; a suite needs at least model and grid"),
        ("# only a comment\n", "x.yaml:1: the file is empty"),
        ("- 1\n", "x.yaml:1: a suite is a mapping of keys, not a list"),
        ("words\n", "x.yaml:1: a suite is a mapping of keys, not 'words'"),
        ("a: [1\n", "x.yaml:2: not YAML: expected ','"),
        ("a:\n\tb: 1\n", "x.yaml:2: a tab cannot indent YAML; use spaces"),
        ("a: b\na: c\n", "x.yaml:2: the key 'a' stands here a second time"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: found a second document (---)"),
        ("a: \x01\n", "x.yaml: not YAML: unacceptable character"),
        ("a: *b\n", "x.yaml:1: not YAML: found undefined alias 'b'"),
        ("model: &m {name: *m}\n", "x.yaml: an anchor contains itself"),
        ("a: !!int x\n", "x.yaml:1: 'x' is not a value of tag:yaml.org,2002:int"),
        ("a: !!bool x\n", "x.yaml:1: 'x' is not a value of tag:yaml.org,2002:bool"),
        ("a:\n  <<: 3\n", "x.yaml:1: << merges a mapping, or a list of mappings"),
        ("? [1]\n: 2\n", "x.yaml:1: the key [...] must be text"),
        ("[" * 3000, "x.yaml: nested too deeply"),
        ("model: x\n1: 2\n", "x.yaml:1: the key 1 must be text; put it in quotes"),
        ("model: x\na: !tag x\n", "x.yaml:2: the tag !tag means nothing in a suite"),
        ("a:\n  - .inf\n", "x.yaml:2: '.inf' is not a number below 2^63"),
        ("a: .nan\n", "x.yaml:1: '.nan' is not a number below 2^63"),
        (f"a: {'9' * 400}\n", "x.yaml:1: '99999"),
        ("a:\n  - 1e400\n", "x.yaml:2: '1e400' is not a number below 2^63"),
    ],
)
def test_broken_yaml_is_one_line(text: str, line: str) -> None:
    assert error(text).startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("modle: x\ngrid: {}\n", "1: unknown key 'modle', did you mean 'model'?"),
        ("model: reference\nfoo: 1\n", "2: unknown key 'foo'; choose model, budget, "),
        ("grid: {}\n", "1: model is missing; write model: reference"),
        ("model: reference\n", "1: grid is missing; name the slots"),
        ("model: refrence\ngrid: {}\n", "1: unknown model 'refrence', did you mean 'reference'?"),
        ("grid: {}\nmodel: 3\n", "2: model must be a mapping, not 3"),
        ("grid: {}\nmodel: [x]\n", "2: model must be a mapping, not a list"),
        (
            "grid: {}\nmodel:\n  nam: x\n",
            "3: unknown setting of model: 'nam', did you mean 'name'?",
        ),
        ("grid: {}\nmodel: {revision: main}\n", "2: model needs 'name'"),
        (
            "grid: {}\nmodel: {name: x, revision: 1.0}\n",
            "2: model: revision must be text, not 1",
        ),
        (
            "grid: {}\nmodel:\n  name: x\n  weights: ranom\n",
            "4: model: weights must be 'hub' or 'random', not 'ranom'; did you mean 'random'?",
        ),
        (
            "grid: {}\nmodel: {name: x, weights: random}\n",
            "2: weights: random needs a config, whose shapes it fills: ",
        ),
        (
            "grid: {}\nmodel:\n  name: x\n  config: llama-3.3-7b\n",
            "4: unknown config 'llama-3.3-7b', did you mean 'llama-3.3-70b'? (a folder is",
        ),
        ("grid: {}\nmodel: ./nowhere\n", "2: model: there is no folder './nowhere'"),
        (
            "grid: {}\nmodel: {name: x, config: ./nowhere}\n",
            "2: model: there is no config.json in './nowhere'",
        ),
        (
            "grid: {}\nmodel: {config: llama-3.2-1b, weights: random}\nevaluate: {tasks: [mmlu]}\n",
            "3: accuracy of random weights means nothing; remove the tasks",
        ),
        (
            "grid: {}\nmodel:\n  config: llama-3.2-1b\n  layers: 2\n  name: x\n",
            "4: layers cuts a random model short; real weights need all of theirs",
        ),
        (
            "grid: {}\nmodel: {config: llama-3.2-1b, weights: random, layers: 0}\n",
            "2: model: layers must be at least 1, not 0",
        ),
    ],
)
def test_a_wrong_model_is_one_line(text: str, line: str) -> None:
    assert error(text).startswith(f"x.yaml:{line}")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("budget:\n  steps: many\n", "5: budget: steps must be a whole number, not 'many'"),
        ("budget: {steps: 2.5}\n", "4: budget: steps must be a whole number, not 2.5"),
        ("budget: {steps: true}\n", "4: budget: steps must be a whole number, not true"),
        ("budget: {steps: off}\n", "4: budget: steps must be a whole number, not 'off'"),
        ("budget: {steps: 0}\n", "4: budget: steps must be at least 1, not 0"),
        ("budget: {stepz: 3}\n", "4: unknown setting of budget: 'stepz', did you mean 'steps'?"),
        ("budget:\n", "4: budget must be a mapping, not nothing"),
        (
            "budget: {learning_rate: '1e-4'}\n",
            "4: budget: learning_rate must be a number, not '1e-4'",
        ),
        ("budget: {learning_rate: no}\n", "4: budget: learning_rate must be a number, not 'no'"),
        ("budget: {learning_rate: true}\n", "4: budget: learning_rate must be a number, not true"),
        ("budget: {learning_rate: 0}\n", "4: budget: learning_rate must be more than 0, not 0"),
        ("budget: {steps: 3}\n", "4: budget: warmup 5 leaves none of 3 steps to be timed"),
        (
            "budget:\n  steps: 3\n  warmup: 3\n",
            "6: budget: warmup 3 leaves none of 3 steps to be timed",
        ),
        ("budget: {data: refrence}\n", "4: budget: data must be reference, random, "),
        ("budget: {data: [1]}\n", "4: budget: data must be reference, random, "),
        ("budget: {data: {}}\n", "4: budget: data needs a file or a hub data set"),
        (
            "budget:\n  data:\n    fil: x\n",
            "6: unknown source of data 'fil', did you mean 'file'?",
        ),
        (
            "budget:\n  data:\n    file: no.jsonl\n",
            "6: data: there is no file 'no.jsonl' beside the suite",
        ),
        ("budget: {data: {file: 3}}\n", "4: data: file must be text, not 3"),
        ("budget: {data: {file: a, hub: b}}\n", "4: budget: data is a file or a hub data set,"),
        ("budget: {data: {hub: a, splt: b}}\n", "4: unknown setting of data: 'splt', did you mean"),
        ("evaluate: {tasks: facts}\n", "4: evaluate: tasks must be a list, not 'facts'"),
        (
            "evaluate:\n  tasks:\n    - facts\n    - 3\n",
            "7: evaluate: tasks[1] must be text, not 3",
        ),
        ("evaluate: {limit: 0}\n", "4: evaluate: limit must be at least 1, not 0"),
        (
            "evaluate: {chat_template: 1}\n",
            "4: evaluate: chat_template must be true or false, not 1",
        ),
        ("design: steps\n", "4: unknown design 'steps'; choose product, each, list or ladder"),
        ("design: prodct\n", "4: unknown design 'prodct', did you mean 'product'?"),
        ("design: list\n", "3: design is list, so grid must be a list, not a mapping"),
        ("objectives: step_seconds\n", "4: objectives must be a list, not 'step_seconds'"),
        ("objectives: []\n", "4: objectives names no measurement"),
        ("objectives: [3]\n", "4: a measurement's name is text, not 3"),
        (
            "objectives:\n  - step_seconds\n  - peak_tensor_byte\n",
            "6: unknown measurement 'peak_tensor_byte', did you mean 'peak_tensor_bytes'?",
        ),
        ("objectives: [spd]\n", "4: unknown measurement 'spd'; choose peak_tensor_bytes, "),
        (
            "objectives: [acuracy.facts]\n",
            "4: unknown measurement 'acuracy.facts', did you mean 'accuracy.facts'?",
        ),
        (
            "objectives: [accuracy.facts]\n",
            "4: accuracy.facts is never measured: evaluate has no tasks; add evaluate: ",
        ),
        (
            "evaluate: {tasks: [facts]}\nobjectives: [accuracy.fact]\n",
            "5: accuracy.fact is never measured: 'fact' is not in evaluate.tasks; did you mean",
        ),
        (
            "evaluate: {tasks: [facts]}\nlimits: {accuracy.xyz: 1}\n",
            "5: accuracy.xyz is never measured: 'xyz' is not in evaluate.tasks; choose facts",
        ),
        (
            "limits: {peak_tensor_bytes.trian: 1GB}\n",
            "4: unknown measurement 'peak_tensor_bytes.trian', did you mean",
        ),
        (
            "limits:\n  peak_reserved_bytes: 80G\n",
            "5: peak_reserved_bytes: '80G' is not a size; write 80GiB",
        ),
        ("limits: {step_seconds: 2x}\n", "4: step_seconds: '2x' is not a time; write 500ms"),
        ("limits: {tokens_per_second: x}\n", "4: tokens_per_second must be a number, not 'x'"),
        ("resources: {memory: lots}\n", "4: memory: 'lots' is not a size"),
        ("resources: {mem: 1GB}\n", "4: unknown setting of resources: 'mem', did you mean"),
        ("repeats: 0\n", "4: repeats must be a whole number of at least 1, not 0"),
        ("repeats: true\n", "4: repeats must be a whole number of at least 1, not true"),
        ("timeout: 5 parsecs\n", "4: timeout: '5 parsecs' is not a time"),
        ("repeats_where: {}\n", "4: repeats_where must be a list, not a mapping"),
        (
            "repeats_where:\n  - match: {precision: off}\n",
            "5: repeats_where needs 'repeats'",
        ),
        ("repeats_where: [{mach: {}}]\n", "4: unknown key of repeats_where 'mach', did you mean"),
        (
            "repeats_where:\n  - match: {precision: bf16}\n    repeats: 3\n",
            "5: repeats_where: no point of the suite is matched by this",
        ),
        ("exclude: {}\n", "4: exclude must be a list, not a mapping"),
        ("exclude: [{}]\n", "4: exclude names no slot, so it would cover every point"),
        (
            "exclude:\n  - {precision: off}\n",
            "4: exclude leaves no point of the grid",
        ),
        (
            "exclude:\n  - precision: off\n  - precision: bf16\n",
            "6: exclude: no point of the grid is covered by this",
        ),
        (
            "exclude:\n  - adapters:\n      rnk: 4\n",
            "6: unknown setting of adapters: 'rnk', did you mean 'rank'?",
        ),
        (
            "exclude: [{quantization: nf5}]\n",
            "4: unknown quantization method 'nf5', did you mean 'nf4'?",
        ),
    ],
)
def test_a_wrong_key_is_one_line(body: str, line: str) -> None:
    assert error(f"{HEAD}grid: {{}}\n{body}").startswith(f"x.yaml:{line}")


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        ("grid: 3\n", "3: grid must be a mapping, not 3"),
        ("grid: [{}]\n", "3: design: product takes one mapping of slots, not a list of points"),
        ("design: list\ngrid:\n  - bf16\n", "5: a point must be a mapping, not 'bf16'"),
        (
            "grid:\n  precision: bf16\n\n  qantization: nf4\n",
            "6: unknown slot 'qantization', did you mean 'quantization'?",
        ),
        ("grid:\n  xyz: nf4\n", "4: unknown slot 'xyz'; choose precision, "),
        (
            "grid:\n  quantization:\n    - off\n    - nf5\n",
            "6: unknown quantization method 'nf5', did you mean 'nf4'?",
        ),
        ("grid: {quantization: {method: 4}}\n", "3: unknown quantization method 4; choose "),
        ("grid: {adapters: {rank: 4}}\n", "3: adapters needs a method: loftq, lora"),
        (
            "grid:\n  adapters:\n    method: lora\n    rnk: 4\n",
            "6: unknown setting of adapters lora: 'rnk', did you mean 'rank'?",
        ),
        (
            "grid:\n  adapters:\n    - off\n    - method: lora\n      rank:\n        - 4\n"
            "        - yes\n",
            "9: adapters lora: rank must be a whole number, not 'yes'",
        ),
        (
            "grid:\n  adapters:\n    method: lora\n    rank: true\n",
            "6: adapters lora: rank must be a whole number, not true",
        ),
        (
            "grid:\n  adapters:\n    method: lora\n    rank: [4,\n      0]\n",
            "7: adapters lora: rank must be at least 1, not 0",
        ),
        (
            "grid: {adapters: {method: lora, merge: 1}}\n",
            "3: adapters lora: merge must be true or false, not 1",
        ),
        (
            "grid: {adapters: {method: lora, targets: 3}}\n",
            "3: adapters lora: targets must be 'all-linear' or a list, not 3",
        ),
        (
            "grid: {adapters: {method: lora, targets: [q_proj, 3]}}\n",
            "3: adapters lora: targets[1] must be text, not 3",
        ),
        (
            "grid:\n  checkpointing: {ratio: 1.5}\n",
            "4: checkpointing full: ratio must be at most 1, not 1.5",
        ),
        (
            "grid: {checkpointing: {ratio: off}}\n",
            "3: checkpointing full: ratio must be a number, not 'off'",
        ),
        (
            "grid: {checkpointing: false}\n",
            "3: checkpointing must be off, a method, or a mapping of settings, not false",
        ),
        ("grid: {checkpointing: }\n", "3: checkpointing must be off, a method, or a mapping"),
        ("grid: {checkpointing: []}\n", "3: checkpointing has no alternative; write off"),
        ("grid: {checkpointing: {ratio: []}}\n", "3: ratio has no alternative"),
        (
            "grid:\n  budget:\n    - sequence: 16\n    - steps: 5\n",
            "6: a grid varies sequence, batch or accumulation of the budget, and steps is the "
            "suite's own, so that its points compare",
        ),
        (
            "grid:\n  budget:\n    seqence: 16\n",
            "5: unknown setting of budget: 'seqence', did you mean 'sequence'?",
        ),
        (
            "grid:\n  budget:\n    sequence: [16,\n      1]\n",
            "6: budget: sequence must be at least 2, not 1",
        ),
        (
            "grid: {budget: {batch: 1.5}}\n",
            "3: budget: batch must be a whole number, not 1.5",
        ),
        ("grid: {budget: off}\n", "3: budget in a grid must be a mapping, not 'off'"),
        ("grid: {budget: []}\n", "3: budget has no alternative"),
        (
            "grid:\n  precision: bf16\n  sequence: [16, 32]\n",
            "5: sequence belongs to the budget; write budget: {sequence: ...}",
        ),
    ],
)
def test_a_wrong_grid_is_one_line(grid: str, line: str) -> None:
    assert error(f"# Why?\nmodel: reference\n{grid}").startswith(f"x.yaml:{line}")


def test_a_key_from_a_merge_has_the_line_where_it_was_written() -> None:
    text = f"{HEAD}resources: &r\n  steps: 9\n  memory: 1GB\ngrid: {{}}\nbudget: {{<<: *r}}\n"

    assert error(text).startswith("x.yaml:5: unknown setting of budget: 'memory'; choose steps, ")


def test_a_sentence_of_a_technique_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = catalogue()["checkpointing"]["full"]

    def refuse(text: str, *, strict: bool) -> None:
        error = {"type": "value_error", "loc": (), "ctx": {"error": ValueError("half is enough")}}
        raise ValidationError.from_exception_data("x", [error])  # type: ignore[list-item]

    monkeypatch.setattr(kind, "model_validate_json", refuse)

    assert error(f"{HEAD}grid:\n  checkpointing: full\n") == (
        "x.yaml:4: checkpointing full: half is enough"
    )


def test_a_grid_that_no_machine_could_run_is_refused_before_it_is_built() -> None:
    ranks = list(range(1, 500))
    alphas = f"grid: {{adapters: {{method: lora, rank: {ranks}, alpha: {ranks}}}}}\n"
    ratios = [number / 500 for number in ranks]
    points = f"grid: {{adapters: {{method: lora, rank: {ranks}}}, checkpointing: [off, {{ratio: "

    assert error(HEAD + alphas) == "x.yaml:3: adapters lora has more than 100,000 alternatives"
    assert error(f"{HEAD}{points}{ratios}}}]}}\n") == (
        "x.yaml:3: the grid has 249,500 points; 100,000 is the most"
    )


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_bytes(b"model: \xff\xfe\n")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    empty = tmp_path / "empty"
    empty.mkdir()

    def load(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            Suite.load(path)
        return str(caught.value)

    quick = tmp_path / "quick.yaml"
    assert load(tmp_path / "quikc.yaml") == (
        f"{tmp_path}/quikc.yaml: no such file, did you mean '{quick}'?"
    )
    assert load(empty / "x.yaml") == f"{empty}/x.yaml: no such file"
    assert load(tmp_path) == f"{tmp_path}: a folder, not a suite; it holds binary.yaml, quick.yaml"
    assert load(empty) == f"{empty}: a folder, not a suite"
    assert load(quick) == f"{quick}:1: not UTF-8 text; save the file as UTF-8"
    assert load(tmp_path / "binary.yaml").endswith(":2: not UTF-8 text; save the file as UTF-8")
    assert load(quick / "x.yaml") == f"{quick}/x.yaml: cannot be read: Not a directory"
    assert "cannot be read" in load(tmp_path / "a\0b")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbf# Why?\r\nmodel: reference\r\ngrid: {}\r\n")

    assert Suite.load(path).question == "Why?"


@given(st.text(max_size=200))
def test_no_text_is_a_traceback(text: str) -> None:
    message = ""
    try:
        Suite.parse(text, "x.yaml")
    except UserError as caught:
        message = str(caught)

    assert "\n" not in message


# The schema, the shipped suites and the shipped shapes.


def test_the_schema_has_the_keys_of_a_suite_and_the_methods_of_every_slot() -> None:
    schema = suite_schema()

    assert set(schema["properties"]) == set(keys())
    for slot, methods in catalogue().items():
        assert schema["$defs"][f"slot.{slot}"]["anyOf"][0]["enum"] == ["off", *methods]
    json.dumps(schema, allow_nan=False)


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_schema_accepts_the_shipped_suites(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(suite_schema())

    jsonschema.validate(YAML(typ="safe").load(path), suite_schema())


@pytest.mark.parametrize(
    "grid",
    [
        # Methods of several classes, in several mappings and in one.
        "{optimizer: [{method: adafactor}, {method: galore, rank: 8}]}",
        "{optimizer: {method: [adafactor, galore], in_backward: [true, false]}}",
        "{adapters: [off, {method: [lora, vera], rank: [4, 8]}]}",
        "{adapters: {method: [lora, rslora], rank: 4}}",
        "{quantization: {method: [rtn, auto-gptq], bits: [2, 3]}, adapters: lora}",
        "{budget: {sequence: [16, 32], batch: 4}}",
        "{budget: [{}, {batch: 4, accumulation: 2}]}",
    ],
)
def test_the_schema_accepts_what_the_reader_accepts(grid: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    text = f"{HEAD}grid: {grid}\n"

    assert Suite.parse(text, "x.yaml").trials()
    jsonschema.validate(YAML(typ="safe").load(text), suite_schema())


@pytest.mark.parametrize(
    "body",
    [
        "grid: {qantization: nf4}",
        "grid: {quantization: nf5}",
        "grid: {adapters: {method: lora, rnk: 4}}",
        "grid: {adapters: {method: lora, rank: [4, x]}}",
        "grid: {checkpointing: {ratio: 1.5}}",
        "grid: {budget: {steps: [4, 8]}}",
        "grid: {budget: off}",
        "grid: {budget: {sequence: [16, 1]}}",
        "grid: {adapters: {method: [lora, oft], rank: 4}}",
        "grid: {adapters: {method: [lora, nope]}}",
        "grid: {}\nmodle: x",
        "grid: {}\nobjectives: [speed]",
        "grid: {}\nrepeats: 0",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(body: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    assert error(f"{HEAD}{body}\n")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(YAML(typ="safe").load(f"{HEAD}{body}\n"), suite_schema())


@pytest.mark.parametrize(
    ("name", "legal", "runs"),
    [
        ("smoke", 7, 7),
        ("quickstart", 21, 31),
        ("quickstart-full", 21, 63),
        ("llama-3.3-70b", 574, 574),
        ("llama-3.3-70b-qlora", 8, 8),
        ("llama-3.2-1b", 312, 312),
        ("ladder", 7, 21),
        ("llama-3.3-70b-ladder", 7, 7),
        ("llama-3.3-70b-sequence", 36, 36),
    ],
)
def test_the_shipped_suites_have_the_points_they_promise(name: str, legal: int, runs: int) -> None:
    (path,) = (path for path in SUITES if path.stem == name)
    loaded = Suite.load(os.path.relpath(path))
    trials = [trial for trial in loaded.trials() if not trial.conflicts()]

    assert len(trials) == legal
    assert sum(loaded.repeats_of(trial) for trial in trials) == runs
    assert loaded.question.endswith("?")


def test_every_shipped_suite_is_promised_something() -> None:
    assert {path.stem for path in SUITES} == {
        "smoke",
        "quickstart",
        "quickstart-full",
        "llama-3.3-70b",
        "llama-3.3-70b-qlora",
        "llama-3.2-1b",
        "ladder",
        "llama-3.3-70b-ladder",
        "llama-3.3-70b-sequence",
        "compression",
        # Degrees of sharding: to be run, and to be planned.
        "sharding",
        "sharding-random",
        "llama-3.3-70b-sharding",
        # These grow with the catalogue: tests/test_shipped_suites.py says what they promise.
        "catalogue",
        "claims",
        "llama-3.3-70b-claims",
    }


def test_the_quickstart_varies_one_setting_at_a_time_along_each_curve() -> None:
    (path,) = (path for path in SUITES if path.stem == "quickstart")
    points = [trial.label for trial in Suite.load(path).trials()]

    for curve in (
        ["fp32 + lora r16", "bf16 + lora r16", "fp32 + int8 + lora r16", "fp32 + nf4 + lora r16"],
        ["fp32", *(f"fp32 + lora r{rank}" for rank in (1, 4, 16, 64))],
        [f"fp32 + magnitude {percent}% + lora r16" for percent in (30, 50, 70)],
        [f"fp32 + lora r16 + checkpointing {ratio}" for ratio in ("0.5", "1")],
        ["bf16 + nf4 + lora r16 + checkpointing 1"],
    ):
        assert set(curve) <= set(points)


def test_both_quickstarts_ask_the_same_points() -> None:
    short, full = (Suite.load(path) for path in SUITES if path.stem.startswith("quickstart"))

    assert short.grid == full.grid


@pytest.mark.parametrize(
    ("name", "parameters", "tied"),
    [
        ("llama-3.3-70b", 70_553_706_496, False),
        ("llama-3.1-8b", 8_030_261_248, False),
        ("llama-3.2-3b", 3_212_749_824, True),
        ("llama-3.2-1b", 1_235_814_400, True),
    ],
)
def test_the_shipped_shapes_have_the_public_number_of_parameters(
    name: str, parameters: int, tied: bool
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(configs.path(name))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    assert sum(math.prod(part.shape) for part in model.parameters()) == parameters
    assert config.tie_word_embeddings is tied
    assert config.rope_parameters["rope_type"] == "llama3"
    assert config.dtype == torch.bfloat16


def test_every_shape_is_found_by_name_and_any_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    assert [configs.path(name).stem for name in configs.names()] == list(configs.names())
    assert configs.path(str(tmp_path)) == tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        configs.path("llama-9")


def test_suites_are_read_without_torch() -> None:
    code = (
        "import sys; from tradebench.suite import Suite, suite_schema\n"
        "Suite.load(sys.argv[1]).trials(); suite_schema()\n"
        "print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(SUITES[0])], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"
