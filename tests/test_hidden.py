"""Hidden memory against the libraries' own sources, and against shapes counted by hand."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.devices import DEVICES
from tradebench.predict.hidden import (
    CPU_BACKWARD,
    FUSED,
    LARGE,
    MULTIPROCESSORS,
    OUTLIERS_APART,
    TEMPORARY,
    WORKSPACES,
    hidden,
    persistent,
)
from tradebench.predict.operations import Operation, Spec

ARCHITECTURES = sorted(FUSED)
MIB = 2**20


def sizes(operation: Operation, architecture: str = "sm_90") -> list[int]:
    return [buffer.bytes for buffer in hidden(operation, architecture)]


# 4-bit products.


def product(
    rows: int, n: int, k: int, format: str = "bfloat16", *, nested: bool = False, block: int = 64
) -> Operation:
    """A 4-bit product as the recorder writes it down."""
    scales = -(-n * k // block)
    codes = [Spec((scales,), "uint8"), Spec((256,), "float32"), Spec((), "float32")]
    outer = Spec((-(-scales // 256),), "float32")
    return Operation(
        "bitsandbytes.gemm_4bit.default",
        (
            Spec((1, rows, k), format),
            Spec((n * k // 2, 1), "uint8"),
            *([outer, *codes] if nested else [Spec((scales,), "float32")]),
        ),
        (Spec((1, rows, n), format),),
    )


MLP = (28672, 8192)  # of Llama 3.3 70B


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gfx942"])
def test_a_70b_layer_makes_its_4_bit_weight_wide_for_a_batch_of_tokens(architecture: str) -> None:
    assert sizes(product(2048, *MLP), architecture) == [448 * MIB]


def test_quantized_scales_are_made_wide_twice_before_the_weight() -> None:
    found = hidden(product(2048, *MLP, nested=True), "sm_90")
    scales = 28672 * 8192 // 64 * 4

    assert [buffer.bytes for buffer in found] == [scales, scales, 448 * MIB]
    assert {buffer.when for buffer in found} == {"before"}


def test_a_weight_in_fp32_is_twice_as_wide() -> None:
    assert sizes(product(2048, *MLP, "float32")) == [2 * 448 * MIB]


@pytest.mark.parametrize(
    ("architecture", "rows"),
    [
        ("sm_80", 128),
        ("sm_86", 128),
        ("sm_89", 256),
        ("sm_90", 64),
        ("sm_100", 32),
        ("sm_120", 128),
    ],
)
def test_a_70b_layer_is_multiplied_packed_up_to_a_number_of_rows(
    architecture: str, rows: int
) -> None:
    assert sizes(product(rows, *MLP), architecture) == []
    assert sizes(product(rows + 1, *MLP), architecture) == [448 * MIB]


def test_a_width_that_blocks_do_not_divide_is_always_made_wide() -> None:
    assert sizes(product(1, 4096, 4096 + 32)) == [4096 * 4128 * 2]
    assert sizes(product(1, 4096, 4096)) == []


Chosen = Callable[[str, torch.dtype, int, int, int], bool]


@pytest.fixture(scope="module")
def fused() -> Chosen:
    """The library's own choice of its fused kernel; its module cannot be imported without CUDA."""
    spec = importlib.util.find_spec("bitsandbytes")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "backends" / "cuda" / "ops.py"
    tree = ast.parse(source.read_text())
    named = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}[
        "_gemm_4bit_use_custom_cuda"
    ]
    named.decorator_list = []
    chips: dict[str, tuple[int, int, int]] = {
        name: (MULTIPROCESSORS[name], *divmod(int(name.removeprefix("sm_")), 10)) for name in FUSED
    }
    space: dict[str, Any] = {
        "torch": torch,
        "_GEMM_4BIT_CUSTOM_FLOOR_M": 4,
        "_gpu_dispatch_props": chips.get,
    }
    exec(compile(ast.Module([named], []), str(source), "exec"), space)
    chosen = space["_gemm_4bit_use_custom_cuda"]
    limits = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and getattr(node.targets[0], "id", "") == "_gemm_4bit_custom_max_m"
        and isinstance(node.value, ast.Constant)
    ]
    assert limits == [1536, 256]  # CUDA's, and ROCm's
    return lambda name, format, m, n, k: m <= 1536 and chosen(name, format, m, n, k)


