"""FLOPs of operations: against torch's own counter, a closed form, and the libraries' shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import LlamaConfig, LlamaForCausalLM

from tradebench.predict.flops import arithmetic, attention, flops, product
from tradebench.predict.model_flops import model_flops_per_token
from tradebench.predict.operations import Operation, Spec

HIDDEN, WIDE, LAYERS, HEADS, KV_HEADS, VOCABULARY, BATCH, SEQUENCE = 64, 96, 2, 4, 2, 128, 3, 32


class Listing(TorchDispatchMode):
    """Counts the operations that really run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[Operation] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen[Operation(str(func), specs((args, kwargs)), specs(result))] += 1
        return result


def specs(tree: Any) -> tuple[Spec, ...]:
    return tuple(
        Spec(tuple(leaf.shape), str(leaf.dtype).removeprefix("torch."))
        for leaf in tree_leaves(tree)
        if isinstance(leaf, torch.Tensor)
    )


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=WIDE,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=SEQUENCE,
        )
    )


def train(model: Any, mode: Any) -> None:
    tokens = torch.randint(VOCABULARY, (BATCH, SEQUENCE))
    with mode:
        model(tokens, labels=tokens, use_cache=False).loss.backward()


@pytest.fixture(scope="module")
def step() -> Counter[Operation]:
    """Every operation of a tiny Llama's forward and backward pass, on real tensors."""
    listing = Listing()
    train(llama(), listing)
    return listing.seen


def total(step: Counter[Operation], *, causal: bool) -> int:
    return sum(count * flops(operation, causal=causal) for operation, count in step.items())


def linear_parameters(model: Any) -> int:
    return sum(
        module.weight.numel() for module in model.modules() if type(module) is torch.nn.Linear
    )


