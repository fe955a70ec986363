"""What only a CUDA device can show: its counters, its limits, and that techniques hold there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from gpu import traps
from gpu.ladder import attempt
from gpu.rungs import RUNGS, Rung, Settings
from gpu.section import Bench
from tradebench.layers.semi_structured import SemiStructuredLinear
from tradebench.result import Result
from tradebench.techniques import fused_loss

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


def test_a_2_4_weight_multiplies_and_comes_back_like_the_dense_one() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(1024, 512, bias=False, device="cuda", dtype=torch.bfloat16)
    before = torch.cuda.memory_allocated()
    layer = SemiStructuredLinear(dense)
    stored = torch.cuda.memory_allocated() - before
    inputs = torch.randn(100, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    outputs, expected = layer(inputs), linear(inputs, layer.weight)
    slope = torch.randn_like(outputs)

    assert stored == 512 * 1024 * 2 * 10 // 16
    assert (layer.weight.unflatten(1, (-1, 4)).count_nonzero(-1) == 2).all()
    torch.testing.assert_close(outputs, expected, rtol=2e-2, atol=2e-2)
    assert outputs.is_contiguous()
    (found,) = torch.autograd.grad(outputs, inputs, slope)
    (gradient,) = torch.autograd.grad(expected, inputs, slope)
    torch.testing.assert_close(found, gradient, rtol=2e-2, atol=2e-2)


def test_ligers_loss_and_gradients_are_those_of_cross_entropy() -> None:
    pytest.importorskip("liger_kernel")
    torch.manual_seed(0)
    hidden = torch.randn(300, 256, device="cuda", requires_grad=True)
    weight = torch.randn(1000, 256, device="cuda", requires_grad=True)
    labels = torch.randint(1000, (300,), device="cuda")
    expected = cross_entropy(linear(hidden, weight), labels, reduction="sum")
    slopes = torch.autograd.grad(expected, (hidden, weight))
    found = fused_loss._liger(hidden, weight, labels)
    gradients = torch.autograd.grad(found, (hidden, weight))

    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert float((gradient - slope).norm() / slope.norm()) < 1e-2


def test_memory_that_does_not_suffice_ends_as_a_finding() -> None:
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        result = run({})
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert result.status == "oom"
    assert result.reason is not None
