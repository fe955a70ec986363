"""Fused linear cross-entropy: the same loss, and the memory of liger-kernel's own steps."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear_cross_entropy

from tradebench.techniques import fused_loss, protocol
from tradebench.techniques.fused_loss import FusedLoss, chunk_of
from tradebench.worlds.fake import fake_world
from tradebench.worlds.shards import ShardTracker

TOKENS, WIDTH, WORDS = 70, 32, 200  # in chunks of 16 tokens, the last of which is shorter


def drawn(dtype: torch.dtype, tokens: int = TOKENS, words: int = WORDS) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, WIDTH), torch.randn(words, WIDTH)
    return (
        hidden.to(dtype).requires_grad_(),
        weight.to(dtype).requires_grad_(),
        torch.randint(words, (tokens,)),
    )


def fused(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return fused_loss._in_plain_torch()(hidden, weight, labels)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_loss_and_gradients_are_those_of_cross_entropy(dtype: torch.dtype, near: float) -> None:
    hidden, weight, labels = drawn(dtype)
    expected = cross_entropy(hidden.float() @ weight.float().t(), labels, reduction="sum")
    slopes = torch.autograd.grad(expected / 7, (hidden, weight))
    found = fused(hidden, weight, labels)
    (found / 7).backward()

    assert found.item() == pytest.approx(expected.item(), rel=1e-5 if near < 1e-3 else 1e-3)
    for tensor, slope in zip((hidden, weight), slopes, strict=True):
        assert tensor.grad is not None
        assert float((tensor.grad - slope).norm() / slope.norm()) < near


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, labels = drawn(torch.float32)
    weight.requires_grad_(False)
    fused(hidden, weight, labels).backward()

    assert weight.grad is None
    assert hidden.grad is not None


def test_torchs_own_function_loses_digits_in_16_bits() -> None:
    """Why it is not used: its sum over chunks is kept in bf16."""
    hidden, weight, labels = drawn(torch.bfloat16, tokens=2048, words=1024)
    with torch.no_grad():
        expected = cross_entropy(hidden.float() @ weight.float().t(), labels).item()
        ours = fused(hidden, weight, labels).item() / 2048
        options = nn.LinearCrossEntropyOptions()
        theirs = linear_cross_entropy(hidden, weight, labels, options=options).item()

    assert ours == pytest.approx(expected, rel=1e-3)
    assert abs(theirs - expected) > 5e-3 * expected


@pytest.mark.parametrize(
    ("tokens", "width", "vocabulary", "chunk"),
    [
        (2048, 8192, 128_256, 128),  # Llama 3.3 70B: 16 parts of 128
        (16_384, 4096, 32_000, 2048),  # as in the library's own comment
        (300, 4096, 128_256, 16),  # ten to a part, and the next power of two
        (5, 64, 32, 5),  # never more than there are
        (1, 64, 1000, 1),
    ],
)
def test_chunks_are_cut_as_the_library_cuts_them(
    tokens: int, width: int, vocabulary: int, chunk: int
) -> None:
    assert chunk_of(tokens, width, vocabulary) == chunk
    share = math.ceil(tokens / math.ceil(vocabulary / width))
    assert chunk == min(2 ** math.ceil(math.log2(share)), tokens)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_one_chunk_of_logits_is_all_that_comes_beside_gradients(
    dtype: torch.dtype, trained: bool
) -> None:
    with fake_world("cuda"):
        hidden, weight = torch.empty(TOKENS, WIDTH, dtype=dtype), torch.empty(WORDS, WIDTH)
        weight = weight.to(dtype).requires_grad_(trained)
        labels = torch.zeros(TOKENS, dtype=torch.long)
        hidden.requires_grad_()
        with ShardTracker("cpu") as tracker:
            loss = fused(hidden, weight, labels)
            forward = tracker.peak
            loss.backward()
            kept = tracker.total
    size, values = dtype.itemsize, TOKENS * WIDTH + WORDS * WIDTH * trained
    # In fp32 the library adds up the head's gradient through another matrix.
    more = WORDS * WIDTH * 4 if trained and dtype == torch.float32 else 0
    inputs = (TOKENS + WORDS) * WIDTH * size + TOKENS * 8

    chunk = chunk_of(TOKENS, WIDTH, WORDS)
    beside = size * (values + chunk * WORDS) + 4 * TOKENS + more
    # The summed loss comes last, when that matrix is gone.
    assert forward == inputs + beside + (0 if more else 4)
    assert kept < forward


def test_liger_is_called_as_its_signature_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def documented(
        input: Tensor,
        weight: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        ce_weight: Tensor | None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        **more: Any,
    ) -> Tensor:
        assert (bias, ce_weight, more) == (None, None, {})
        return cross_entropy(input @ weight.t(), target, reduction=reduction)

    module: Any = ModuleType("liger_kernel.transformers.functional")
    module.liger_fused_linear_cross_entropy = documented
    monkeypatch.setitem(sys.modules, module.__name__, module)
    hidden, weight, labels = drawn(torch.float32)

    assert fused_loss._liger(hidden, weight, labels).item() == pytest.approx(
        fused(hidden, weight, labels).item(), rel=1e-5
    )


def test_a_missing_library_is_missed_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "find_spec", lambda name: None)

    assert "tradebench[liger]" in str(FusedLoss(method="fused").missing())
