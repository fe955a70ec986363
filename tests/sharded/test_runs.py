"""Sharded trials, run for real: their peaks are those predicted, and their scores one process's.

And a rank that goes wrong ends its trial.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tradebench import store
from tradebench.predict.memory import predict_memory
from tradebench.program.model import build_model
from tradebench.result import Measurement, Result
from tradebench.runner import process
from tradebench.runner.options import Options
from tradebench.runner.supervisor import run
from tradebench.suite import Suite
from tradebench.trial import Evaluate, Model, Trial

SUITES = Path(__file__).parents[2] / "suites"
Make = Callable[..., Trial]
Settings = dict[str, dict[str, Any]]

pytestmark = pytest.mark.slow

LORA = {"adapters": {"method": "lora", "rank": 4}}
CHECKPOINTING = {"checkpointing": {"method": "full"}}
TECHNIQUES: dict[str, Settings] = {
    "full": {},
    "bf16-lora": {"precision": {"method": "bf16"}, **LORA, **CHECKPOINTING},
    "nf4": {"quantization": {"method": "nf4"}, **LORA},
    "rtn": {"quantization": {"method": "rtn"}, "adapters": {"method": "vera", "rank": 8}},
    "loftq": {"quantization": {"method": "nf4"}, "adapters": {"method": "loftq", "rank": 4}},
    "fp8": {"precision": {"method": "fp8"}, "adapters": {"method": "oft", "block": 16}},
    "chunked": {"loss": {"method": "chunked", "tokens": 16}},
    "pruned": {"pruning": {"method": "magnitude"}},
}
DEGREES = [(2, True), (2, False), (3, True)]
TASKS = {"tasks": ["facts", "sort"], "limit": 12, "batch_size": 5}


def sharded(settings: Settings, degree: int, **fields: Any) -> Settings:
    return {**settings, "sharding": {"method": "fsdp2", "degree": degree, **fields}}


@pytest.fixture(scope="module", autouse=True)
def programs() -> Any:
    """Let workers find the programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        yield


def ran(folder: Path, trials: list[Trial], **options: Any) -> dict[str, Result]:
    directory = store.create_run(folder, "sharded", {})
    how = Options(**{"threads": 1, "patience": 60.0, **options})
    done = run(trials, directory=directory, suite="sharded", options=how)
    assert process.descendants(os.getpid()) == []
    return {result.trial: result for result in done.results}


# Memory.


def of(name: str, degree: int, reshard: bool, make: Make) -> Trial:
    return make(sharded(TECHNIQUES[name], degree, reshard=reshard))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_trial: Make) -> dict[str, Result]:
    trials = [of(name, *how, tiny_trial) for name in TECHNIQUES for how in DEGREES]
    return ran(tmp_path_factory.mktemp("measured"), trials)


@pytest.mark.parametrize(("degree", "reshard"), DEGREES, ids=["2-zero3", "2-zero2", "3-zero3"])
@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_rank_takes_the_bytes_that_are_predicted(
    name: str, degree: int, reshard: bool, measured: dict[str, Result], tiny_trial: Make
) -> None:
    trial = of(name, degree, reshard, tiny_trial)
    found = measured[trial.id]
    assert (found.status, found.reason) == ("ok", None)
    # Where weights are loaded whole, transformers has more at once than the fake world knows.
    skipped = set() if trial.in_shares else {"peak_tensor_bytes.load"}
    for measure, predicted in predict_memory(trial).measurements.items():
        if measure not in skipped:
            assert first(found.measurements[measure]) == predicted.value, measure
            assert max(of_ranks(found.measurements[measure])) == predicted.value, measure


def first(measurement: Measurement) -> float:
    return of_ranks(measurement)[0]


def of_ranks(measurement: Measurement) -> tuple[float, ...]:
    assert measurement.ranks is not None
    return measurement.ranks


