"""A point's prediction: what it consists of, and that its parts belong to each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tradebench.devices.calibration import Calibration
from tradebench.devices.overheads import overhead
from tradebench.predict import point
from tradebench.predict.library import Library
from tradebench.predict.memory import predict_memory
from tradebench.predict.point import answers, predict, predict_point
from tradebench.result import CATEGORIES, Measurement
from tradebench.target import Target
from tradebench.trial import Trial

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]

H100 = Target(device="h100-80gb")
PHASES = ("load", "compress", "train")
COUNTERS = ("tensor", "allocated", "reserved", "process")
BATCH, LENGTH = 4, 64
PAGE = 2**21  # what the driver gives at a time
QLORA: dict[str, Any] = {
    "precision": {"method": "bf16"},
    "quantization": {"method": "nf4"},
    "adapters": {"method": "lora", "rank": 4},
    "checkpointing": {"method": "full", "ratio": 0.5},
}


@pytest.fixture(scope="module", params=[{}, QLORA], ids=["full", "qlora"])
def trial(request: pytest.FixtureRequest, tiny_trial: Make) -> Trial:
    return tiny_trial(request.param, batch=BATCH, sequence=LENGTH)


def asked(trial: Trial, target: Target = H100) -> dict[str, Any]:
    """The answer for one trial."""
    (found,) = predict([trial.payload()], target.model_dump())
    assert found["status"] == "ok", found["reason"]
    return dict(found)


def measured(answer: dict[str, Any]) -> dict[str, Measurement]:
    return {
        name: Measurement.model_validate(value) for name, value in answer["measurements"].items()
    }


@pytest.fixture(scope="module")
def library(trial: Trial) -> Library:
    """Keeps the trial's record, so that it is made once."""
    return Library([trial], device="cuda")


@pytest.fixture(scope="module")
def answer(trial: Trial, library: Library) -> dict[str, Any]:
    return predict_point(trial, library, H100)


def shallow(trial: Trial) -> Trial:
    """The trial on one layer, which is recorded quickly."""
    return trial.model_copy(update={"model": trial.model.model_copy(update={"layers": 1})})


@pytest.fixture(scope="module")
def found(answer: dict[str, Any]) -> dict[str, Measurement]:
    return measured(answer)


def peaks(counter: str) -> tuple[str, ...]:
    """The names of a counter's peaks, phase by phase."""
    return tuple(f"peak_{counter}_bytes.{phase}".removesuffix(".train") for phase in PHASES)


# What is predicted.


def test_every_counter_of_every_phase_and_the_time_of_a_step_are_predicted(
    found: dict[str, Measurement],
) -> None:
    categories = [f"peak_{name}_bytes" for name in CATEGORIES]
    memory = [name for counter in COUNTERS for name in peaks(counter)]
    step = ["step_seconds", "tokens_per_second", "tokens_per_step"]

    assert sorted(found) == sorted([*categories, *memory, *step])
    assert {found[name].unit for name in (*categories, *memory)} == {"B"}
    assert {name for name, each in found.items() if each.better == "more"} == set(step[1:])
    assert (found["step_seconds"].unit, found["tokens_per_second"].unit) == ("s", "1/s")


def test_what_is_not_known_of_a_device_is_an_interval(found: dict[str, Measurement]) -> None:
    uncertain = {name: each for name, each in found.items() if each.interval is not None}

    assert set(uncertain) == {*peaks("process"), "step_seconds", "tokens_per_second"}
    for each in uncertain.values():
        assert each.interval is not None
        assert 0 < each.interval[0] < each.value < each.interval[1]


def test_an_answer_is_plain_json(answer: dict[str, Any]) -> None:
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_a_pool_is_answered_the_same(tiny_trial: Make) -> None:
    trial = shallow(tiny_trial({}))
    alone = predict_point(trial, Library([trial], device="cuda"), H100)

    assert asked(trial) == {"status": "ok", **alone}


@pytest.mark.parametrize("settings", [{}, QLORA], ids=["full", "qlora"])
def test_without_a_device_only_tensors_are_predicted(
    settings: dict[str, Any], tiny_trial: Make
) -> None:
    """The same peaks as the meter counts, which follows the same program without a record."""
    trial = shallow(tiny_trial(settings))
    without, outcome = asked(trial, Target()), predict_memory(trial)
    names = {*peaks("tensor"), *(f"peak_{name}_bytes" for name in CATEGORIES)}

    assert set(without["measurements"]) == names
    assert {name: each.value for name, each in measured(without).items()} == {
        name: outcome.measurements[name].value for name in names
    }
    assert without["warnings"] == []


# How the parts belong together.


def test_categories_add_up_to_the_peak(found: dict[str, Measurement]) -> None:
    total = sum(found[f"peak_{name}_bytes"].value for name in CATEGORIES)

    assert total == found["peak_tensor_bytes"].value