def attended() -> int:
    """FLOPs of the scores, or of the values they weigh, for a whole square, by all layers."""
    return 2 * LAYERS * BATCH * HEADS * SEQUENCE**2 * (HIDDEN // HEADS)


def test_products_are_counted_as_torch_counts_them(step: Counter[Operation]) -> None:
    counter = FlopCounterMode(display=False)
    train(llama(), counter)
    # Of attention it knows only the kernels of a GPU.
    products = {operation: count for operation, count in step.items() if product(operation)}

    assert total(Counter(products), causal=True) == counter.get_total_flops()


def test_attention_is_counted_as_torch_counts_it_on_a_gpu(step: Counter[Operation]) -> None:
    found = {operation: count for operation, count in step.items() if attention(operation)}
    for operation in found:
        known = attention(operation)
        assert known is not None
        query, key = known.query.shape, known.key.shape
        # Its keys have as many heads as its queries; grouped ones are as much work.
        key = (*key[:1], query[1], *key[2:])
        forward = torch.ops.aten._scaled_dot_product_flash_attention
        if known.backward:
            backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
            expected = flop_registry[backward](query, query, key, key, out_val=None)
        else:
            expected = flop_registry[forward](query, key, key, out_val=None)

        assert flops(operation, causal=False) == expected
    assert sum(found.values()) == 2 * LAYERS


@pytest.mark.parametrize("causal", [False, True])
def test_a_step_is_six_per_parameter_and_token_and_its_attention(
    step: Counter[Operation], causal: bool
) -> None:
    # Flash kernels compute the scores again: a seventh product to the closed form's six.
    closed = BATCH * SEQUENCE * model_flops_per_token(
        parameters=linear_parameters(llama()),
        layers=LAYERS,
        width=HIDDEN,
        sequence=SEQUENCE,
        causal=causal,
    ) + attended() / (2 if causal else 1)

    assert total(step, causal=causal) == closed


def test_recomputed_layers_add_their_forward_pass() -> None:
    model, listing = llama(), Listing()
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    train(model, listing)
    layers = linear_parameters(model) - VOCABULARY * HIDDEN

    more = total(listing.seen, causal=False) - total_of_plain()
    # The last product of a layer is not needed for its own gradient, and torch stops before it.
    spared = 2 * LAYERS * BATCH * SEQUENCE * HIDDEN * WIDE
    assert more == 2 * layers * BATCH * SEQUENCE + 2 * attended() - spared


def total_of_plain() -> int:
    listing = Listing()
    train(llama(), listing)
    return total(listing.seen, causal=False)


def test_a_mask_makes_attention_whole() -> None:
    listing = Listing()
    mask = torch.ones(BATCH, SEQUENCE, dtype=torch.int64)
    mask[0, :3] = 0
    with listing, torch.no_grad():
        llama()(torch.zeros_like(mask), attention_mask=mask, use_cache=False)
    (masked,) = [each for each in listing.seen if attention(each)]

    assert flops(masked, causal=True) == flops(masked, causal=False) == 2 * attended() // LAYERS


def test_one_query_looks_back_at_everything() -> None:
    query, keys = Spec((1, 4, 1, 16), "float32"), Spec((1, 4, 100, 16), "float32")
    last = Operation(f"{FLASH}.default", (query, keys, keys), (query,))

    assert flops(last) == 2 * 2 * 4 * 100 * 16


FLASH = "aten._scaled_dot_product_flash_attention"
sizes = st.integers(1, 64)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(sizes, sizes, sizes, sizes)
def test_every_kind_of_product_is_counted_alike(b: int, m: int, n: int, k: int) -> None:
    left, right, bias = torch.ones(b, m, k), torch.ones(b, k, n), torch.ones(b, m, n)
    listing = Listing()
    with listing:
        torch.bmm(left, right)
        torch.baddbmm(bias, left, right)
        torch.mm(left[0], right[0])
        torch.addmm(bias[0], left[0], right[0])
        torch.mm(left[0], right[0], out=torch.empty(m, n))
    found = {each.name: flops(each) for each in listing.seen if product(each)}

    assert found == {
        "aten.bmm.default": 2 * b * m * n * k,
        "aten.baddbmm.default": 2 * b * m * n * k,
        "aten.mm.default": 2 * m * n * k,
        "aten.addmm.default": 2 * m * n * k,
        "aten.mm.out": 2 * m * n * k,
    }


def test_products_of_bitsandbytes_are_counted_by_their_real_shapes() -> None:
    import bitsandbytes.functional as library

    rows, inputs, outputs = 6, 128, 64
    weight, state = library.quantize_4bit(torch.randn(outputs, inputs), quant_type="nf4")
    x = torch.randn(2, 3, inputs)
    integers = torch.ones(outputs, inputs, dtype=torch.int8)
    listing = Listing()
    with listing:
        torch.ops.bitsandbytes.gemm_4bit(x, weight, (outputs, inputs), state.absmax, 64, "nf4")
        torch.ops.bitsandbytes.int8_linear_matmul(integers[:rows], integers)
        torch.ops.bitsandbytes.int8_scaled_mm(
            integers[:rows], integers, torch.ones(rows), torch.ones(outputs), dtype=torch.bfloat16
        )
        torch.ops.bitsandbytes.int8_linear_matmul(
            integers[:rows], integers, out=torch.empty(rows, outputs, dtype=torch.int32)
        )
    found = [each for each in listing.seen if each.name.startswith("bitsandbytes.")]
    counted = {each.name: flops(each) for each in found if product(each)}

    assert set(counted.values()) == {2 * rows * inputs * outputs}
    assert {"bitsandbytes.gemm_4bit.default", "bitsandbytes.int8_linear_matmul.out"} <= set(counted)
    assert {each.name: arithmetic(each) for each in found if product(each)} == {
        name: "fp32" if "gemm" in name else "int8" for name in counted
    }


def test_the_format_is_that_of_what_is_multiplied() -> None:
    bf16, fp32 = Spec((8, 8), "bfloat16"), Spec((8, 8), "float32")

    assert arithmetic(Operation("aten.mm.default", (bf16, bf16), (bf16,))) == "bf16"
    assert arithmetic(Operation("aten.addmm.default", (fp32, bf16, bf16), (bf16,))) == "bf16"
    assert arithmetic(Operation("aten.add.Tensor", (fp32, bf16), (fp32,))) == "fp32"


def test_elementwise_operations_count_nothing(step: Counter[Operation]) -> None:
    silent = {each.name for each in step if not flops(each)}

    assert {"aten.mul.Tensor", "aten.silu.default", "aten.embedding.default"} <= silent
    assert {each.name for each in step} - silent == {
        "aten.mm.default",
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
    }
