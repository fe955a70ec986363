"""The fake world of a GPU: where CUDA takes another way, and that nothing else changes.

Closed forms are of the functions named; no GPU has confirmed them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import pytest
import torch
from bitsandbytes.autograd import _functions as products
from bitsandbytes.nn import Int8Params, Linear8bitLt
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tradebench.predict.hidden import hidden
from tradebench.predict.memory import perform_fake, reach
from tradebench.predict.record import Record, RecordingMeter
from tradebench.result import Outcome
from tradebench.trial import Trial
from tradebench.worlds.fake import fake_world
from tradebench.worlds.host import on_host
from tradebench.worlds.memory import Tracker
from tradebench.worlds.shards import ShardTracker

Target = Literal["cpu", "cuda"]
Recording = Callable[[Target, Mapping[str, Mapping[str, Any]]], Record]

LORA = {"adapters": {"method": "lora", "rank": 4}}
BF16 = {"precision": {"method": "bf16"}}
INT8: dict[str, dict[str, Any]] = {"quantization": {"method": "int8"}, **LORA, **BF16}


@pytest.fixture
def recorded(tiny_trial: Callable[..., Trial]) -> Recording:
    """The record of a trial in the fake world of a target."""

    def record(target: Target, settings: Mapping[str, Mapping[str, Any]]) -> Record:
        trial, meter = tiny_trial(settings), RecordingMeter()
        perform_fake(trial, reach(trial).materials, meter, Outcome(), target)
        return Record.of(meter.tracker)

    return record


def names(record: Record) -> set[str]:
    return {operation.name for operation in record.operations}


# LLM.int8().

ROWS, INPUTS, OUTPUTS = 48, 256, 512


def layer() -> Linear8bitLt:
    linear = Linear8bitLt(
        INPUTS, OUTPUTS, bias=False, has_fp16_weights=False, threshold=6.0, device="meta"
    )
    weight = torch.empty(OUTPUTS, INPUTS)
    linear.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
    return linear


def product(target: Target) -> tuple[int, int]:
    """Bytes at the peak of an 8-bit product, and what it keeps beside its input and its answer."""
    with fake_world(target):
        linear = layer()
        given = torch.empty(1, ROWS, INPUTS, dtype=torch.bfloat16, requires_grad=True)
        linear(given)  # moves the weight and its scales into the layer's state
        tracker = Tracker("cpu")
        with tracker:
            tracker.label([given, linear.state.CB, linear.state.SCB], "weights")
            before = tracker.total
            tracker.reset_peak()
            answer = linear(given)
        return tracker.peak - before, tracker.total - before - answer.nbytes


def test_a_cpu_makes_an_8_bit_weight_wide_and_a_gpu_multiplies_integers() -> None:
    """MatMul8bitFp and MatMul8bitLt: both keep their input, which is there already."""
    answer, scales = 2 * ROWS * OUTPUTS, 4 * OUTPUTS
    cast, quantized = 2 * ROWS * INPUTS, ROWS * INPUTS + 4 * ROWS

    assert product("cpu") == (2 * OUTPUTS * INPUTS + max(scales, answer), 0)
    assert product("cuda") == (max(cast + quantized, quantized + answer), 0)


def test_a_step_on_int8_takes_the_operations_of_cuda(recorded: Recording) -> None:
    multiplied = "bitsandbytes.int8_mixed_scaled_mm.default"
    cpu, cuda = recorded("cpu", INT8), recorded("cuda", INT8)
    held = [
        buffer.bytes
        for operation in cuda.operations
        if operation.name == multiplied
        for buffer in hidden(operation, "sm_90")
    ]

    assert multiplied not in names(cpu)
    assert multiplied in names(cuda)
    rows = 2 * 32  # a batch of the tiny model, whose widest answer is its MLP's
    assert max(held) == 4 * rows * 192


# Optimizers.


@pytest.mark.parametrize(
    ("switches", "held"),
    [({"fused": True}, 1), ({"foreach": True}, 0), ({"foreach": False}, 0)],
    ids=["fused", "foreach", "for-loop"],
)
def test_adam_counts_steps_on_the_host_unless_it_is_fused(
    switches: Mapping[str, Any], held: int
) -> None:
    """torch/optim/adam.py hosts them where they are neither fused nor capturable."""
    with fake_world("cuda"):
        parameters = [nn.Parameter(torch.empty(8, 4)) for _ in range(3)]
        for parameter in parameters:
            parameter.grad = torch.empty(8, 4)
        optimizer = torch.optim.AdamW(parameters, **switches)
        tracker = ShardTracker("cpu")
        with tracker:
            tracker.label(parameters, "weights")
            before = tracker.total
            optimizer.step()
        states = list(optimizer.state.values())

        assert tracker.total - before == 3 * (2 * 4 * 8 * 4 + 4 * held)
        assert all(on_host(state["step"]) == (not held) for state in states)
        assert not any(on_host(state["exp_avg"]) for state in states)


# Attention.


def attend(query: Tensor, key: Tensor, value: Tensor, *, shared: bool) -> Tensor:
    return functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=shared
    )


def attention(attends: Callable[..., Tensor], format: torch.dtype, heads: int) -> tuple[int, ...]:
    """Bytes at the peak of attention's forward and backward, and what is kept between them."""
    query = torch.empty(2, 4, ROWS, 16, dtype=format, requires_grad=True)
    key = torch.empty(2, heads, ROWS, 16, dtype=format, requires_grad=True)
    tracker = Tracker("cpu")
    with tracker:
        tracker.label([query, key], "weights")
        before = tracker.total
        answer = attends(query, key, key, shared=heads != 4)
        kept = tracker.total - before
        forward = tracker.peak - before
        tracker.reset_peak()
        answer.sum().backward()
    return forward, kept, tracker.peak - before


