"""Hidden memory: what kernels of a GPU allocate inside one operation, where no dispatcher sees it.

A trace has what operations return. A kernel may ask the allocator for more while it runs: a 4-bit
weight made 16 bits wide, the sums that attention's backward adds up in fp32. Each row of the table
gives such buffers as a function of the operation's shapes, with where that is known from. An H200
(sm_90) with torch 2.11 and bitsandbytes 0.50.2 has run a step of eight kinds, and preparations of
models, against them: a buffer is `verified` on the architectures that its row names, and on no
other. Of an operation whose buffers are below a MiB nothing is written down.

A trace made on a CPU names attention after the CPU's kernel. What runs in its place is torch's
choice (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp): cuDNN first on Hopper and on
data-centre Blackwell, since the CUDA 13 wheels of torch 2.13 bring cuDNN 9.20 and 9.15.1 is enough
for that; flash attention 2 elsewhere; and the memory-efficient kernel for fp32 and, without cuDNN,
for masks. All keep one fp32 number per head and row for the backward, as the CPU's kernel does.

Left out, after reading their code, because they take nothing or a fraction of a percent of what
they return: losses, norms written in Python, in-place optimizers (their tables travel as
kernel arguments), cumulative sums, topk's histograms, indices of a few tokens, random states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tradebench.predict.operations import ITEM_BYTES, Operation, Spec

When = Literal["before", "after"]
# Where the formula is from. measured: read off a GPU, since the code is closed. source: the
# allocation is in code that was read. assumed: a bound, or what other kernels of the same kind do;
# the code is closed or depends on more than shapes.
Evidence = Literal["measured", "source", "assumed"]

FLOAT, HALF, INT32, INT64 = 4, 2, 4, 8  # bytes
H200 = ("sm_90",)


class Buffer(NamedTuple):
    """One allocation inside an operation, `when` its outputs are not yet or already allocated.

    `verified` says whether a GPU run has confirmed the bytes.
    """

    bytes: int
    provenance: str
    verified: bool
    when: When


@dataclass(frozen=True, kw_only=True)
class Row:
    """A buffer of some operations: its size (0: none) by the operation and the architecture.

    `confirmed` names the architectures on which a run came to these bytes, within 1%.
    """

    operations: frozenset[str]
    size: Callable[[Operation, str], int]
    when: When
    evidence: Evidence
    provenance: str
    confirmed: tuple[str, ...] = ()

    def buffer(self, operation: Operation, architecture: str) -> Buffer | None:
        """The buffer of one operation, if it has one."""
        if operation.name not in self.operations:
            return None
        size = self.size(operation, architecture)
        verified = architecture in self.confirmed
        return Buffer(size, self.provenance, verified, self.when) if size else None


def hidden(operation: Operation, architecture: str) -> tuple[Buffer, ...]:
    """What the operation holds while it runs, in the order in which it is asked for.

    All of it is released when the operation ends. `architecture` is a compiler's name for a GPU
    (sm_90, gfx942).
    """
    found = (row.buffer(operation, architecture) for row in TEMPORARY)
    return tuple(buffer for buffer in found if buffer is not None)


def persistent(operation: Operation, architecture: str) -> tuple[Buffer, ...]:
    """What the first operation of this kind makes for good, once for every thread of the host.

    Workspaces belong to a handle of the library, and every thread has its own: training has one
    for its forward passes and one for autograd's.
    """
    found = (row.buffer(operation, architecture) for row in WORKSPACES)
    return tuple(buffer for buffer in found if buffer is not None)


def _vendor(architecture: str) -> Literal["nvidia", "amd"]:
    return "amd" if architecture.startswith("gfx") else "nvidia"


def _round(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


# 4-bit products (bitsandbytes 0.50.2, backends/cuda/ops.py).

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # weights that may share a scale
FEW = 4  # rows that the fused kernel always takes
FEW_WIDE = 7  # and in fp32, which has no tensor cores: these and no more
LARGE = 4 * 2**20  # weights from which the tiers hold
TILE = 64  # columns of a weight that one block of threads works on
# Above how many waves of blocks the fused kernel is chosen, and for how many rows at most. Where
# the choice depends on more, or the weight is not LARGE, the weight is taken to be made wide: the
# larger case. So no row counts above 256 are fused here; in truth some small weights are, up to
# 1536 rows.
FUSED = {
    "sm_80": ((3, 128), (1, 32)),
    "sm_86": ((1, 128), (0.5, 64), (0, 16)),
    "sm_89": ((3, 256), (2, 128), (0.8, 64), (0, 8)),
    "sm_90": ((3, 64), (2, 48), (1, 32), (0.75, 16)),
    "sm_100": ((3, 32),),
    "sm_120": ((3, 256), (2, 128), (0.8, 64), (0, 8)),
}
# Multiprocessors of the largest chip (A100, RTX A6000, L40S, H100, B200, RTX PRO 6000 in their data
# sheets). Smaller ones have more waves, and fuse more.
MULTIPROCESSORS = {
    "sm_80": 108,
    "sm_86": 84,
    "sm_89": 142,
    "sm_90": 132,
    "sm_100": 148,
    "sm_120": 188,
}


class _FourBit(NamedTuple):
    """m x k activations times k x n weights, of which `scales` share a scale with none other."""

    m: int
    n: int
    k: int
    scales: int
    nested: bool
    format: str

    @classmethod
    def of(cls, operation: Operation) -> _FourBit:
        """Read from the tensors: activations, packed weight, scales, and codes where nested."""
        activations, _, absmax, *others = operation.inputs
        codes = next((spec for spec in others if spec.dtype == "uint8"), None)
        k = activations.shape[-1]
        return cls(
            m=activations.elements // k,
            n=operation.outputs[0].shape[-1],
            k=k,
            scales=(codes or absmax).elements,
            nested=codes is not None,
            format=activations.dtype,
        )

    def widened(self, architecture: str) -> bool:
        """Whether the weight is made wide and multiplied as any other, not in the fused kernel."""
        weights = self.n * self.k
        block = next(size for size in BLOCKS if -(-weights // size) <= self.scales)
        if self.k % block:
            return True
        if self.m <= FEW:
            return False
        if self.format == "float32":
            return self.m > FEW_WIDE
        if weights < LARGE or architecture not in FUSED:
            return True
        waves = -(-self.n // TILE) / MULTIPROCESSORS[architecture]
        rows = next((rows for least, rows in FUSED[architecture] if waves >= least), 0)
        return self.m > rows


def _wide_scales(operation: Operation, architecture: str) -> int:
    product = _FourBit.of(operation)
    return product.scales * FLOAT * (product.nested and product.widened(architecture))


def _wide_weight(operation: Operation, architecture: str) -> int:
    product = _FourBit.of(operation)
    weight = Spec((product.n, product.k), product.format)
    return weight.bytes * product.widened(architecture)


# 8-bit products (bitsandbytes 0.50.2, backends/cuda/ops.py and backends/default/ops.py).


def _searched(operation: Operation) -> int:
    """Elements in which outliers are searched: those of weights are not, and there is no list."""
    return operation.inputs[0].elements * (len(operation.outputs) == 3)


def _half_answer(operation: Operation) -> int:
    """The kernel answers in fp16; any other format is cast from that."""
    answer = operation.outputs[0]
    return answer.elements * HALF * (answer.dtype != "float16")


class _Outliers(NamedTuple):
    """Columns of a weight that meet outliers, which are multiplied in the activations' format."""

    weights: int
    format: str

    @classmethod
    def of(cls, operation: Operation) -> _Outliers:
        """Read from the answer, and from the columns of outliers that may come with it."""
        answer, *columns = operation.outputs
        listed = columns[0].shape[-1] if columns and columns[0].elements else 0
        return cls(answer.shape[-1] * listed, answer.dtype)