def test_ranks_differ_only_where_there_is_less_than_a_row_for_each(
    measured: dict[str, Result], tiny_trial: Make
) -> None:
    even, odd = (measured[of("bf16-lora", *how, tiny_trial).id] for how in (DEGREES[0], DEGREES[2]))

    assert len(set(of_ranks(even.measurements["peak_tensor_bytes"]))) == 1
    # Adapters have four rows, of which the last of three ranks has none: nor their moments.
    *others, last = of_ranks(odd.measurements["peak_optimizer_bytes"])
    assert len(set(others)) == 1
    assert 0 < last < others[0]


@pytest.mark.parametrize(("degree", "reshard"), DEGREES, ids=["2-zero3", "2-zero2", "3-zero3"])
@pytest.mark.parametrize("name", ["full", "bf16-lora", "nf4"])
def test_while_loading_no_rank_has_more_than_its_share_and_a_layer(
    name: str, degree: int, reshard: bool, measured: dict[str, Result], tiny_trial: Make
) -> None:
    trial = of(name, degree, reshard, tiny_trial)
    found = measured[trial.id]
    model: Any = build_model(trial.model, torch.float32)
    layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    # Adapters are made whole, and scales of 4 bit weights stay so.
    scales = found.effects.get("quantization", {}).get("scale_bytes", 0)
    adapters = 4 * int(found.value("trainable_parameters") or 0) * ("adapters" in trial.settings)
    beside = layer + scales + adapters
    whole = sum(parameter.nbytes for parameter in model.parameters())

    assert trial.in_shares
    for phase in ("load", "compress"):
        for peak in of_ranks(found.measurements[f"peak_tensor_bytes.{phase}"]):
            assert peak <= found.effects["sharding"]["share_bytes"] + beside, phase
            assert peak < whole, phase


def test_shares_fall_as_the_degree_rises(
    tmp_path: Path, tiny_trial: Make, measured: dict[str, Result]
) -> None:
    more = [tiny_trial(sharded({}, degree)) for degree in (1, 4)]
    results = {**ran(tmp_path, more), **measured}
    by_degree = {degree: results[tiny_trial(sharded({}, degree)).id] for degree in (1, 2, 3, 4)}
    whole = by_degree[1]
    parameters = 39  # each of which may be padded by a row, and has a counter of its steps
    for degree, result in by_degree.items():
        assert (result.status, result.reason) == ("ok", None)
        effect = result.effects["sharding"]
        padding = parameters * 4 * 192
        share = effect["parameter_bytes"] / degree
        assert share <= effect["share_bytes"] <= share + padding
        for name, exact in (("load", 1), ("optimizer", 2)):
            key = "peak_tensor_bytes.load" if name == "load" else "peak_optimizer_bytes"
            found, all_of_it = result.measurements[key], whole.measurements[key]
            limit = all_of_it.value / degree + exact * padding
            values = found.ranks if degree > 1 else (found.value,)
            assert values is not None
            assert all(all_of_it.value / degree * 0.98 <= value <= limit for value in values), key


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """What every point of the shipped suite holds after a step."""
    short = {"steps": 1, "warmup": 0}
    trials = [
        trial.model_copy(
            update={"evaluate": Evaluate(), "budget": trial.budget.model_copy(update=short)}
        )
        for trial in Suite.load(SUITES / "sharding.yaml").trials()
    ]
    folder = tmp_path_factory.mktemp("held")
    return list(ran(folder, trials, program="sharded.programs:hold").values())


@pytest.mark.parametrize("others", [(), ("adapters",)], ids=["full", "lora"])
def test_what_a_rank_holds_of_the_shipped_suite_falls_as_one_by_the_degree(
    others: tuple[str, ...], held: list[Result]
) -> None:
    results = [result for result in held if set(result.settings) == {"sharding", *others}]
    by_degree = {result.settings["sharding"]["degree"]: result for result in results}
    whole = by_degree[1]
    # Every matrix of the reference model has rows for all, so that nothing is padded. The counter
    # of steps that AdamW has for each parameter is everybody's.
    trained = whole.value("held_optimizer_bytes")
    counters = int(trained or 0) - 2 * int(whole.value("held_gradients_bytes") or 0)

    assert set(by_degree) == {1, 2, 4}
    assert [(result.status, result.reason) for result in results] == [("ok", None)] * 3
    assert counters in range(4, 4 * 200, 4)
    for degree in (2, 4):
        for name, shared in (("weights", 0), ("gradients", 0), ("optimizer", counters)):
            measure = f"held_{name}_bytes"
            own = ((whole.value(measure) or 0) - shared) / degree + shared
            found = by_degree[degree].measurements[measure]
            assert of_ranks(found) == (own,) * degree, measure


