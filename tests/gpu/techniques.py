"""Every technique of the catalogue on the device, one small trial each.

What a test on a CPU cannot show is that the code for CUDA runs and takes the bytes that are
predicted of it. The trials come from the catalogue: a technique is here once its file exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpu import counters
from gpu.ladder import attempt
from gpu.run import PARTS
from gpu.rungs import BF16, SHAPE, Rung, Settings
from gpu.section import Bench
from tradebench import environment
from tradebench.result import Result
from tradebench.runner.refusal import refuse
from tradebench.techniques import Technique, catalogue, techniques
from tradebench.trial import Trial

LORA: Settings = {"adapters": {"method": "lora", "rank": 16}}
NF4: Settings = {"quantization": {"method": "nf4"}}
# What a technique is tried beside: the first that it is legal with.
BESIDE: tuple[Settings, ...] = ({**BF16, **LORA}, BF16, LORA, {**BF16, **NF4}, {})
LAYERS, SEQUENCE, BATCH = 2, 1024, 2  # of the shape of Llama 3.3 70B
# Singular values of matrices that wide take minutes, so what asks for them has narrower ones.
DECOMPOSING = ("svd", "svd_activation", "pissa", "loftq", "galore")
NARROW = "llama-3.2-1b"
# What fits a tiny model of few tokens.
TINY: Mapping[str, Mapping[str, Any]] = {
    "chunked": {"tokens": 16},
    "galore": {"rank": 4},
    "wanda": {"samples": 2},
    "sparsegpt": {"samples": 2},
    "gptq": {"samples": 2},
}


def run(bench: Bench, part: str) -> None:
    """Make the trials of one part, and keep a Result of each.

    One that is there already stays, so that a run goes on where another ran out of time.

    Raises:
        RuntimeError: one failed, once all were made.
    """
    failed = []
    for name, trial in parts(tiny=bench.tiny)[int(part) - 1]:
        if (bench.out / "techniques" / f"{name}.json").exists():
            continue
        counters.clear(bench.device)
        result = made(trial, bench.device)
        bench.write(f"techniques/{name}", result.model_dump(mode="json", by_alias=True))
        if result.status not in ("ok", "oom", "skipped"):
            failed.append(f"{name}: {result.reason}")
    if failed:
        raise RuntimeError("\n".join(failed))


def made(trial: Trial, device: str) -> Result:
    """What came of a trial; one that this machine refuses is skipped, and its reason says why."""
    reasons = refuse(trial)
    if not reasons:
        return attempt(trial, device)
    return Result(
        suite="gpu-techniques",
        trial=trial.id,
        label=trial.label,
        **trial.payload(),
        status="skipped",
        reason=" ".join(reasons),
        environment=environment.of_trial(environment.capture(), trial),
    )


def parts(*, tiny: bool) -> list[list[tuple[str, Trial]]]:
    """All trials in so many parts, the ones that only a GPU can show first."""
    found = list(trials(tiny=tiny))
    size = -(-len(found) // PARTS)
    return [found[start : start + size] for start in range(0, size * PARTS, size)]


def trials(*, tiny: bool) -> Iterator[tuple[str, Trial]]:
    """By name, a trial of every method at its defaults, and of each of its switches thrown."""
    for kind in sorted(techniques(), key=_rank):
        for method in kind.methods():
            yield _named(kind, method, {}, tiny=tiny)
            for name, field in kind.model_fields.items():
                if field.annotation is bool:
                    yield _named(kind, method, {name: not field.default}, tiny=tiny)


def _rank(kind: type[Technique]) -> tuple[bool, bool]:
    """What needs a GPU comes first, then what needs packages, whose kernels differ on one."""
    return kind.cuda_only is None and kind.capability is None, not kind.packages


def _named(
    kind: type[Technique], method: str, switch: Mapping[str, Any], *, tiny: bool
) -> tuple[str, Trial]:
    fields = {"method": method, **switch, **(TINY.get(method, {}) if tiny else {})}
    settings = catalogue()[kind.slot][method].model_validate(fields).settings()
    for beside in BESIDE:
        rung = Rung(
            does=method,
            layers=LAYERS,
            sequence=SEQUENCE,
            batch=BATCH,
            shape=NARROW if method in DECOMPOSING else SHAPE,
            settings={**beside, kind.slot: settings},
        )
        trial = rung.trial(tiny=tiny)
        if not trial.conflicts():
            break
    # What is legal with none of them keeps its reasons, and is skipped with them.
    return "-".join((kind.slot, method, *switch)), trial
