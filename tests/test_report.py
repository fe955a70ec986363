"""The whole report of a run that has everything in it: every status, ties, gaps, hostile names."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from tradebench.result import CATEGORIES, Environment, Kind, Measurement, Result, Status, digest
from tradebench.store import Run

HOSTILE = "</script><script>alert(1)</script> $x_2$ | `a` **b** \u202eevil\u202c 😀\n" + "long " * 60
MODEL = {"name": "reference", "revision": None, "config": None, "weights": "hub"}
BUDGET = {"steps": 40, "warmup": 5, "batch": 8, "sequence": 128, "seed": 0}
TASKS = ("arithmetic", "recall")
ENVIRONMENT = Environment(
    software={"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
    hardware={"device": "cpu", "cores": 8, "memory_bytes": 34359738368},
    code={"tradebench": "0.1.0", "commit": "0123abc", "dirty": "no"},
    missing={"gpu": "no CUDA device"},
)
SUITE = """# Which saving of memory costs how much accuracy on the reference model?
model: reference
grid:
  quantization: [off, int8, nf4]
"""

Settings = dict[str, dict[str, Any]]


def settings_of(
    *,
    precision: str = "fp32",
    quantization: str | None = None,
    rank: int | None = None,
    sparsity: float | None = None,
    ratio: float | None = None,
) -> Settings:
    found: Settings = {"precision": {"method": precision}}
    if sparsity is not None:
        found["pruning"] = {"method": "magnitude", "sparsity": sparsity}
    if quantization is not None:
        found["quantization"] = {"method": quantization}
    if rank is not None:
        found["adapters"] = {"method": "lora", "rank": rank, "alpha": None, "merge": False}
    if ratio is not None:
        found["checkpointing"] = {"method": "full", "ratio": ratio}
    return found


def label_of(settings: Settings) -> str:
    words = {
        "precision": lambda f: f["method"],
        "pruning": lambda f: f"magnitude {f['sparsity']:.0%}",
        "quantization": lambda f: f["method"],
        "adapters": lambda f: f"lora r{f['rank']}",
        "checkpointing": lambda f: f"checkpointing {f['ratio']:g}",
    }
    return " + ".join(words[slot](fields) for slot, fields in settings.items())


def measured(settings: Settings, repeat: int, predicted: bool = False) -> dict[str, Measurement]:
    """Numbers that behave as the techniques do: roughly right, and noisy between repeats."""
    noise = random.Random(digest([settings, repeat]))
    get = {slot: fields for slot, fields in settings.items()}
    bits = {"fp32": 32, "bf16": 16}[get["precision"]["method"]]
    stored = {"int8": 8.5, "nf4": 4.6, "fp4": 4.6}.get(
        get.get("quantization", {}).get("method", ""), bits
    )
    rank = get.get("adapters", {}).get("rank")
    ratio = get.get("checkpointing", {}).get("ratio", 0.0)
    sparsity = get.get("pruning", {}).get("sparsity", 0.0)
    size = 9_400_000
    trained = size if rank is None else 26_000 * rank
    parts = {
        "weights": int(size * stored / 8 + (0 if rank is None else trained * 4)),
        "gradients": trained * bits // 8,
        "optimizer": trained * 2 * bits // 8,
        "activations": int(61e6 * bits / 32 * (1 - 0.78 * ratio)),
        "communication": 0,
        "temporaries": int(7e6 * bits / 32),
        "other": 120_000,
    }
    total = sum(parts.values())
    found = {f"peak_{name}_bytes": Measurement(value=parts[name], unit="B") for name in CATEGORIES}
    found["peak_tensor_bytes"] = Measurement(value=total, unit="B")
    found["peak_tensor_bytes.load"] = Measurement(value=size * 4, unit="B")
    found["trainable_parameters"] = Measurement(value=trained, unit="1")
    if predicted:
        return found
    step = 0.21 * (1 + 0.31 * ratio) * (1.6 if stored < bits else 1) * noise.gauss(1, 0.015)
    steps = tuple(step * noise.gauss(1, 0.03) for _ in range(20))
    found["step_seconds"] = Measurement(
        value=step, unit="s", samples=steps, interval=(step * 0.985, step * 1.015)
    )
    found["tokens_per_second"] = Measurement(value=1024 / step, unit="1/s", better="more")
    for at, task in enumerate(TASKS):
        full = 0.86 - 0.14 * at
        before = full - 0.25 - 0.45 * sparsity**3 - (0.06 if stored < 5 else 0.01)
        gain = 0.25 if rank is None else 0.06 + 0.03 * math.log2(rank)
        after = before + gain + noise.gauss(0, 0.008)
        for when, value in (("accuracy_before", before), ("accuracy", after)):
            low, high = max(0.0, value - 0.028), min(1.0, value + 0.028)
            found[f"{when}.{task}"] = Measurement(
                value=value, unit="1", better="more", interval=(low, high)
            )
    return found


def result(
    settings: Settings,
    *,
    repeat: int = 0,
    status: Status = "ok",
    reason: str | None = None,
    label: str | None = None,
    without: tuple[str, ...] = (),
    kind: Kind = "measured",
    warnings: tuple[str, ...] = (),
) -> Result:
    numbers = measured(settings, repeat, kind == "predicted") if status == "ok" else {}
    return Result(
        kind=kind,
        suite="quickstart",
        trial=digest([settings, label]),
        repeat=repeat,
        label=label_of(settings) if label is None else label,
        model=MODEL,
        budget=BUDGET,
        evaluate={"tasks": list(TASKS), "limit": 400},
        settings=settings,
        status=status,
        reason=reason,
        phase="train" if status != "skipped" else None,
        measurements={name: each for name, each in numbers.items() if name not in without},
        warnings=warnings,
        environment=ENVIRONMENT,
        started="2026-01-02T03:04:05.000+00:00",
        seconds=12.5,
    )


def everything() -> tuple[Result, ...]:
    good = [
        settings_of(),
        settings_of(precision="bf16"),
        *(settings_of(rank=rank) for rank in (4, 8, 16, 32, 64)),
        *(settings_of(precision="bf16", rank=16, quantization=q) for q in (None, "int8", "nf4")),
        settings_of(rank=16, quantization="nf4"),
        settings_of(rank=16, quantization="fp4"),
        settings_of(rank=16, quantization="int8"),
        *(settings_of(sparsity=share) for share in (0.25, 0.5, 0.75, 0.9)),
        *(settings_of(ratio=ratio) for ratio in (0.25, 0.5, 1.0)),
        *(settings_of(precision="bf16", rank=16, quantization="nf4", ratio=r) for r in (0.5, 1.0)),
    ]
    found = [result(each, repeat=repeat) for repeat in range(3) for each in good]
    rare = settings_of(rank=128)
    caution = "pruned weights are stored densely: sparsity costs accuracy here and saves 0 bytes"
    found += [
        result(settings_of(rank=2), label=HOSTILE, warnings=(caution,)),
        result(settings_of(rank=1), label=HOSTILE, warnings=(caution, "a warning of </b> its own")),
        result(settings_of(rank=24), without=("accuracy.arithmetic",)),
        result(rare),
        result(rare, repeat=1, status="oom", reason="asked for 512 MiB with 96 MiB free in train"),
        result(settings_of(rank=256), status="oom", reason="asked for 1.2 GiB with 0.9 GiB free"),
        result(settings_of(ratio=0.75), status="failed", reason="RuntimeError: shape mismatch"),
        result(settings_of(ratio=0.6), status="timeout", reason="no result after 600 s"),
        result(settings_of(ratio=0.7), status="killed", reason="interrupted by the user"),
        result(settings_of(sparsity=0.99), status="diverged", reason="the loss became NaN"),
        *(
            result(
                settings_of(quantization=method),
                status="skipped",
                reason="packed weights take no gradient; add lora",
            )
            for method in ("int8", "nf4", "fp4")
        ),
    ]
    return tuple(found)


def run_of(results: tuple[Result, ...], **header: Any) -> Run:
    full = {
        "schema": "tradebench.run/1",
        "suite": "quickstart",
        "question": "Which saving of memory costs how much accuracy on the reference model?",
        "suite_text": SUITE,
        "objectives": ["peak_tensor_bytes", "step_seconds", "accuracy.arithmetic"],
        "limits": {"peak_tensor_bytes": 120 * 2**20, "accuracy.arithmetic": 0.7},
        "argv": ["tradebench", "run", "suites/quickstart.yaml"],
        "started": "2026-01-02T03:04:05.000+00:00",
        "ended": "2026-01-02T03:24:05.000+00:00",
        "environment": ENVIRONMENT.model_dump(mode="json"),
        **header,
    }
    return Run(
        directory=Path("results/quickstart/20260102T030405Z-abc123"),
        header=full,
        results=results,
        attempts=results,
        problems=("trials.a.jsonl:7: left out, not a Result (Field required)",),
    )


@pytest.fixture(scope="session")
def run() -> Run:
    return run_of(everything())
