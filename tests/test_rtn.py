"""Round-to-nearest: packed bytes, levels and gradients against arithmetic done another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tradebench.layers.packed import PackedLinear, pack, unpack
from tradebench.predict.memory import predict_memory
from tradebench.techniques import ContradictionError
from tradebench.trial import Trial

Make = Callable[..., Trial]
Compress = Callable[[Trial], nn.Module]

LORA = {"method": "lora", "rank": 4}
BITS = (2, 3, 4, 8)
SHAPES = ((192, 128), (128, 128), (100, 32), (77, 8))  # columns and group; odd ones as well


def layer(columns: int, rows: int = 12) -> nn.Linear:
    torch.manual_seed(columns)
    return nn.Linear(columns, rows)


def nearest(weight: Tensor, bits: int, group: int) -> Tensor:
    """What the weights become, one group after the other and by looking at every level."""
    found = weight.clone()
    for row in found:
        for values in row.split(group):
            low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
            scale = float(torch.tensor((high - low) / (2**bits - 1)).half())
            lowest = -min(2**bits - 1, round(-low / scale))
            levels = torch.tensor([(lowest + step) * scale for step in range(2**bits)])
            values.copy_(levels[(values[:, None] - levels).abs().argmin(1)])
    return found


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [column for column, _ in SHAPES])
def test_packed_integers_take_their_bits_and_come_back(bits: int, columns: int) -> None:
    torch.manual_seed(bits)
    integers = torch.randint(2**bits, (5, columns), dtype=torch.uint8)
    packed = pack(integers, bits)
    ones = int(np.unpackbits(packed.numpy()).sum())

    assert torch.equal(unpack(packed, columns, bits), integers)
    assert ones == int(np.unpackbits(integers.numpy()).sum())  # every bit once, and no other
    assert 8 * packed.shape[1] == pytest.approx(bits * columns, abs=14)
    if columns % 8 == 0:
        assert 8 * packed.nbytes == bits * integers.numel()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("columns", "group"), SHAPES)
def test_every_weight_goes_to_the_nearest_level_of_its_group(
    bits: int, columns: int, group: int
) -> None:
    dense = layer(columns)
    expected = nearest(dense.weight.detach(), bits, group)

    torch.testing.assert_close(PackedLinear(dense, bits, group).weight, expected)


def test_more_bits_and_smaller_groups_are_nearer() -> None:
    dense = layer(256, rows=64)

    def error(bits: int, group: int) -> float:
        return float((PackedLinear(dense, bits, group).weight - dense.weight.detach()).norm())

    assert error(2, 64) > 1.8 * error(3, 64) > 1.8**2 * error(4, 64) > 1.8**3 * error(8, 64)
    assert error(3, 256) > error(3, 64) > error(3, 16)


def test_zeros_stay_zero_and_so_does_a_layer_of_nothing_else() -> None:
    dense = layer(128)
    with torch.no_grad():
        dense.weight[:, ::2] = 0
        dense.weight[0] = 0
    weight = PackedLinear(dense, 2, 32).weight

    assert weight[:, ::2].count_nonzero() == weight[0].count_nonzero() == 0
    assert weight.isfinite().all()


@pytest.mark.parametrize("sign", [1, -1])
def test_weights_of_one_sign_keep_their_range(sign: int) -> None:
    dense = layer(64)
    with torch.no_grad():
        dense.weight.abs_().add_(1).mul_(sign)
    packed = PackedLinear(dense, 4, 64)

    torch.testing.assert_close(packed.weight, dense.weight.detach(), atol=0.04, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", BITS)
def test_products_and_gradients_are_those_of_the_dense_weight(
    bits: int, dtype: torch.dtype
) -> None:
    packed = PackedLinear(layer(192).to(dtype), bits, 128)
    dense = nn.functional.linear
    inputs = torch.randn(2, 3, 192, dtype=dtype)
    ours, theirs = (inputs.clone().requires_grad_() for _ in range(2))
    found = packed(ours)
    assert packed.bias is not None
    expected = dense(theirs, packed.weight) + packed.bias
    (found * torch.arange(12)).sum().backward()
    (expected * torch.arange(12)).sum().backward()

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_under_autocast_the_product_is_in_its_format_forward_and_backward() -> None:
    packed = PackedLinear(layer(128), 4, 128)
    inputs = torch.randn(3, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = packed(inputs)
    outputs.sum().backward()

    assert outputs.dtype == torch.bfloat16
    assert inputs.grad is not None
    torch.testing.assert_close(
        inputs.grad, packed.weight.sum(0).expand(3, -1), atol=0.02, rtol=0.02
    )


def test_autograd_keeps_the_packed_weight_and_no_dense_one() -> None:
    """`nn.functional.linear` on an unpacked weight would keep it until the backward pass."""
    packed = PackedLinear(layer(256, rows=256), 4, 128)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        packed(torch.randn(1, 256, requires_grad=True))

    assert sum(kept) == packed.packed.nbytes + packed.scales.nbytes + packed.zeros.nbytes
    assert sum(kept) < 256 * 256


@pytest.mark.parametrize("bits", BITS)
def test_bytes_fall_as_bits_do(bits: int, tiny_trial: Make, compressed: Compress) -> None:
    settings = {"quantization": {"method": "rtn", "bits": bits, "group": 64}, "adapters": LORA}
    trial = tiny_trial(settings)
    effect = trial.techniques[0].effect(compressed(trial))
    weights = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 192)

    assert effect == {
        "layers": 28,
        "weight_bytes": weights * bits // 8,
        "scale_bytes": weights // 64 * 3,
    }


def test_other_bits_or_groups_are_found_out(tiny_trial: Make, compressed: Compress) -> None:
    def trial(**fields: Any) -> Trial:
        return tiny_trial({"quantization": {"method": "rtn", **fields}, "adapters": LORA})

    model = compressed(trial(bits=4, group=64))
    for wrong in (trial(bits=3, group=64), trial(bits=4, group=32)):
        with pytest.raises(ContradictionError, match="but layers have 4-bit g64"):
            wrong.techniques[0].effect(model)


def test_random_weights_never_exist_all_at_once() -> None:
    """Quantized as they are drawn: the peak is the packed size and what one matrix takes."""
    payload: dict[str, Any] = {
        "model": {"name": "llama", "config": "llama-3.2-1b", "weights": "random", "layers": 2},
        "budget": {"batch": 1, "sequence": 16, "data": "random"},
        "evaluate": {},
        "settings": {
            "precision": {"method": "bf16"},
            "quantization": {"method": "rtn", "bits": 3},
            "adapters": LORA,
        },
    }
    found = predict_memory(Trial.from_payload(payload)).measurements
    largest, layer = 2048 * 8192, 2048 * (2 * 2048 + 2 * 512 + 3 * 8192)
    packed = 2 * (layer * 3 // 8 + layer // 128 * 3)
    others = 2 * (128_256 * 2048 + 5 * 2048)  # the embedding, tied to the head, and the norms

    peak = found["peak_tensor_bytes.compress"].value
    assert others + packed < peak < others + packed + 8 * largest < others + 2 * 2 * layer