def in_world(target: Target, format: torch.dtype, heads: int) -> tuple[int, ...]:
    with fake_world(target):
        return attention(attend, format, heads)


def test_attention_in_fp32_writes_its_scores_down_on_a_gpu_where_heads_share_keys() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        real = attention(attend, torch.float32, 2)
    scores = 4 * 2 * 4 * ROWS**2

    assert in_world("cuda", torch.float32, 2) == real
    assert real[1] > scores
    assert in_world("cpu", torch.float32, 2)[1] < scores


@pytest.mark.parametrize(
    ("format", "heads"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float16, 4)]
)
def test_any_other_attention_is_the_same_on_both(format: torch.dtype, heads: int) -> None:
    assert in_world("cuda", format, heads) == in_world("cpu", format, heads)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_autocast_gives_attention_16_bits_on_both(target: Target) -> None:
    def attend_autocast(*tensors: Tensor, shared: bool) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attend(*tensors, shared=shared)

    with fake_world(target):
        _, kept, _ = attention(attend_autocast, torch.float32, 2)
    scores = 4 * 2 * 4 * ROWS**2

    assert kept < scores


# Dropout.


def dropout(drops: Callable[..., Tensor], format: torch.dtype) -> tuple[int, ...]:
    """Bytes at the peak of a dropout's forward and backward, and what is kept between them."""
    given = torch.empty(ROWS, INPUTS, dtype=format, requires_grad=True)
    tracker = Tracker("cpu")
    with tracker:
        tracker.label([given], "weights")
        before = tracker.total
        answer = drops(given)
        kept, forward = tracker.total - before, tracker.peak - before
        tracker.reset_peak()
        answer.backward(torch.ones_like(answer))
    return forward, kept, tracker.peak - before


@pytest.mark.parametrize("format", [torch.float32, torch.bfloat16])
def test_the_mask_of_a_dropout_takes_a_byte_for_every_element_on_a_gpu(format: torch.dtype) -> None:
    elements, answer = ROWS * INPUTS, ROWS * INPUTS * format.itemsize
    kept = {}
    for target in ("cpu", "cuda"):
        with fake_world(target):
            kept[target] = dropout(functional.dropout, format)[1]

    assert kept == {"cpu": answer + answer, "cuda": answer + elements}


def test_a_dropout_on_a_gpu_is_the_fused_one() -> None:
    real = dropout(lambda given: torch.native_dropout(given, 0.5, train=True)[0], torch.bfloat16)
    with fake_world("cuda"):
        fake = dropout(functional.dropout, torch.bfloat16)

    assert fake == real


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("off", [{"training": False}, {"p": 0.0}], ids=str)
def test_a_dropout_that_drops_nothing_has_no_mask(target: Target, off: dict[str, Any]) -> None:
    with fake_world(target):
        forward, kept, _ = dropout(partial(functional.dropout, **off), torch.bfloat16)

    assert (forward, kept) == (0, 0)


# What stays.


@pytest.mark.parametrize(
    "settings",
    [
        {**BF16, **LORA, "quantization": {"method": "nf4"}, "checkpointing": {"method": "full"}},
        {"precision": {"method": "fp16"}, "adapters": {"method": "dora", "rank": 4, "merge": True}},
    ],
    ids=["nf4-checkpointing", "fp16-dora-merged"],
)
def test_what_is_not_named_is_left_alone(
    settings: dict[str, dict[str, Any]], recorded: Recording
) -> None:
    cpu, cuda = recorded("cpu", settings), recorded("cuda", settings)

    assert cuda.operations == cpu.operations
    assert cuda.sizes.tolist() == cpu.sizes.tolist()
    assert cuda.events.tolist() == cpu.events.tolist()


def test_adapters_on_16_bit_weights_are_fp32_so_a_cpu_merges_them_as_a_gpu_does(
    tiny_trial: Callable[..., Trial],
    compressed: Callable[[Trial], nn.Module],
    adapted: Callable[[Trial, nn.Module], nn.Module],
) -> None:
    trial = tiny_trial({**BF16, **LORA})
    model = adapted(trial, compressed(trial))

    assert {each.dtype for each in model.parameters() if each.requires_grad} == {torch.float32}
    assert {each.dtype for each in model.parameters() if not each.requires_grad} == {torch.bfloat16}


def test_the_libraries_are_as_before_when_the_world_ends() -> None:
    before = products.MatMul8bitFp, functional.scaled_dot_product_attention
    with fake_world("cuda"):
        assert products.MatMul8bitFp is products.MatMul8bitLt
        assert products.logger.disabled

    assert (products.MatMul8bitFp, functional.scaled_dot_product_attention) == before
    assert not products.logger.disabled