shapes = st.tuples(
    st.sampled_from(ARCHITECTURES),
    st.sampled_from(["bfloat16", "float16", "float32"]),
    st.one_of(st.integers(1, 80), st.integers(1, 2000), st.sampled_from([512, 513, 1536, 1537])),
    st.integers(1, 500).map(lambda tiles: tiles * 64),
    st.integers(1, 500).map(lambda blocks: blocks * 64),
)


@settings(derandomize=True, max_examples=600, deadline=None)
@given(shapes)
def test_no_weight_is_missed_that_the_library_makes_wide(
    fused: Chosen, shape: tuple[str, str, int, int, int]
) -> None:
    architecture, format, m, n, k = shape
    widened = bool(sizes(product(m, n, k, format), architecture))
    packed = fused(architecture, getattr(torch, format), m, n, k)

    assert widened or packed
    if m > 1536 or (n * k >= LARGE and (m > 256 or format == "float32")):
        assert widened != packed


def test_where_a_hopper_chooses_by_waves_alone_the_choice_is_exact(fused: Chosen) -> None:
    for waves in (0.8, 1.5, 2, 3):
        n = int(waves * MULTIPROCESSORS["sm_90"]) * 64 + 64
        for rows in range(1, 140):
            widened = bool(sizes(product(rows, n, 4096), "sm_90"))

            assert widened != fused("sm_90", torch.bfloat16, rows, n, 4096)


# 8-bit products.


@pytest.mark.parametrize(("format", "bytes"), [("bfloat16", 6), ("float32", 6), ("float16", 4)])
def test_an_8_bit_product_holds_its_integers_and_its_answer_in_fp16(
    format: str, bytes: int
) -> None:
    rows, n, k = 96, 512, 256
    operation = Operation(
        "bitsandbytes.int8_mixed_scaled_mm.default",
        (Spec((rows, k), format), Spec((rows, k), "int8"), Spec((n, k), "int8")),
        (Spec((rows, n), format), Spec((0,), "int64")),
    )

    assert sum(sizes(operation)) == bytes * rows * n


@pytest.mark.parametrize(
    ("n", "k", "outliers", "inside"),
    [
        (8192, 8192, 0, 100_663_296),
        (8192, 8192, 129, 102_776_832),
        (8192, 28672, 28672, 2_080_374_784),
    ],
)
def test_outlier_columns_hold_what_an_h200_held(n: int, k: int, outliers: int, inside: int) -> None:
    """Of 2,048 tokens in attention's and the MLP's last layer of a Llama 3.3 70B (hidden.json)."""
    kept = Spec((2048, outliers) if outliers else (0,), "bfloat16")
    operation = Operation(
        OUTLIERS_APART,
        (
            Spec((2048, k), "bfloat16"),
            Spec((2048, k), "int8"),
            Spec((n, k), "int8"),
            Spec((2048,), "float32"),
            Spec((n,), "float32"),
            Spec((outliers,), "int64"),
        ),
        (Spec((2048, n), "bfloat16"), kept),
    )

    assert sum(sizes(operation)) == inside


def test_outliers_are_looked_for_in_activations_and_not_in_weights() -> None:
    read, answer = Spec((96, 256), "float16"), (Spec((96, 256), "int8"), Spec((96,), "float32"))
    name = "bitsandbytes.int8_vectorwise_quant.default"
    found = hidden(Operation(name, (read,), (*answer, Spec((0,), "int64"))), "sm_80")

    assert [(buffer.bytes, buffer.when) for buffer in found] == [
        (2 * 96 * 256, "after"),
        (96 * 256, "after"),
    ]
    assert hidden(Operation(name, (read,), answer), "sm_80") == ()


# Attention.


def backward(
    rows: int,
    heads: int = 64,
    kv_heads: int = 8,
    width: int = 128,
    format: str = "bfloat16",
    *,
    batch: int = 1,
    masked: bool = False,
) -> Operation:
    query = Spec((batch, heads, rows, width), format)
    key = Spec((batch, kv_heads, rows, width), format)
    kept = Spec((batch, heads, rows), "float32")
    mask = [Spec((batch, 1, rows, rows), format)] * masked
    return Operation(CPU_BACKWARD, (query, query, key, key, query, kept, *mask), (query, key, key))


