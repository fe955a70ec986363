"""What a run refuses."""

from __future__ import annotations

import pytest

from tradebench.environment import Gpu
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


H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 80 * 2**30)
A100 = Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 80 * 2**30)


@pytest.mark.parametrize(("gpu", "refused"), [(None, 1), (H100, 0)])
def test_what_runs_on_a_gpu_only_is_refused_without_one(
    gpu: Gpu | None, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tradebench.environment.gpu", lambda: gpu)
    monkeypatch.setattr("tradebench.techniques.protocol.find_spec", lambda name: name)
    reasons = refuse(trial(loss=FUSED))

    assert len(reasons) == refused
    assert all(reason.startswith(f"{FusedLoss.cuda_only}; predict it") for reason in reasons)


@pytest.mark.parametrize(("gpu", "refused"), [(H100, 0), (A100, 1), (None, 0)])
def test_what_this_gpu_is_too_old_for_is_refused(
    gpu: Gpu | None, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tradebench.environment.gpu", lambda: gpu)
    monkeypatch.setattr("tradebench.techniques.protocol.find_spec", lambda name: name)

    assert refuse(trial(precision={"method": "fp8"})) == (
        "fp8 needs a GPU of compute capability 8.9 or later and NVIDIA A100-SXM4-80GB has 8.0; "
        "use h100-80gb or another precision",
    ) * bool(refused)


def test_what_runs_on_a_gpu_only_is_legal_to_predict() -> None:
    assert trial(loss=FUSED).conflicts() == ()
