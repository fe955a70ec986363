"""What only a CUDA device can show: its counters, its limits, and that techniques hold there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpu import traps
from gpu.ladder import attempt
from gpu.rungs import RUNGS, Rung, Settings
from gpu.section import Bench
from tradebench.result import Result

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

PRECISIONS = ("fp32", "bf16", "bf16_autocast", "fp16")


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


def run(settings: Settings) -> Result:
    rung = Rung(does="a test", layers=2, sequence=32, settings=settings)
    return attempt(rung.trial(tiny=True), "cuda")


@pytest.mark.parametrize("label", traps.FORMATS)
def test_an_evaluation_leaves_gradients_as_they_were(label: str, tmp_path: Path) -> None:
    bench = Bench(device="cuda", tiny=True, out=tmp_path, seconds=60.0)

    assert traps.gradients(label, bench)["cosine"] > traps.LEAST


@pytest.mark.parametrize("name", [name for name, rung in RUNGS.items() if rung.rehearsed])
def test_counters_contain_each_other_in_every_phase(name: str) -> None:
    result = run(RUNGS[name].settings)

    assert (result.status, result.reason) == ("ok", None)
    for phase in ("", ".load", ".compress"):
        peaks = [
            result.measurements[f"peak_{kind}_bytes{phase}"].value
            for kind in ("requested", "allocated", "reserved", "process")
        ]
        assert peaks == sorted(peaks)
        assert peaks[0] > 0


def test_recomputing_layers_leaves_the_first_loss_as_it_is() -> None:
    plain, recomputed = (
        run({"precision": {"method": "bf16"}, **more})
        for more in ({}, {"checkpointing": {"method": "full"}})
    )

    assert (
        plain.measurements["train_loss"].samples[0]
        == recomputed.measurements["train_loss"].samples[0]
    )


@pytest.mark.parametrize("method", PRECISIONS)
def test_every_precision_trains(method: str) -> None:
    result = run({"precision": {"method": method}})

    assert (result.status, result.reason) == ("ok", None)
    assert "precision" in result.effects


def test_memory_that_does_not_suffice_ends_as_a_finding() -> None:
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        result = run({})
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert result.status == "oom"
    assert result.reason is not None