def allocated(shapes: Iterable[tuple[tuple[int, ...], torch.dtype]]) -> list[int]:
    """Bytes of tensors that are really made."""
    return [torch.empty(shape, dtype=dtype).nbytes for shape, dtype in shapes]


def test_flash_attention_of_a_70b_at_8192_tokens_holds_three_quarters_of_a_gib() -> None:
    """One fp32 gradient of 256 MiB, and twice 128 MiB for the heads that share a key."""
    assert sizes(backward(8192), "sm_80") == [2 * MIB, 256 * MIB, 128 * MIB, 128 * MIB]


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    st.integers(1, 300),
    st.sampled_from([1, 2]),
    st.sampled_from([8, 40, 64, 96, 128, 160, 192, 256]),
    st.sampled_from([(4, 4), (4, 2), (6, 1)]),
)
def test_flash_attention_holds_the_tensors_that_its_source_makes(
    rows: int, batch: int, width: int, heads: tuple[int, int]
) -> None:
    padded = next(rows + more for more in range(128) if (rows + more) % 128 == 0)
    step = 32 if width <= 128 else 64
    wide = next(width + more for more in range(step) if (width + more) % step == 0)
    expanded = [((batch, rows, heads[0], width), torch.bfloat16)] * 2
    operation = backward(rows, *heads, width, batch=batch)

    assert sizes(operation, "sm_86") == allocated(
        [
            ((batch, heads[0], padded), torch.float32),
            ((batch, padded, heads[0], wide), torch.float32),
            *(expanded if heads[0] != heads[1] else []),
        ]
    )


@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_cudnn_works_attention_out_in_one_workspace(architecture: str) -> None:
    (workspace,) = hidden(backward(8192), architecture)

    assert workspace.bytes == sum(sizes(backward(8192), "sm_80"))
    assert "cuDNN" in workspace.provenance


@pytest.mark.parametrize(
    ("operation", "architecture", "kernel"),
    [
        (backward(64), "sm_90", "cuDNN"),
        (backward(64, masked=True), "sm_90", "cuDNN"),
        (backward(64, width=192), "sm_90", "flash"),
        (backward(64), "sm_120", "flash"),
        (backward(64, masked=True), "sm_89", "memory-efficient"),
        (backward(64, format="float32"), "sm_90", "memory-efficient"),
        (backward(64), "gfx942", "AOTriton"),
    ],
)
def test_the_kernel_is_the_one_that_torch_would_choose(
    operation: Operation, architecture: str, kernel: str
) -> None:
    assert all(buffer.provenance.startswith(kernel) for buffer in hidden(operation, architecture))


def test_a_kernel_that_is_named_is_taken_at_its_word() -> None:
    known = backward(8192)
    named = known._replace(name="aten._scaled_dot_product_flash_attention_backward.default")

    assert hidden(named, "sm_90") == hidden(known, "sm_80")


# Embeddings.


def test_a_long_batch_adds_up_its_embeddings_by_segments() -> None:
    def gradient(tokens: int, words: int) -> Operation:
        grown, indices = Spec((1, tokens, 8192), "bfloat16"), Spec((1, tokens), "int64")
        name = "aten.embedding_dense_backward.default"
        return Operation(name, (grown, indices), (Spec((words, 8192), "bfloat16"),))

    assert sizes(gradient(3072, 128_256)) == []
    assert sizes(gradient(4096, 128_256)) == [(409 + 4096) * 8192 * 4]
    assert sizes(gradient(4096, 1000)) == [(409 + 1000) * 8192 * 4]


# Sums, sorts and scores, as an H200 held them.


def test_a_sum_over_tokens_is_split_among_blocks() -> None:
    def summed(tokens: int, width: int = 8192) -> Operation:
        given = Spec((1, tokens, width), "bfloat16")
        answer = Spec((1, 1, width), "bfloat16")
        return Operation("aten.sum.dim_IntList", (given,), (answer,))

    assert sizes(summed(2048)) == [134_217_728]
    assert sizes(summed(1000)) == []  # a thread adds up fewer than 256
    assert sizes(summed(2048, 100)) == []  # no whole block of columns
    assert sizes(summed(2048), "gfx942") == []
    rows = Operation(
        "aten.sum.dim_IntList", (Spec((8192, 8192), "bfloat16"),), (Spec((8192, 1), "bfloat16"),)
    )
    assert sizes(rows) == []