def test_every_counter_holds_what_the_one_before_it_counts(found: dict[str, Measurement]) -> None:
    for tensor, allocated, reserved, process in zip(*map(peaks, COUNTERS), strict=True):
        assert found[tensor].value <= found[allocated].value <= found[reserved].value
        assert found[reserved].value % PAGE == 0
        low, high = found[process].interval or (0, 0)
        outside = overhead("sm_90")

        assert (low, found[process].value, high) == (
            found[reserved].value + outside.low,
            found[reserved].value + outside.typical,
            found[reserved].value + outside.high,
        )


@pytest.fixture
def readings(tmp_path: Path) -> Target:
    """A target whose overheads were read off the device, by one process."""
    file = tmp_path / "overheads.json"
    said = {"device": "NVIDIA H100 80GB HBM3", "context": [500, 520], "code": [100]}
    file.write_text(json.dumps(said))
    return H100.model_copy(update={"overheads": str(file)})


def test_what_was_read_off_the_device_takes_the_place_of_what_is_assumed(
    trial: Trial, library: Library, readings: Target
) -> None:
    answer = predict_point(trial, library, readings)
    found = measured(answer)
    reserved = found["peak_reserved_bytes"].value

    assert found["peak_process_bytes"].value == reserved + 610
    assert found["peak_process_bytes"].interval == (reserved + 600, reserved + 620)
    assert not [text for text in answer["warnings"] if "assumed" in text]


@pytest.mark.slow
def test_what_was_not_read_with_as_many_ranks_is_said_to_be_assumed(
    tiny_trial: Make, readings: Target
) -> None:
    pair = shallow(tiny_trial({**QLORA, "sharding": {"method": "fsdp2", "degree": 2}}))

    assert (
        "readings lack 2 ranks: bytes of communicator are assumed"
        in (asked(pair, readings)["warnings"])
    )


def test_tokens_per_second_are_the_tokens_of_a_step_over_its_seconds(
    found: dict[str, Measurement],
) -> None:
    step, rate = found["step_seconds"], found["tokens_per_second"]
    assert step.interval is not None
    assert rate.interval is not None
    tokens = BATCH * LENGTH

    assert rate.value * step.value == pytest.approx(tokens)
    assert rate.interval[0] * step.interval[1] == pytest.approx(tokens)
    assert rate.interval[1] * step.interval[0] == pytest.approx(tokens)


def test_accumulated_batches_make_longer_steps_of_more_tokens(tiny_trial: Make) -> None:
    one, three = (
        measured(asked(shallow(tiny_trial({}, batch=2, accumulation=count)))) for count in (1, 3)
    )
    tokens = [each["tokens_per_second"].value * each["step_seconds"].value for each in (one, three)]

    assert tokens == pytest.approx([64, 192])
    assert three["step_seconds"].value > one["step_seconds"].value


def test_a_longer_batch_takes_more_of_everything(tiny_trial: Make) -> None:
    few, many = (
        measured(asked(shallow(tiny_trial({}, batch=batch, sequence=128)))) for batch in (8, 4096)
    )

    for name in ("peak_tensor_bytes", "peak_reserved_bytes", "peak_process_bytes", "step_seconds"):
        assert few[name].value < many[name].value
    assert few["peak_tensor_bytes.load"] == many["peak_tensor_bytes.load"]


# The course of a step.


def test_the_course_of_a_step_reaches_its_peak(answer: dict[str, Any]) -> None:
    moments, parts = answer["timeline"]["moments"], answer["timeline"]["parts"]
    levels = [sum(size for name, size in moment.items() if name != "at") for moment in moments]

    assert {*moments[0]} <= {"at", *CATEGORIES}
    assert [moment["at"] for moment in moments] == sorted(moment["at"] for moment in moments)
    assert max(part["peak_bytes"] for part in parts) == max(levels)
    assert max(levels) <= answer["measurements"]["peak_tensor_bytes"]["value"]


def test_the_parts_of_a_step_follow_each_other(answer: dict[str, Any]) -> None:
    parts = answer["timeline"]["parts"]
    ends = [end for part in parts for end in (part["start"], part["end"])]

    assert [part["name"] for part in parts] == ["forward", "backward", "optimizer"]
    assert ends == sorted(ends)
    assert ends[0] >= 0
    assert ends[-1] <= 1


def test_what_takes_a_step_adds_up(answer: dict[str, Any]) -> None:
    assert sum(answer["timeline"]["shares"].values()) == pytest.approx(1, abs=0.001)
    assert (
        sum(answer["timeline"]["largest_modules"].values())
        <= (answer["measurements"]["peak_tensor_bytes"]["value"])
    )


# The target.


