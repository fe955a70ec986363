"""What a run refuses."""

from __future__ import annotations

import pytest

from tradebench.runner.refusal import refuse
from tradebench.techniques.fused_loss import FusedLoss
from tradebench.trial import Trial


def trial(**settings: dict[str, object]) -> Trial:
    return Trial.from_payload(
        {"model": {"name": "reference"}, "budget": {}, "evaluate": {}, "settings": settings}
    )


@pytest.mark.parametrize("sharding", [{}, {"sharding": {"method": "fsdp2"}}])
def test_what_one_process_can_do_is_run(sharding: dict[str, dict[str, object]]) -> None:
    assert refuse(trial(**sharding)) == ()


def test_what_takes_several_processes_is_to_be_predicted() -> None:
    assert refuse(trial(sharding={"method": "fsdp2", "degree": 8})) == ()
    assert refuse(trial(sharding={"method": "fsdp2", "degree": 9})) == (
        "fsdp2 x9 needs 9 processes, and a run without a GPU has 8 at most; "
        "predict it with tradebench plan",
    )


@pytest.mark.parametrize(("gpus", "refused"), [(1, 1), (2, 0)])
def test_every_process_takes_a_gpu_where_there_are_some(
    gpus: int, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tradebench.environment.gpus", lambda: gpus)

    assert len(refuse(trial(sharding={"method": "fsdp2", "degree": 2}))) == refused


def test_an_illegal_point_keeps_all_of_its_reasons() -> None:
    sharded = trial(quantization={"method": "int8"}, sharding={"method": "fsdp2", "degree": 9})

    assert refuse(sharded)[:-1] == sharded.conflicts()
    assert len(refuse(sharded)) == 3


FUSED: dict[str, object] = {"method": "fused"}


@pytest.mark.parametrize(("gpu", "refused"), [(None, 1), ("NVIDIA H100 80GB HBM3", 0)])
def test_what_runs_on_a_gpu_only_is_refused_without_one(
    gpu: str | None, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tradebench.environment.gpu", lambda: gpu)
    monkeypatch.setattr("tradebench.techniques.protocol.find_spec", lambda name: name)
    reasons = refuse(trial(loss=FUSED))

    assert len(reasons) == refused
    assert all(reason.startswith(f"{FusedLoss.cuda_only}; predict it") for reason in reasons)


def test_what_runs_on_a_gpu_only_is_legal_to_predict() -> None:
    assert trial(loss=FUSED).conflicts() == ()