# Scores.


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result]]:
    trials = [
        Trial(
            model=Model.model_validate({"name": "reference"}),
            budget=made.budget.model_copy(
                update={"steps": 2, "batch": 2, "sequence": 32, "accumulation": 2 // made.ranks}
            ),
            evaluate=Evaluate.model_validate(TASKS),
            techniques=made.techniques,
        )
        for degree in (1, 2)
        for others in ({}, LORA, {"adapters": {**LORA["adapters"], "merge": True}})
        for made in [payload(sharded(others, degree))]
    ]
    place = tmp_path_factory.mktemp("scored")
    results = ran(place, trials)
    (folder,) = place.glob("sharded/*")
    return folder, [results[trial.id] for trial in trials]


def payload(settings: Settings) -> Trial:
    return Trial.from_payload(
        {"model": {"name": "reference"}, "budget": {}, "evaluate": {}, "settings": settings}
    )


@pytest.mark.parametrize("index", range(3), ids=["full", "lora", "merged"])
def test_scores_are_those_of_one_process(index: int, scored: tuple[Path, list[Result]]) -> None:
    folder, results = scored
    one, two = results[index], results[index + 3]

    assert [(each.status, each.reason) for each in (one, two)] == [("ok", None)] * 2
    for name, measurement in one.measurements.items():
        if name.startswith(("accuracy", "answer_nll")):
            assert two.value(name) == pytest.approx(measurement.value, rel=1e-4, abs=1e-6), name
    for moment in ("items_before", "items_after"):
        before, after = (items(folder / each.artifacts[moment]) for each in (one, two))
        assert [each["metrics"] for each in before] == [each["metrics"] for each in after]
        assert before


def items(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.open(file).read().splitlines()]


def test_ranks_that_generate_unequal_lengths_wait_for_each_other(
    tmp_path: Path, tiny_trial: Make
) -> None:
    trial = tiny_trial(sharded({}, 2), steps=1)
    (result,) = ran(tmp_path, [trial], program="sharded.programs:generate").values()

    assert (result.status, result.reason) == ("ok", None)
    (folder,) = tmp_path.glob("sharded/*")
    assert [(folder / f"generated{rank}.txt").read_text() for rank in (0, 1)] == ["2", "7"]


# Faults.

FAULTS = [
    ("dies", "killed", "rank 1: killed while training by SIGKILL from outside"),
    ("hangs", "timeout", "hang while training: rank 1 kept the others waiting for 4 s"),
    ("holds", "timeout", "hang while training: rank 1 kept the others waiting for 4 s"),
    ("fails", "failed", "rank 1: while training: ValueError: no good"),
    ("starves", "oom", "rank 1: out of memory while training: asked for 9 B"),
]


@pytest.fixture(scope="module")
def misbehaved(
    tmp_path_factory: pytest.TempPathFactory, tiny_trial: Make
) -> tuple[float, dict[str, Result]]:
    trials = [
        trial.model_copy(update={"model": trial.model.model_copy(update={"revision": fault})})
        for fault, *_ in FAULTS
        for trial in [tiny_trial(sharded({}, 2), steps=3)]
    ]
    began = time.monotonic()
    results = ran(
        tmp_path_factory.mktemp("misbehaved"),
        trials,
        program="sharded.programs:misbehave",
        patience=4.0,
    )
    return time.monotonic() - began, {
        str(result.model["revision"]): result for result in results.values()
    }


@pytest.mark.parametrize(("fault", "status", "reason"), FAULTS)
def test_a_rank_that_goes_wrong_in_the_middle_of_training_is_named(
    fault: str, status: str, reason: str, misbehaved: tuple[float, dict[str, Result]]
) -> None:
    seconds, results = misbehaved

    assert (results[fault].status, (results[fault].reason or "")[: len(reason)]) == (status, reason)
    assert seconds < 150