def test_a_slower_host_makes_a_tiny_step_longer(
    trial: Trial, library: Library, tmp_path: Path
) -> None:
    """Which takes what the host needs to issue it, and nothing else."""
    taken = []
    for factor in (1, 3):
        file = tmp_path / f"{factor}.json"
        calibration = Calibration(
            device="NVIDIA H100 80GB HBM3", kernel_seconds=1e-6, call_seconds=factor * 1e-5
        )
        file.write_text(calibration.to_json())
        target = H100.model_copy(update={"calibration": str(file)})
        taken.append(measured(predict_point(trial, library, target))["step_seconds"].value)

    assert taken[1] / taken[0] == pytest.approx(3)


def test_what_is_set_for_the_allocator_decides_what_is_reserved(
    trial: Trial, library: Library, found: dict[str, Measurement]
) -> None:
    target = H100.model_copy(update={"allocator": ""})
    plain = measured(predict_point(trial, library, target))
    changed = {name.partition(".")[0] for name in found if plain[name] != found[name]}

    assert "peak_reserved_bytes" in changed
    assert changed <= {f"peak_{name}_bytes" for name in ("allocated", "reserved", "process")}


# What cannot be predicted.


def test_a_point_that_cannot_be_predicted_takes_no_other_with_it(tiny_trial: Make) -> None:
    budgets: list[dict[str, Any]] = [{}, {"data": {"file": "none.jsonl"}}, {"batch": 3}]
    trials = [shallow(tiny_trial({}, **budget)) for budget in budgets]
    found = predict([trial.payload() for trial in trials], Target().model_dump())

    assert [answer["status"] for answer in found] == ["ok", "failed", "ok"]
    assert set(found[1]) == {"status", "reason"}
    assert "cannot read the training data" in found[1]["reason"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (Target(device="h100"), "unknown device 'h100': did you mean h100-80gb?"),
        (Target(device="h100-80gb", allocator="expandable"), "expandable"),
        (Target(device="h100-80gb", calibration="none.json"), "none.json"),
    ],
)
def test_a_target_that_is_none_is_the_reason(target: Target, reason: str, tiny_trial: Make) -> None:
    (found,) = predict([shallow(tiny_trial({})).payload()], target.model_dump())

    assert found["status"] == "failed"
    assert reason in found["reason"]


def test_an_error_that_nobody_thought_of_fails_its_point_with_the_place(tiny_trial: Make) -> None:
    def stumble(trial: Trial, *rest: object) -> dict[str, Any]:
        if trial.budget.batch == 3:
            raise KeyError("rope")
        return {"measurements": {}}

    payloads = [tiny_trial({}, batch=batch).payload() for batch in (2, 3)]
    found = answers(payloads, Target().model_dump(), stumble)

    assert found[0] == {"status": "ok", "measurements": {}}
    assert found[1]["status"] == "failed"
    assert found[1]["reason"].startswith("KeyError: 'rope' (stumble, line ")


def test_what_is_read_for_one_family_serves_the_next(
    tiny_trial: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point, "_reached", {})
    for settings in ({}, {"precision": {"method": "bf16"}}):
        predict([shallow(tiny_trial(settings)).payload()], Target().model_dump())

    assert len(point._reached) == 1


# What values decide: how many columns LLM.int8() keeps apart.

INT8: dict[str, Any] = {
    "precision": {"method": "bf16"},
    "quantization": {"method": "int8"},
    "adapters": {"method": "lora", "rank": 4},
    "checkpointing": {"method": "full"},
}
BETWEEN = (
    *(f"peak_{counter}_bytes" for counter in COUNTERS),
    "step_seconds",
    "tokens_per_second",
)


@pytest.mark.slow
def test_int8_reaches_from_no_outlier_to_all(
    tiny_trial: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = shallow(tiny_trial(INT8, batch=BATCH, sequence=LENGTH))
    answer = asked(trial)
    monkeypatch.setattr(Library, "most", lambda *arguments: None)
    without = measured(asked(trial))
    found = measured(answer)

    assert answer["warnings"].count(point.OUTLIERS) == 1
    assert {name: each.value for name, each in found.items()} == {
        name: each.value for name, each in without.items()
    }
    for name in BETWEEN:
        low, high = found[name].interval or (found[name].value,) * 2
        before = without[name].interval or (without[name].value,) * 2
        rises = without[name].better == "less"
        assert (low, high)[not rises] == before[not rises]
        assert high >= before[1] if rises else low <= before[0]
    for counter in ("tensor", "allocated"):  # pages and the host hide the rest of so small a model
        assert found[f"peak_{counter}_bytes"].interval is not None
    for name in found.keys() - set(BETWEEN):
        assert found[name] == without[name]


def test_nothing_but_int8_is_recorded_again(
    trial: Trial, library: Library, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert library.most(trial, library.record(trial)[0]) is None
    assert point.OUTLIERS not in answer["warnings"]
    monkeypatch.setattr(Library, "most", lambda *arguments: None)

    assert json.dumps(predict_point(trial, library, H100)) == json.dumps(answer)