def test_a_sort_of_long_rows_takes_20_bytes_for_a_number_in_fp32() -> None:
    """What Wanda's preparation of an H200 held beyond its tensors, to the byte."""

    def ordered(rows: int, columns: int) -> Operation:
        scores = Spec((rows, columns), "float32")
        return Operation("aten.sort.default", (scores,), (scores, scores._replace(dtype="int64")))

    assert sum(sizes(ordered(8192, 28_672))) == 4_697_620_480
    assert sizes(ordered(8192, 4096)) == []


def test_attention_that_writes_its_scores_down_holds_more_than_them() -> None:
    scores = Spec((1, 64, 512, 512), "float32")
    forward = Operation("aten._safe_softmax.default", (scores,), (scores,))
    backward = Operation("aten._softmax_backward_data.default", (scores, scores), (scores,))

    assert sizes(forward) == [16_809_988 - 4]  # a number, which is the answer of masked rows
    assert sizes(backward) == [67_108_864]


def test_places_of_2_4_weights_are_held_while_they_are_compressed_and_multiplied() -> None:
    dense, packed = Spec((28_672, 8192), "bfloat16"), Spec((28_672, 4608), "bfloat16")
    inputs, answer = Spec((8192, 2048), "bfloat16"), Spec((2048, 28_672), "bfloat16")
    compressed = Operation("aten._cslt_compress.default", (dense,), (packed,))
    multiplied = Operation("aten._cslt_sparse_mm.default", (packed, inputs), (answer,))

    assert sizes(compressed) == sizes(multiplied) == [29_360_128]


# Workspaces.


MM = Operation("aten.mm.default", (Spec((8, 8), "float32"),) * 2, (Spec((8, 8), "float32"),))


@pytest.mark.parametrize(
    ("architecture", "bytes"),
    [("sm_80", 8_519_680), ("sm_90", 33_554_432), ("sm_100", 33_554_432), ("gfx942", 213_909_504)],
)
def test_products_keep_a_workspace_of_a_size_that_torch_sets(architecture: str, bytes: int) -> None:
    (kept,) = persistent(MM, architecture)

    assert kept.bytes == bytes
    assert hidden(MM, architecture) == ()


def test_a_4_bit_product_needs_the_workspace_only_where_its_weight_is_made_wide() -> None:
    assert persistent(product(2048, *MLP), "sm_90") == persistent(MM, "sm_90")
    assert persistent(product(1, *MLP), "sm_90") == ()


def test_other_operations_hold_nothing() -> None:
    sum_ = Operation("aten.add.Tensor", MM.inputs, MM.outputs)

    assert hidden(sum_, "sm_90") == persistent(sum_, "sm_90") == ()


# The table.


def test_every_row_says_where_it_is_from() -> None:
    for row in (*TEMPORARY, *WORKSPACES):
        assert len(row.provenance) > 40
        assert row.operations
        assert set(row.confirmed) <= {"sm_90"}  # an H200 has been asked, and nothing else


def test_a_buffer_is_verified_where_a_gpu_has_held_it_and_nowhere_else() -> None:
    asked = [product(2048, *MLP, nested=True), backward(64), MM]
    unasked = [backward(64, format="float32"), backward(64, width=192)]

    def verified(operations: Iterable[Operation], architecture: str) -> set[bool]:
        return {
            buffer.verified
            for operation in operations
            for buffer in (*hidden(operation, architecture), *persistent(operation, architecture))
        }

    assert verified(asked, "sm_90") == {True}
    assert verified(unasked, "sm_90") == {False}
    for architecture in (*ARCHITECTURES, "gfx942"):
        if architecture != "sm_90":
            assert verified([*asked, *unasked], architecture) == {False}


def test_every_architecture_of_the_catalogue_is_known() -> None:
    known = {device.architecture for device in DEVICES.values()}

    assert {name for name in known if name.startswith("sm_")} == set(FUSED) == set(MULTIPROCESSORS)
    assert {name for name in known if not name.startswith("sm_")} == {"gfx942"}