def _outlier_weights(operation: Operation) -> int:
    """What stays until the outliers are multiplied."""
    columns = _Outliers.of(operation)
    return Spec((columns.weights,), columns.format).bytes


def _outliers_dequantized(operation: Operation) -> int:
    """What dequantizing takes beyond all that is held once it is over, the answer included.

    At its height there are the columns in 8 bits and twice in fp32, before and after the last
    factor.
    """
    columns, answer = _Outliers.of(operation), operation.outputs[0]
    later = _outlier_weights(operation) + answer.elements * INT32 + _half_answer(operation)
    return max(0, columns.weights * (1 + 2 * FLOAT) - later - answer.bytes)


# Attention's backward.

Kernel = Literal["cudnn", "flash", "efficient", "aotriton"]
CUDNN_FIRST = ("sm_90", "sm_100")
CUDNN_WIDTH, FLASH_WIDTH = 128, 256  # the widest head each takes
# How far shapes are rounded up: rows by flash attention, rows and width by the efficient kernel.
FLASH_ROWS, EFFICIENT_ROWS, EFFICIENT_WIDTH = 128, 64, 32


class _Attention(NamedTuple):
    """Shapes of an attention: heads of queries and of keys, rows, and the width of a head."""

    batch: int
    heads: int
    kv_heads: int
    rows: int
    keys: int
    width: int
    format: str
    masked: bool

    @classmethod
    def of(cls, operation: Operation) -> _Attention:
        """Read from the backward's tensors: gradient, query, key, value, output, logsumexp, mask.

        The GPU's own operations have random states where the CPU's has a mask.
        """
        query, key = operation.inputs[1:3]
        batch, heads, rows, width = query.shape
        return cls(
            batch=batch,
            heads=heads,
            kv_heads=key.shape[1],
            rows=rows,
            keys=key.shape[2],
            width=width,
            format=query.dtype,
            masked=operation.name == CPU_BACKWARD and len(operation.inputs) > 6,
        )

    def kernel(self, operation: Operation, architecture: str) -> Kernel:
        """Which kernel works it out."""
        if operation.name in NAMED:
            return NAMED[operation.name]
        if _vendor(architecture) == "amd":
            return "aotriton"
        half = self.format in ("bfloat16", "float16")
        if half and architecture in CUDNN_FIRST and self.width <= CUDNN_WIDTH:
            return "cudnn"
        return "flash" if half and not self.masked and self.width <= FLASH_WIDTH else "efficient"

    @property
    def numbers(self) -> int:
        """One for each head and row."""
        return self.batch * self.heads * self.rows

    @property
    def flash_width(self) -> int:
        """The width of a head as flash attention rounds it up."""
        return _round(self.width, 32 if self.width <= 128 else 64)

    @property
    def all_heads(self) -> int:
        """Bytes of the keys, if every head of the queries had its own; 0 if every one has."""
        shared = self.heads != self.kv_heads
        return self.batch * self.heads * self.keys * self.width * HALF * shared


