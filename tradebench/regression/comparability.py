"""What has to be equal before two values are compared, and what may differ and be the cause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tradebench.result import flat

Family = Literal["counted", "memory", "time", "quality"]
Facts = Mapping[str, Any]

COUNTED = ("peak_tensor_bytes", "peak_profiler_bytes", "trainable_parameters")
# Names of facts that are equal or there is no comparison. A CPU is the device of what runs on it:
# its time is another on another one, and its memory is not.
HARD: Mapping[Family, tuple[str, ...]] = {
    "counted": ("hardware.gpus",),
    "memory": ("hardware.gpus", "hardware.machine"),
    "time": (
        *("hardware.gpus", "hardware.machine", "hardware.cpu", "hardware.usable_cpus"),
        # How many trials ran at once on it, where that was more than one.
        "variables.jobs",
    ),
    # Answers depend on the questions, wherever they are asked.
    "quality": ("code.reference",),
}
# Where a GPU did the work, the processor beside it is one cause among others.
BESIDE_A_GPU = frozenset({"hardware.cpu", "hardware.usable_cpus", "variables.jobs"})
IGNORED = frozenset({"variables.git_commit", "variables.git_dirty"})


def family(metric: str, unit: str) -> Family:
    """What kind of metric this is, which decides on what it depends."""
    if metric.partition(".")[0] in COUNTED:
        return "counted"
    if unit == "B":
        return "memory"
    return "time" if unit in ("s", "1/s") or "second" in metric else "quality"


def facts(environment: Mapping[str, Any], code: Mapping[str, Any]) -> dict[str, Any]:
    """Everything known of where a number was made, by dotted name."""
    found = {
        f"{part}.{name}": value
        for part, values in environment.items()
        for name, value in values.items()
    }
    found |= {f"code.{name}": value for name, value in code.items()}
    if "hardware.gpus" in found:
        found["hardware.gpus"] = [_gpu(each) for each in found["hardware.gpus"] or ()]
    return found


def _gpu(facts: Mapping[str, Any]) -> str:
    """A GPU as far as it has to be the same one; drivers report its memory a little differently."""
    gib = round(float(facts.get("memory_bytes") or 0) / 2**30)
    return f"{facts.get('name')} {gib} GiB{' MIG' if facts.get('mig') else ''}"


def identity(kind: Family, known: Facts) -> dict[str, Any]:
    """The facts that have to be equal for two values of this family to be comparable."""
    skipped = BESIDE_A_GPU if known.get("hardware.gpus") else frozenset()
    return {name: known.get(name) for name in HARD[kind] if name not in skipped}


def barriers(kind: Family, base: Facts, new: Facts) -> list[str]:
    """Why two values of this family are not comparable: `name: before -> now` for each."""
    names = dict.fromkeys([*identity(kind, base), *identity(kind, new)])
    if base.get("hardware.gpus") or new.get("hardware.gpus"):
        names = {name: None for name in names if name not in BESIDE_A_GPU}
    return [_said(name, base, new) for name in names if base.get(name) != new.get(name)]


def causes(base: Facts, new: Facts) -> list[str]:
    """What else differs: possible causes of a change, for a reader."""
    return [
        _said(name, base, new)
        for name in sorted({*base, *new} - IGNORED)
        if base.get(name) != new.get(name)
    ]


def differing(base: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields in which two trials differ; both are nested settings."""
    one, other = flat(base), flat(new)
    return [
        _said(name, one, other)
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def _said(name: str, base: Facts, new: Facts) -> str:
    return f"{name}: {_short(base.get(name))} -> {_short(new.get(name))}"


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
