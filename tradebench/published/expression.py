"""Published rows as trials of this program, so that what is predicted for a trial meets a figure.

expressed.yaml says for every row which trial it was, what was read and when, and what in the source
differs from this program: or why the row is no trial. A row whose trial needs a technique that does
not exist, or that contradicts another, is refused with that reason, and comes in by itself once the
technique can do it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from tradebench.published.row import UNITS, Row, rows
from tradebench.techniques import catalogue
from tradebench.trial import Trial

FILE = Path(__file__).parent / "expressed.yaml"

Counter = Literal["allocated", "active", "reserved", "device", "step"]
Moment = Literal["training", "load", "after_forward", "forward_backward"]
Code = Literal["2024-01"]

# What a Result calls a counter. What the driver reports of a device is its process's own here.
MEASUREMENTS: Mapping[Counter, str] = {
    "allocated": "peak_allocated_bytes",
    "active": "peak_active_bytes",
    "reserved": "peak_reserved_bytes",
    "device": "peak_process_bytes",
    "step": "step_seconds",
}
STEMS: Mapping[Moment, str] = {
    "training": "",
    "load": ".load",
    "after_forward": ".after_forward",
    "forward_backward": ".forward_backward",
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which counter a source read, and when; `stated` is False where it names none.

    The moment `after_forward` is no peak but what is alive when the first forward pass ends, and
    `forward_backward` is the peak of the first step before the optimizer steps.
    """

    counter: Counter
    moment: Moment
    stated: bool = True

    @property
    def measurement(self) -> str:
        """The name that a Result gives to what was read."""
        return MEASUREMENTS[self.counter] + STEMS[self.moment]

    @property
    def unit(self) -> str:
        """Bytes or seconds."""
        return "s" if self.counter == "step" else "B"


@dataclass(frozen=True, kw_only=True)
class Expressed:
    """A published row and the trial that it was.

    Attributes:
        row: What was published.
        trial: What a prediction is made for; its weights are random, its data too.
        reading: What `value` is.
        value: Bytes, or seconds of one optimizer step.
        gpus: How many GPUs the source used.
        device: The catalogue's id of the GPU, where it has it.
        family: The code base that produced the figure.
        experiment: The source within the family; figures compare within one only.
        cause: Why a prediction differs from figures of this source, in one sentence.
        differences: Everything known that this program does otherwise, as sentences.
        code: The month whose libraries a prediction is made with; None is today.
        beyond: What the source changed besides the settings, in a few words.
    """

    row: Row
    trial: Trial
    reading: Reading
    value: float
    gpus: int
    device: str | None
    family: str
    experiment: str
    cause: str
    differences: tuple[str, ...]
    code: Code | None = None
    beyond: str | None = None


@dataclass(frozen=True, kw_only=True)
class Unexpressed:
    """A published row that is no trial of this program, and why, in one sentence."""

    row: Row
    family: str
    reason: str


def expressed() -> tuple[Expressed, ...]:
    """Every row that is a legal trial, in the order of expressed.yaml."""
    return tuple(found for found in _read() if isinstance(found, Expressed))


def unexpressed() -> tuple[Unexpressed, ...]:
    """Every row that is none, in the order of expressed.yaml."""
    return tuple(found for found in _read() if isinstance(found, Unexpressed))


@lru_cache
def _read() -> tuple[Expressed | Unexpressed, ...]:
    document = YAML(typ="safe").load(FILE)
    known = {row.id: row for row in rows()}
    devices: Mapping[str, str] = document["devices"]
    found: list[Expressed | Unexpressed] = []
    for experiment in document["experiments"]:
        for name, said in _leaves(experiment, {}):
            found.append(express(known[name], said, devices))
        for refusal in experiment.get("refused", ()):
            found += [
                Unexpressed(
                    row=known[name], family=experiment["family"], reason=refusal["because"].strip()
                )
                for name in refusal["rows"]
            ]
    return tuple(found)


def _leaves(
    node: Mapping[str, Any], inherited: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Row id, and everything that is said of the row on the way down to it."""
    own = {key: value for key, value in node.items() if key not in ("groups", "rows", "refused")}
    common = _merged(inherited, own)
    for group in node.get("groups", ()):
        yield from _leaves(group, common)
    for name, said in node.get("rows", {}).items():
        yield name, _merged(common, said)


def _merged(outer: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged all the way down; of anything else the inner, differences one after another.

    A list within a mapping (targets) is one value: the inner replaces the outer.
    """
    merged = dict(outer)
    for key, value in inner.items():
        before = merged.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(before, value)
        elif key == "differences" and before is not None:
            merged[key] = [*before, *value]
        else:
            merged[key] = value
    return merged


def express(
    row: Row, said: Mapping[str, Any], devices: Mapping[str, str]
) -> Expressed | Unexpressed:
    """What is said of a row, as a trial: or the reason why it is none.

    `said` has the keys that the head of expressed.yaml explains, with nothing left to inherit.
    """
    settings: Mapping[str, Mapping[str, Any]] = said["settings"]
    missing = [
        f"{slot}: {fields['method']} is not a technique yet."
        for slot, fields in settings.items()
        if fields["method"] not in catalogue().get(slot, {})
    ]
    if missing:
        return Unexpressed(row=row, family=said["family"], reason=" ".join(missing))
    trial = Trial.from_payload(
        {
            "model": {**said["model"], "weights": "random"},
            "budget": {**said["budget"], "data": "random"},
            "evaluate": {},
            "settings": settings,
        }
    )
    if conflicts := trial.conflicts():
        reason = " ".join(f"{conflict[0].upper()}{conflict[1:]}." for conflict in conflicts)
        return Unexpressed(row=row, family=said["family"], reason=reason)
    reading = Reading(
        counter=said["counter"], moment=said["moment"], stated=said.get("stated", True)
    )
    gpus = row.n_gpus or 1
    return Expressed(
        row=row,
        trial=trial,
        reading=reading,
        value=_value(row, trial, gpus, said),
        gpus=gpus,
        device=devices.get(row.gpu or ""),
        family=said["family"],
        experiment=said["name"],
        cause=said["cause"].strip(),
        differences=tuple(sentence.strip() for sentence in said["differences"]),
        code=said.get("code"),
        beyond=said.get("beyond"),
    )


def _value(row: Row, trial: Trial, gpus: int, said: Mapping[str, Any]) -> float:
    """Bytes, or the seconds of one optimizer step on all GPUs."""
    if row.kind == "memory":
        return row.value * UNITS[said.get("unit", row.unit)]
    budget = trial.budget
    sequences = budget.batch * budget.accumulation * gpus
    if row.unit.startswith("tokens/s"):
        rate = row.value * (gpus if row.unit == "tokens/s/GPU" else 1)
        return sequences * budget.sequence / rate
    return row.value * UNITS[row.unit] * sequences / float(said["sequences"])