CPU_BACKWARD = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"
NAMED: dict[str, Kernel] = {
    "aten._scaled_dot_product_flash_attention_backward.default": "flash",
    "aten._scaled_dot_product_cudnn_attention_backward.default": "cudnn",
    "aten._scaled_dot_product_efficient_attention_backward.default": "efficient",
}


def _in(kernel: Kernel, size: Callable[[_Attention], int]) -> Callable[[Operation, str], int]:
    """A size that only one of the kernels needs."""

    def sized(operation: Operation, architecture: str) -> int:
        attention = _Attention.of(operation)
        return size(attention) if attention.kernel(operation, architecture) == kernel else 0

    return sized


def _flash_rows(attention: _Attention) -> int:
    rows = _round(attention.rows, FLASH_ROWS)
    return attention.batch * attention.heads * rows * FLOAT


def _flash_gradient(attention: _Attention) -> int:
    return _flash_rows(attention) * attention.flash_width


def _cudnn_workspace(attention: _Attention) -> int:
    own = attention.numbers * (attention.width + 1) * FLOAT
    return own + 2 * attention.all_heads


def _efficient_workspace(attention: _Attention) -> int:
    rows = _round(attention.rows, EFFICIENT_ROWS)
    width = _round(attention.width, EFFICIENT_WIDTH)
    return attention.batch * attention.heads * rows * width * FLOAT


# The gradient of an embedding (aten/src/ATen/native/cuda/EmbeddingBackwardKernel.cu).

FEW_TOKENS = 3072  # up to here one kernel adds all up in place
SEGMENT = 10  # tokens of one kind that are added up together


def _embedding_segments(operation: Operation, architecture: str) -> int:
    tokens, (words, width) = operation.inputs[1].elements, operation.outputs[0].shape
    segments = tokens // SEGMENT + min(tokens, words)
    return segments * width * FLOAT * (tokens > FEW_TOKENS)


# Products of 2:4 weights (aten/src/ATen/native/sparse/cuda/cuSPARSELtOps.cpp).

BITS = 8  # of a byte: where the kept weights lie takes a bit for every weight of the dense matrix


def _places(operation: Operation, architecture: str) -> int:
    return operation.inputs[0].elements // BITS


