"""Hidden memory, measured: what each operation of a training step holds beyond what it returns.

Every operation is watched, not only those of the table in `tradebench.predict.hidden`, so that one
that the table lacks shows up as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpu import counters
from gpu.program import Silent, once
from gpu.rungs import BF16, INT8, NF4, RECOMPUTED, Settings
from gpu.section import Bench
from tradebench import reference
from tradebench.errors import UserError
from tradebench.predict.hidden import hidden, persistent
from tradebench.predict.operations import Operation, Spec
from tradebench.result import Outcome
from tradebench.trial import Trial

LORA: Settings = {"adapters": {"method": "lora", "rank": 16}}
DOUBLE: Settings = {"quantization": {"method": "nf4", "double": True}}
SPARSE: Settings = {"pruning": {"method": "semi_structured"}}
# Settings and lengths: kernels choose by the number of rows.
STEPS: tuple[tuple[Settings, int], ...] = (
    ({**BF16, **RECOMPUTED}, 2048),
    ({**BF16, **LORA}, 4096),
    ({**LORA}, 512),
    ({**BF16, **NF4, **LORA}, 2048),
    ({**BF16, **DOUBLE, **LORA}, 1024),
    ({**BF16, **DOUBLE, **LORA}, 64),
    ({**BF16, **INT8, **LORA}, 2048),
    ({**BF16, **SPARSE, **LORA}, 2048),
)


@dataclass
class Held:
    """The most that any call of one operation held, in requested bytes.

    `inside` is what it held beyond its results while it ran, `kept` what it left behind.
    """

    inside: int = 0
    kept: int = 0
    calls: int = 0


class Watch(TorchDispatchMode):
    """Reads the allocator's counters before and after every operation."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.device = device
        self.found: dict[Operation, Held] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation between two readings."""
        given = _tensors((args, kwargs))
        known = {tensor.untyped_storage()._cdata for tensor in given}
        counters.reset(self.device)
        before = counters.read(self.device).requested
        result = func(*args, **(kwargs or {}))
        after = counters.read(self.device)
        made = _tensors(result)
        returned = {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
            for tensor in made
            if tensor.device.type == self.device
        }
        new = sum(size for storage, size in returned.items() if storage not in known)
        held = self.found.setdefault(Operation(str(func), _specs(given), _specs(made)), Held())
        kept = after.requested - before - new
        held.inside = max(held.inside, after.requested_peak - before - new - max(0, kept))
        held.kept = max(held.kept, kept)
        held.calls += 1
        return result


def run(bench: Bench, name: str) -> None:
    """Watch a step of each kind, and keep the operations that hold anything or should."""
    architecture = "sm_90"
    if bench.device == "cuda":
        architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
    operations, left_out = [], []
    for settings, sequence in STEPS:
        trial = step(settings, sequence, tiny=bench.tiny)
        with Watch(bench.device) as watch:
            try:
                once(trial, bench.device, Silent(), Outcome())
            except UserError as error:  # a library that this build of torch lacks
                left_out.append(f"{trial.label}: {error}")
        operations += [
            described(operation, held, architecture) | {"trial": trial.label}
            for operation, held in watch.found.items()
        ]
    telling = [each for each in operations if each["inside"] or each["kept"] or each["expected"]]
    bench.write(
        "hidden",
        {
            "schema": "tradebench.hidden/1",
            "architecture": architecture,
            "torch": torch.__version__,
            "watched": len(operations),
            "left_out": left_out,
            "operations": telling,
        },
    )


def step(settings: Settings, sequence: int, *, tiny: bool) -> Trial:
    """One step of one layer with the widths of Llama 3.3 70B."""
    config = str(reference.CHECKPOINT) if tiny else "llama-3.3-70b"
    model = {"name": config, "config": config, "weights": "random", "layers": 1}
    budget = {"steps": 1, "warmup": 0, "sequence": 32 if tiny else sequence, "data": "random"}
    return Trial.from_payload(
        {"model": model, "budget": budget, "evaluate": {}, "settings": settings}
    )


def described(operation: Operation, held: Held, architecture: str) -> dict[str, Any]:
    """An operation as JSON, with what the table expects it to hold inside."""
    return {
        "name": operation.name,
        "inputs": operation.inputs,
        "outputs": operation.outputs,
        "inside": held.inside,
        "kept": held.kept,
        "calls": held.calls,
        "expected": sum(buffer.bytes for buffer in hidden(operation, architecture)),
        "expected_kept": sum(buffer.bytes for buffer in persistent(operation, architecture)),
    }


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _specs(tensors: Iterable[Tensor]) -> tuple[Spec, ...]:
    return tuple(
        Spec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in tensors
    )
