"""From a trial to its measurements: times, shared evaluations, and what a death keeps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tradebench.program import perform as program
from tradebench.program.evaluation import Evaluator
from tradebench.program.loop import AdamW, Training
from tradebench.program.measure import measure, median_interval, summarise
from tradebench.result import DivergedError, Heartbeat, Outcome
from tradebench.trial import Budget, Trial

Make = Callable[..., Trial]


def run(trial: Trial, directory: Path, repeat: int = 0) -> Outcome:
    outcome = Outcome()
    measure(trial, outcome, repeat=repeat, directory=directory, heartbeat=lambda beat: None)
    return outcome


def on_reference(settings: dict[str, Any] | None = None, **fields: Any) -> Trial:
    return Trial.from_payload(
        {
            "model": {"name": "reference"},
            "budget": {"steps": 3, "warmup": 1, "batch": 4, "sequence": 64} | fields,
            "evaluate": {"tasks": ["facts"], "limit": 4},
            "settings": settings or {},
        }
    )


# What is derived from the steps.


def test_warm_up_steps_are_left_out_of_the_timing() -> None:
    training = Training(losses=(4.0, 3.0, 2.0, 1.0), tokens=(100, 10, 20, 30))
    found = summarise(Budget(steps=4, warmup=1), training, [9.0, 1.0, 3.0, 2.0])

    assert found["step_seconds"].samples == (1.0, 3.0, 2.0)
    assert found["step_seconds"].value == 2.0


def test_tokens_and_padding_are_those_of_the_timed_steps() -> None:
    training = Training(losses=(1.0,) * 3, tokens=(100, 10, 20), padding=(0, 6, 4))
    found = summarise(Budget(steps=3, warmup=1), training, [9.0, 1.0, 4.0])

    assert found["tokens_per_step"].value == 15.0
    assert found["padding_share"].value == 0.25


def test_throughput_is_total_work_over_total_time() -> None:
    training = Training(losses=(1.0,) * 3, tokens=(100, 10, 20))
    found = summarise(Budget(steps=3, warmup=1), training, [9.0, 1.0, 4.0])

    assert found["tokens_per_second"].value == 6.0
    assert found["tokens_per_second"].better == "more"


def test_the_training_loss_is_the_mean_of_the_last_quarter() -> None:
    losses = tuple(float(step) for step in range(8))
    found = summarise(Budget(), Training(losses=losses, tokens=(1,) * 8), [1.0] * 8)

    assert found["train_loss"].value == 6.5
    assert found["train_loss"].samples == losses


def test_a_warm_up_longer_than_training_leaves_the_last_step() -> None:
    training = Training(losses=(1.0, 1.0), tokens=(5, 6))
    found = summarise(Budget(steps=2, warmup=9), training, [2.0, 3.0])

    assert found["step_seconds"].samples == (3.0,)


def test_no_step_gives_no_measurement() -> None:
    assert summarise(Budget(), Training(), [1.0]) == {}


def test_the_interval_of_a_median_lies_within_the_samples() -> None:
    samples = [1.0, 2.0, 3.0, 4.0, 50.0]
    found = median_interval(samples)

    assert found is not None
    assert 1.0 <= found[0] <= 3.0 <= found[1] <= 50.0
    assert median_interval([1.0]) is None


# A whole trial.


def test_the_steps_add_up_to_what_an_outer_clock_reads(
    tiny_trial: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[float] = []
    train = vars(program)["train"]

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        train(*arguments)
        spent.append(time.perf_counter() - start)

    monkeypatch.setitem(vars(program), "train", timed)
    missed = []
    # A busy machine may take the processor away between two steps: the closest of five runs counts.
    for _ in range(5):
        outcome = run(tiny_trial({}, steps=20, batch=16, sequence=64), tmp_path)
        samples = outcome.measurements["step_seconds"].samples
        missed.append(1 - math.fsum(samples) / spent[-1])

        assert len(samples) == 20
        assert missed[-1] >= 0
        if missed[-1] <= 0.01:
            break

    assert min(missed) <= 0.01


def test_an_outcome_is_plain_json(tmp_path: Path) -> None:
    outcome = run(on_reference(), tmp_path)
    measured = {name: found.model_dump() for name, found in outcome.measurements.items()}

    json.dumps([measured, outcome.effects, outcome.artifacts, outcome.warnings], allow_nan=False)
    assert {type(found["value"]) for found in measured.values()} == {int, float}


@pytest.mark.slow
def test_trials_that_share_a_compressed_model_share_its_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[nn.Module] = []
    score = Evaluator.score

    def counted(self: Evaluator, model: nn.Module, techniques: Any) -> Any:
        calls.append(model)
        return score(self, model, techniques)

    monkeypatch.setattr(Evaluator, "score", counted)
    first = run(on_reference(), tmp_path)
    second = run(on_reference(learning_rate=1e-3), tmp_path)
    name = "accuracy_before.facts"

    assert len(calls) == 3
    assert second.measurements[name] == first.measurements[name]
    assert second.artifacts["items_before"] == first.artifacts["items_before"]
    assert (tmp_path / second.artifacts["items_before"]).exists()
    assert second.artifacts["items_after"] != first.artifacts["items_after"]


@pytest.mark.slow
def test_only_what_is_the_same_compressed_model_shares_its_evaluation(tmp_path: Path) -> None:
    """Repeats and other batches draw calibration data of their own."""

    def items(pruning: dict[str, Any], repeat: int = 0, **budget: Any) -> str:
        trial = on_reference({"pruning": {"sparsity": 0.5, **pruning}}, **budget)
        return run(trial, tmp_path, repeat).artifacts["items_before"]

    plain, fed = {"method": "magnitude"}, {"method": "wanda", "samples": 1}

    assert len({items(plain), items(plain, 1), items(plain, batch=8)}) == 1
    assert len({items(fed), items(fed, 1), items(fed, batch=8), items(fed, sequence=32)}) == 4
    assert items(fed) == items(fed, learning_rate=1e-3)


@pytest.mark.slow
def test_repeats_train_with_seeds_of_their_own(tiny_trial: Make, tmp_path: Path) -> None:
    def losses(trial: Trial, repeat: int) -> Any:
        return run(trial, tmp_path, repeat).measurements["train_loss"].samples

    assert losses(tiny_trial({}), 1) == losses(tiny_trial({}, seed=1), 0)
    assert losses(tiny_trial({}), 0) != losses(tiny_trial({}), 1)


def test_a_death_in_training_keeps_what_was_measured(
    tiny_trial: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    step = AdamW.step

    def breaking(self: AdamW) -> None:
        steps.append(1)
        step(self)
        if len(steps) == 5:  # two steps of the rehearsal, three of the trial
            next(iter(self.inner.param_groups[0]["params"])).data.fill_(math.nan)

    monkeypatch.setattr(AdamW, "step", breaking)
    outcome = Outcome()
    with pytest.raises(DivergedError, match="the loss became nan at step 4"):
        measure(
            tiny_trial({}, steps=9),
            outcome,
            repeat=0,
            directory=tmp_path,
            heartbeat=lambda beat: None,
        )

    assert outcome.phase == "train"
    assert len(outcome.measurements["step_seconds"].samples) == 3
    assert {"peak_tensor_bytes", "peak_process_bytes", "load_seconds"} <= set(outcome.measurements)


def test_heartbeats_tell_every_phase_and_step(tiny_trial: Make, tmp_path: Path) -> None:
    beats: list[Heartbeat] = []
    measure(tiny_trial({}), Outcome(), repeat=0, directory=tmp_path, heartbeat=beats.append)

    assert [beat.step for beat in beats if beat.steps == 3 and beat.step] == [1, 2, 3]
    assert {beat.phase for beat in beats} == {"load", "compress", "train"}