def _packed_places(operation: Operation, architecture: str) -> int:
    packed = operation.inputs[0].elements  # values and places: 9/16 of the dense weights
    return packed * 16 // 9 // BITS


# Softmax (aten/src/ATen/native/cuda/SoftMax.cu and native/transformers/attention.cpp).


def _masked_scores(operation: Operation, architecture: str) -> int:
    scores = operation.inputs[0]
    return scores.elements + scores.elements // max(scores.shape[-1], 1)


# Sorting (aten/src/ATen/native/cuda/Sort.cpp, SortStable.cu and CUB's radix sort).

FEW_SORTED = 4096  # up to here a row is sorted in place
LARGEST_SORT = 2**31 - 1  # elements that are sorted at once


def _sorted(values: Spec) -> int:
    """How many numbers are sorted out of place, all in one call.

    The dimension is not written down: it is taken to be the last. Fewer than 128 rows are sorted
    in another way, which takes more.
    """
    length = values.shape[-1] if values.shape else 1
    return min(values.elements, LARGEST_SORT) // length * length if length > FEW_SORTED else 0


def _sorted_places(operation: Operation, architecture: str) -> int:
    return _sorted(operation.inputs[0]) * INT64


def _sorted_copies(operation: Operation, architecture: str) -> int:
    values = operation.inputs[0]
    return _sorted(values) * (ITEM_BYTES[values.dtype] + INT64)


# Sums over rows (aten/src/ATen/native/cuda/Reduce.cuh): the last dimension stays.

SUM_VECTOR = 4  # neighbouring columns that a thread adds up
SUM_WIDTH, SUM_HEIGHT = 32, 4  # threads of a block, along columns and along rows
THREADS = {"sm_80": 2048, "sm_90": 2048, "sm_100": 2048, "sm_86": 1536, "sm_89": 1536}
FEW_ADDED, MANY_ADDED = 16, 256  # numbers that a thread adds up, at least and at most


