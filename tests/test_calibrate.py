"""Measuring a device, rehearsed on a processor: what is covered, and what is left out."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tradebench import configs
from tradebench.devices import Format
from tradebench.devices.calibration import Calibration
from tradebench.errors import UserError
from tradebench.predict import calibrate as module
from tradebench.predict.calibrate import LLAMA_70B, REHEARSAL, calibrate


@pytest.fixture(scope="module")
def rehearsed() -> Calibration:
    torch.set_num_threads(1)
    return calibrate("cpu", sizes=REHEARSAL)


def test_each_weight_is_measured_in_the_three_products_of_training(rehearsed: Calibration) -> None:
    found = {(each.format, each.layout, each.m, each.n, each.k) for each in rehearsed.products}
    expected = set()
    for outputs, inputs in REHEARSAL.weights:
        for tokens in REHEARSAL.tokens:
            for format in ("bf16", "fp32"):
                expected |= {
                    (format, "forward", tokens, outputs, inputs),
                    (format, "inputs", tokens, inputs, outputs),
                    (format, "weights", outputs, inputs, tokens),
                }

    assert found == expected
    assert len(rehearsed.products) == len(expected)


def test_every_table_is_filled(rehearsed: Calibration) -> None:
    lengths = [(each.format, each.sequence) for each in rehearsed.attentions]

    assert lengths == [(format, s) for format in ("bf16", "fp32") for s in REHEARSAL.sequences]
    assert [each.size for each in rehearsed.copies] == list(REHEARSAL.moved)
    assert [each.size for each in rehearsed.dequantizations] == list(REHEARSAL.packed)
    assert rehearsed.left_out == ()
    assert rehearsed.environment.software["torch"] == torch.__version__


def test_it_comes_back_as_it_was(rehearsed: Calibration) -> None:
    assert Calibration.model_validate_json(rehearsed.to_json()) == rehearsed


def test_what_no_time_is_left_for_is_named() -> None:
    found = calibrate("cpu", budget_seconds=0, sizes=REHEARSAL)
    measured = 2 * len(REHEARSAL.weights) * len(REHEARSAL.tokens)  # in two formats
    measured += 2 * len(REHEARSAL.sequences) + len(REHEARSAL.moved) + len(REHEARSAL.packed) + 1

    assert (found.products, found.attentions, found.copies) == ((), (), ())
    assert len(found.left_out) == measured
    assert all(each.endswith(": no time was left") for each in found.left_out)
    assert found.kernel_seconds > 0


def test_what_does_not_fit_is_named_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    normal = module.Bench.normal

    def cramped(bench: module.Bench, format: Format, *shape: int) -> torch.Tensor:
        if math.prod(shape) > 64 * 64:
            raise torch.OutOfMemoryError("too much")
        return normal(bench, format, *shape)

    monkeypatch.setattr(module.Bench, "normal", cramped)
    found = calibrate("cpu", sizes=REHEARSAL)

    assert "bf16 product of 16 x 64 by 64 x 128: memory does not suffice" in found.left_out
    assert {(each.n, each.k) for each in found.products if each.layout == "forward"} == {
        (64, 64),
        (4, 64),
    }


@pytest.mark.parametrize("name", ["cuda:99", "meta", "toaster"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    if name.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has such a device")
    with pytest.raises(UserError, match=f"'{name}' cannot be calibrated: "):
        calibrate(name)


def test_the_flagships_weights_are_those_of_its_config() -> None:
    shape = json.loads(configs.path("llama-3.3-70b").read_text())
    hidden, wide, words = (
        shape[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    width = hidden // shape["num_attention_heads"]
    narrow = shape["num_key_value_heads"] * width
    linears = {(hidden, hidden), (narrow, hidden), (wide, hidden), (hidden, wide), (words, hidden)}
    adapters = {
        pair
        for outputs, inputs in linears - {(words, hidden)}
        for rank in (16, 64)
        for pair in ((rank, inputs), (outputs, rank))
    }

    assert set(LLAMA_70B.weights) == linears | adapters
    assert LLAMA_70B.heads == (shape["num_attention_heads"], shape["num_key_value_heads"], width)


@pytest.mark.gpu
def test_a_gpu_is_calibrated_within_its_budget() -> None:
    found = calibrate("cuda", budget_seconds=300)

    assert found.left_out == ()
    assert found.device == torch.cuda.get_device_name()
    assert {each.format for each in found.products} == {"bf16", "fp32"}
