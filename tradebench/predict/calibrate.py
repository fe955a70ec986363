"""Calibrating: measuring on a device what plans for it are then made from.

The shapes are those that a model's training step multiplies: each weight three times (forward, and
the gradients of its inputs and of itself) at several numbers of tokens. Inputs are random normal
numbers: zeros would be multiplied faster, because they take less power.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tradebench.devices import Format
from tradebench.devices.calibration import Attention, Calibration, Layout, Product, Sized
from tradebench.errors import UserError
from tradebench.result import Environment

T = TypeVar("T")
Run = Callable[[], object]

DTYPES: dict[Format, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
LEAST = 3  # repetitions of one measurement
CALLS = 500  # of an operation of no size; a device queues up more than that


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured.

    Attributes:
        weights: Outputs and inputs of linear layers; the first are the most important.
        tokens: Rows that a weight is multiplied with.
        heads: Query heads, key and value heads, and the width of each.
        sequences: Lengths of attention.
        moved: Bytes that elementwise kernels read and write.
        packed: Elements of weights of 4 bits.
        repeated: Seconds for which one measurement is repeated.
        sustained: Seconds for which the first weight is multiplied without a pause.
    """

    weights: Sequence[tuple[int, int]]
    tokens: Sequence[int]
    heads: tuple[int, int, int]
    sequences: Sequence[int]
    moved: Sequence[int]
    packed: Sequence[int]
    repeated: float
    sustained: float


# Llama 3.3 70B: the projections q and o, k and v, gate and up, down; LoRA of two ranks on them; and
# the output head.
LLAMA_70B = Sizes(
    weights=(
        *((8192, 8192), (28672, 8192), (8192, 28672), (1024, 8192)),
        *((16, 8192), (16, 28672), (8192, 16), (28672, 16), (1024, 16)),
        *((64, 8192), (64, 28672), (8192, 64), (28672, 64), (1024, 64)),
        (128256, 8192),
    ),
    tokens=(128, 512, 2048, 4096, 8192),
    heads=(64, 8, 128),
    sequences=(512, 2048, 4096, 8192),
    moved=tuple(2**power for power in range(14, 33, 2)),
    packed=(8192 * 1024, 8192 * 8192, 8192 * 28672),
    repeated=0.03,
    sustained=15.0,
)
# For a processor: the same program within a second or two.
REHEARSAL = Sizes(
    weights=((64, 64), (128, 64), (4, 64)),
    tokens=(16, 64),
    heads=(4, 2, 16),
    sequences=(16, 32),
    moved=(2**12, 2**16),
    packed=(64 * 64, 128 * 64),
    repeated=0.0,
    sustained=0.01,
)


def calibrate(device: str, budget_seconds: float = 300.0, sizes: Sizes = LLAMA_70B) -> Calibration:
    """Measure a device: `cuda`, `cuda:1`, or `cpu` for a rehearsal with small sizes.

    What matters most is measured first. What no time or memory was left for is named in the
    calibration; the last measurement may run over the budget.

    Raises:
        UserError: there is no such device.
    """
    begun = time.perf_counter()
    bench = Bench(device=_device(device), deadline=begun + budget_seconds, repeated=sizes.repeated)
    kernel, call = bench.overheads()
    products = list(bench.products("bf16", sizes))
    copies = list(bench.copies(sizes))
    dequantizations = list(bench.dequantizations(sizes))
    attentions = list(bench.attentions("bf16", sizes))
    products += bench.products("fp32", sizes)
    attentions += bench.attentions("fp32", sizes)
    sustained = bench.attempt("the sustained rate", bench.sustained, sizes)
    return Calibration(
        device=bench.name,
        products=tuple(products),
        attentions=tuple(attentions),
        copies=tuple(copies),
        dequantizations=tuple(dequantizations),
        kernel_seconds=kernel,
        call_seconds=call,
        sustained=sustained or 1.0,
        took=time.perf_counter() - begun,
        left_out=tuple(bench.left_out),
        environment=Environment(
            software={"torch": torch.__version__, "cuda": torch.version.cuda},
            hardware={"device": bench.name, "threads": torch.get_num_threads()},
        ),
    )