def _sum_of_blocks(operation: Operation, architecture: str) -> int:
    given, answer = operation.inputs[0], operation.outputs[0]
    columns, block = answer.elements, SUM_WIDTH * SUM_VECTOR
    if (columns,) != given.shape[-1:] or given.shape[-1:] != answer.shape[-1:]:
        return 0
    # Narrower sums are cut otherwise, and take next to nothing.
    if not columns or columns % block or architecture not in MULTIPROCESSORS:
        return 0
    added = -(-given.elements // columns // SUM_HEIGHT)
    threads = THREADS.get(architecture, 1536)
    blocks = MULTIPROCESSORS[architecture] * threads // (SUM_WIDTH * SUM_HEIGHT)
    grid = columns // block
    if added < MANY_ADDED or grid > blocks:
        return 0
    splits = max(min(-(-blocks // grid), -(-added // FEW_ADDED)), -(-added // MANY_ADDED))
    # One sum for every column would do: torch multiplies by the columns of a block once more.
    return columns * splits * block * FLOAT * (splits > 1)


# Workspaces of matrix products (aten/src/ATen/cuda/CublasHandlePool.cpp).

PRODUCTS = frozenset(
    f"aten.{name}.default"
    for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "matmul")
)
WIDE_WORKSPACE = 32 * 2**20
SMALL_WORKSPACE = (2 * 4096 + 8 * 16) * 2**10  # CUBLAS_WORKSPACE_CONFIG=:4096:2:16:8
HIPBLAS_WORKSPACE, HIPBLASLT_WORKSPACE = 128 * 2**20, 76 * 2**20
AMPERE_AND_ADA = ("sm_80", "sm_86", "sm_89")


def _multiplies(operation: Operation, architecture: str) -> bool:
    """Whether the operation ends in the vendor's library of products."""
    if operation.name == "bitsandbytes.gemm_4bit.default":
        return _FourBit.of(operation).widened(architecture)
    return operation.name in PRODUCTS


def _cublas(operation: Operation, architecture: str) -> int:
    if _vendor(architecture) == "amd" or not _multiplies(operation, architecture):
        return 0
    return SMALL_WORKSPACE if architecture in AMPERE_AND_ADA else WIDE_WORKSPACE


def _hipblas(operation: Operation, architecture: str) -> int:
    amd = _vendor(architecture) == "amd" and _multiplies(operation, architecture)
    return (HIPBLAS_WORKSPACE + HIPBLASLT_WORKSPACE) * amd


GEMM_4BIT = frozenset({"bitsandbytes.gemm_4bit.default"})
QUANTIZE_8BIT = frozenset({"bitsandbytes.int8_vectorwise_quant.default"})
OUTLIERS_APART = "bitsandbytes.int8_mixed_scaled_mm.default"
GEMM_8BIT = frozenset({"bitsandbytes.int8_scaled_mm.default", OUTLIERS_APART})
BACKWARD = frozenset({CPU_BACKWARD, *NAMED})
SORT = frozenset({"aten.sort.default", "aten.sort.stable"})

# In the order in which a kernel asks for them.
TEMPORARY = (
    Row(
        operations=GEMM_4BIT,
        size=_wide_scales,
        when="before",
        evidence="source",
        provenance="bitsandbytes 0.50.2 makes quantized scales fp32 before it makes a 4-bit weight "
        "wide",
        confirmed=H200,
    ),
    Row(
        operations=GEMM_4BIT,
        size=_wide_scales,
        when="before",
        evidence="source",
        provenance="bitsandbytes 0.50.2 adds the scales' mean into a second copy of them",
        confirmed=H200,
    ),
    Row(
        operations=GEMM_4BIT,
        size=_wide_weight,
        when="before",
        evidence="source",
        provenance="bitsandbytes 0.50.2 makes a 4-bit weight wide inside its product for many rows",
        confirmed=H200,
    ),
    Row(
        operations=QUANTIZE_8BIT,
        size=lambda operation, _: _searched(operation) * HALF,
        when="after",
        evidence="source",
        provenance="bitsandbytes 0.50.2 takes absolute values in fp16 to look for outliers",
        confirmed=H200,
    ),
    Row(
        operations=QUANTIZE_8BIT,
        size=lambda operation, _: _searched(operation),
        when="after",
        evidence="source",
        provenance="bitsandbytes 0.50.2 marks outliers in a mask of all activations",
        confirmed=H200,
    ),
    Row(
        operations=frozenset({OUTLIERS_APART}),
        size=lambda operation, _: _outliers_dequantized(operation),
        when="before",
        evidence="source",
        provenance="bitsandbytes 0.50.2 dequantizes the weight's columns that meet outliers in "
        "fp32, twice",
        confirmed=H200,
    ),
    Row(
        operations=frozenset({OUTLIERS_APART}),
        size=lambda operation, _: _outlier_weights(operation),
        when="before",
        evidence="source",
        provenance="bitsandbytes 0.50.2 holds the weight's columns that meet outliers in the "
        "activations' format",
        confirmed=H200,
    ),
    Row(
        operations=GEMM_8BIT,
        size=lambda operation, _: operation.outputs[0].elements * INT32,
        when="before",
        evidence="source",
        provenance="bitsandbytes 0.50.2 multiplies 8-bit matrices into 32-bit integers",
        confirmed=H200,
    ),
    Row(
        operations=GEMM_8BIT,
        size=lambda operation, _: _half_answer(operation),
        when="before",
        evidence="source",
        provenance="bitsandbytes 0.50.2 scales 8-bit products in fp16 before any other format",
        confirmed=H200,
    ),
    Row(
        operations=BACKWARD,
        size=_in("flash", _flash_rows),
        when="after",
        evidence="source",
        provenance="flash attention's backward holds one fp32 sum per head and row "
        "(flash_api.cpp, mha_bwd: softmax_d)",
    ),
    Row(
        operations=BACKWARD,
        size=_in("flash", _flash_gradient),
        when="after",
        evidence="source",
        provenance="flash attention's backward adds up the queries' gradient in fp32 "
        "(flash_api.cpp, mha_bwd: dq_accum)",
    ),
    Row(
        operations=BACKWARD,
        size=_in("flash", lambda attention: attention.all_heads),
        when="after",
        evidence="source",
        provenance="flash attention's backward gives every head its own gradient of the keys "
        "(flash_api.cpp, mha_bwd: dk_expanded)",
    ),
    Row(
        operations=BACKWARD,
        size=_in("flash", lambda attention: attention.all_heads),
        when="after",
        evidence="source",
        provenance="flash attention's backward gives every head its own gradient of the values "
        "(flash_api.cpp, mha_bwd: dv_expanded)",
    ),
    Row(
        operations=BACKWARD,
        size=_in("cudnn", _cudnn_workspace),
        when="after",
        evidence="assumed",
        provenance="cuDNN's attention backward has one workspace: the queries' gradient and a sum "
        "per head and row in fp32 (cudnn-frontend, CompositeSDPABackwardNode), and, as in its open "
        "kernels, keys' and values' gradients of every head",
        confirmed=H200,
    ),
    Row(
        operations=BACKWARD,
        size=_in("efficient", lambda attention: attention.numbers * FLOAT),
        when="after",
        evidence="source",
        provenance="memory-efficient attention's backward holds one fp32 sum per head and row "
        "(attention_backward.cu: delta)",
    ),
    Row(
        operations=BACKWARD,
        size=_in("efficient", _efficient_workspace),
        when="after",
        evidence="assumed",
        provenance="memory-efficient attention's backward adds up the queries' gradient in fp32 "
        "(kernel_backward.h: workspace_elements_gq; its tiles are rounded as those of one kernel)",
    ),
    Row(
        operations=BACKWARD,
        size=_in("aotriton", lambda attention: attention.numbers * FLOAT),
        when="after",
        evidence="assumed",
        provenance="AOTriton's attention backward holds one fp32 sum per head and row "
        "(attention_backward.cu: delta)",
    ),
    Row(
        operations=frozenset({"aten.embedding_dense_backward.default"}),
        size=_embedding_segments,
        when="after",
        evidence="source",
        provenance="the gradient of an embedding is added up by segments in fp32 "
        "(EmbeddingBackwardKernel.cu: grad_weight_per_segment)",
    ),
    Row(
        operations=frozenset({"aten._cslt_compress.default"}),
        size=_places,
        when="after",
        evidence="measured",
        provenance="cuSPARSELt has a buffer of one bit for every weight while it compresses them",
        confirmed=H200,
    ),
    Row(
        operations=frozenset({"aten._cslt_sparse_mm.default"}),
        size=_packed_places,
        when="after",
        # Not confirmed: when it was read off an H200, answers lay column by column.
        evidence="measured",
        provenance="cuSPARSELt has a workspace of one bit for every weight while it multiplies",
    ),
    Row(
        operations=frozenset({"aten.equal.default"}),
        size=lambda operation, _: operation.inputs[0].elements,
        when="after",
        evidence="source",
        provenance="tensors are compared into a mask of all their elements (cuda/Equal.cpp)",
        confirmed=H200,
    ),
    Row(
        operations=frozenset({"aten._safe_softmax.default"}),
        size=_masked_scores,
        when="after",
        evidence="source",
        provenance="attention that writes its scores down looks for rows that are masked "
        "(attention.cpp: _safe_softmax)",
        confirmed=H200,
    ),
    Row(
        operations=frozenset({"aten._softmax_backward_data.default"}),
        size=lambda operation, _: operation.inputs[0].bytes,
        when="after",
        evidence="source",
        provenance="softmax's backward holds the product of its gradient and its answer "
        "(SoftMax.cu: softmax_backward_cuda_out)",
        confirmed=H200,
    ),
    Row(
        operations=SORT,
        size=_sorted_places,
        when="after",
        evidence="source",
        provenance="a sort of long rows numbers every element (SortStable.cu: reverse_indices)",
        confirmed=H200,
    ),
    Row(
        operations=SORT,
        size=_sorted_copies,
        when="after",
        evidence="source",
        provenance="a sort of long rows has a second copy of its numbers and of their places "
        "(CUB's segmented radix sort)",
        confirmed=H200,
    ),
    Row(
        operations=frozenset({"aten.sum.dim_IntList"}),
        size=_sum_of_blocks,
        when="after",
        evidence="source",
        provenance="a sum over many rows is split among blocks of threads "
        "(Reduce.cuh: global_memory_size)",
        confirmed=H200,
    ),
)
WORKSPACES = (
    Row(
        operations=PRODUCTS | GEMM_4BIT,
        size=_cublas,
        when="after",
        evidence="source",
        provenance="cuBLAS keeps a workspace, which cuBLASLt shares "
        "(CublasHandlePool.cpp: parseChosenWorkspaceSize)",
        confirmed=H200,
    ),
    Row(
        operations=PRODUCTS | GEMM_4BIT,
        size=_hipblas,
        when="after",
        evidence="source",
        provenance="hipBLAS and hipBLASLt keep a workspace each "
        "(CublasHandlePool.cpp: parseChosenWorkspaceSize, parseCUDABlasLtWorkspaceSize)",
    ),
)
