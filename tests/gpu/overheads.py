"""Memory outside the allocator: what the driver counts for a process less what torch has reserved.

Read after the first tensor, when the context is there, and after a step of training, when code has
been loaded; that is the file that predictions take. Beside it: what each kind of operation adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import psutil
import torch
from torch.nn.functional import scaled_dot_product_attention

from gpu import counters
from gpu.ladder import undisturbed
from gpu.rungs import RUNGS
from gpu.section import Bench
from tradebench import environment
from tradebench.devices.overheads import Overheads
from tradebench.result import Outcome
from tradebench.worlds.process import process_used_bytes


def run(bench: Bench, name: str) -> None:
    """Do one thing after another, and read after each."""
    stages: dict[str, dict[str, int]] = {}
    for stage, act in ACTS.items():
        act(bench.device)
        stages[stage] = reading(bench.device)
    small = RUNGS["nf4-512"].trial(tiny=True)
    undisturbed(small, bench.device, Outcome())
    stages["training"] = reading(bench.device)
    context = stages["context"]["outside"]
    overheads = Overheads(
        device=torch.cuda.get_device_name() if bench.device == "cuda" else "cpu",
        context=(max(0, context),),
        code=(max(0, stages["training"]["outside"] - context),),
        environment=environment.capture(),
    )
    bench.write("overheads", {**overheads.model_dump(mode="json", by_alias=True), "stages": stages})


def reading(device: str) -> dict[str, int]:
    """Bytes of the process as the driver counts them, and of the allocator in it."""
    if device == "cuda":
        torch.cuda.synchronize()
        used = process_used_bytes()
    else:
        used = int(psutil.Process().memory_info().rss)
    found = counters.read(device)
    return {
        "process": used,
        "reserved": found.reserved,
        "allocated": found.allocated,
        "outside": used - found.reserved,
    }


def _context(device: str) -> None:
    torch.empty(1, device=device)


def _product(device: str) -> None:
    block = torch.ones(256, 256, dtype=torch.bfloat16, device=device)
    torch.mm(block, block)


def _attention(device: str) -> None:
    query = torch.ones(1, 4, 128, 64, dtype=torch.bfloat16, device=device, requires_grad=True)
    scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()


def _four_bit(device: str) -> None:
    from bitsandbytes import matmul_4bit
    from bitsandbytes.functional import quantize_4bit

    weight = torch.ones(256, 256, dtype=torch.bfloat16, device=device)
    packed, state = quantize_4bit(weight, quant_type="nf4")
    matmul_4bit(weight, packed.t(), quant_state=state)


ACTS: Mapping[str, Callable[[str], None]] = {
    "context": _context,
    "product": _product,
    "attention": _attention,
    "four_bit": _four_bit,
}