def _device(name: str) -> torch.device:
    """The device of this name, if this machine has it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name!r} cannot be calibrated: {reason}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"{name!r} cannot be calibrated: choose cuda, cuda:1 … or cpu")
    return device


@dataclass(kw_only=True)
class Bench:
    """One device under measurement, until a deadline of the host's clock.

    Every measurement is repeated for `repeated` seconds, and some times at least.
    """

    device: torch.device
    deadline: float
    repeated: float
    left_out: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the driver calls the device."""
        return str(torch.cuda.get_device_name(self.device)) if self.cuda else "cpu"

    @property
    def cuda(self) -> bool:
        """Whether kernels run beside the host."""
        return self.device.type == "cuda"

    def attempt(self, what: str, measure: Callable[..., T], *arguments: object) -> T | None:
        """What `measure` finds; None once time is up, or where memory does not suffice."""
        if time.perf_counter() > self.deadline:
            self.left_out.append(f"{what}: no time was left")
            return None
        try:
            return measure(*arguments)
        except torch.OutOfMemoryError:
            self.left_out.append(f"{what}: memory does not suffice")
            return None

    def overheads(self) -> tuple[float, float]:
        """Seconds of a kernel of no size: on the device, and for the host that asks for it."""
        one, block = self.normal("fp32", 1), self.normal("bf16", 4096 if self.cuda else 1, 4096)
        one.add_(1)
        # Keeps a GPU busy while the host gets ahead, so that its kernels then follow each other.
        for _ in range(50 if self.cuda else 0):
            torch.mm(block, block)
        kernel = self.clock(lambda: [one.add_(1) for _ in range(CALLS)]) / CALLS
        start = time.perf_counter()
        for _ in range(CALLS):
            one.add_(1)
        call = (time.perf_counter() - start) / CALLS
        self.wait()
        return kernel, call

    def products(self, format: Format, sizes: Sizes) -> Iterator[Product]:
        """The three products of each weight at each number of tokens."""
        for outputs, inputs in sizes.weights:
            for tokens in sizes.tokens:
                what = f"{format} product of {tokens} x {inputs} by {inputs} x {outputs}"
                yield from self.attempt(what, self.layouts, format, tokens, outputs, inputs) or ()

    def layouts(
        self, format: Format, tokens: int, outputs: int, inputs: int
    ) -> tuple[Product, Product, Product]:
        """What a linear layer multiplies: forward, and for the gradients of inputs and weight."""
        rows = self.normal(format, tokens, inputs)
        weight = self.normal(format, outputs, inputs)
        gradient = self.normal(format, tokens, outputs)

        def measured(layout: Layout, left: Tensor, right: Tensor) -> Product:
            (m, k), n = left.shape, right.shape[1]
            seconds = self.seconds(lambda: torch.mm(left, right))
            return Product(m=m, n=n, k=k, format=format, layout=layout, seconds=seconds)

        return (
            measured("forward", rows, weight.t()),
            measured("inputs", gradient, weight),
            measured("weights", gradient.t(), rows),
        )

    def attentions(self, format: Format, sizes: Sizes) -> Iterator[Attention]:
        """Causal attention over each length."""
        for sequence in sizes.sequences:
            what = f"{format} attention over {sequence}"
            found = self.attempt(what, self.attention, format, sizes.heads, sequence)
            if found is not None:
                yield found

    def attention(self, format: Format, heads: tuple[int, int, int], sequence: int) -> Attention:
        """Causal attention over one length, with grouped keys and values as they are."""
        queries, keys, width = heads
        query = self.normal(format, 1, queries, sequence, width).requires_grad_()
        key, value = (
            self.normal(format, 1, keys, sequence, width).requires_grad_() for _ in range(2)
        )

        def attend() -> Tensor:
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )

        output, gradient = attend(), self.normal(format, 1, queries, sequence, width)
        return Attention(
            batch=1,
            heads=queries,
            kv_heads=keys,
            sequence=sequence,
            head_dim=width,
            format=format,
            causal=True,
            forward=self.seconds(attend),
            backward=self.seconds(
                lambda: torch.autograd.grad(
                    output, (query, key, value), gradient, retain_graph=True
                )
            ),
        )

    def copies(self, sizes: Sizes) -> Iterator[Sized]:
        """An elementwise kernel of 16 bits, by the bytes it reads and writes."""
        for moved in sizes.moved:
            seconds = self.attempt(f"a copy of {moved} bytes", self.copy, moved)
            if seconds is not None:
                yield Sized(size=moved, seconds=seconds)

    def copy(self, moved: int) -> float:
        """Seconds to read half of so many bytes and to write the other half."""
        source = self.normal("bf16", moved // 4)
        target = torch.empty_like(source)
        return self.seconds(lambda: torch.mul(source, 2.0, out=target))

    def dequantizations(self, sizes: Sizes) -> Iterator[Sized]:
        """NF4 weights made 16 bits wide, by their elements."""
        for packed in sizes.packed:
            what = f"unpacking {packed} elements of 4 bits"
            seconds = self.attempt(what, self.dequantization, packed)
            if seconds is not None:
                yield Sized(size=packed, seconds=seconds)

    def dequantization(self, packed: int) -> float:
        """Seconds to make so many elements of NF4 16 bits wide."""
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        weight, state = quantize_4bit(self.normal("bf16", packed), quant_type="nf4")
        return self.seconds(lambda: dequantize_4bit(weight, state))

    def sustained(self, sizes: Sizes) -> float:
        """Rate of a product at the end of a long run, as a share of its rate at the beginning."""
        (outputs, inputs), tokens = sizes.weights[0], max(sizes.tokens)
        rows, weight = self.normal("bf16", tokens, inputs), self.normal("bf16", inputs, outputs)
        first = self.seconds(lambda: torch.mm(rows, weight))
        end = time.perf_counter() + sizes.sustained
        while time.perf_counter() < end:
            last = self.seconds(lambda: torch.mm(rows, weight))
        return min(1.0, first / last)

    def normal(self, format: Format, *shape: int) -> Tensor:
        """Random normal numbers."""
        return torch.randn(shape, dtype=DTYPES[format], device=self.device)

    def seconds(self, run: Run) -> float:
        """The median of some runs, after one that is not counted."""
        self.clock(run)
        found: list[float] = []
        while len(found) < LEAST or sum(found) < self.repeated:
            found.append(self.clock(run))
        return statistics.median(found)

    def clock(self, run: Run) -> float:
        """Seconds of one run, by the device's own clock where it has one."""
        if self.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self.device)
            start.record(stream)
            run()
            end.record(stream)
            end.synchronize()
            return float(start.elapsed_time(end)) / 1000
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun

    def wait(self) -> None:
        """Until the device has done what it was asked for."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
