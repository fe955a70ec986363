"""What a trial ends as: measurements, the environment they were made in, and a Result.

Values are SI base units (bytes, seconds); GiB and milliseconds exist only where text is printed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = "tradebench.result/1"

Kind = Literal["measured", "predicted", "published"]
Status = Literal["ok", "oom", "failed", "timeout", "killed", "diverged", "skipped"]
Verdict = Literal["fits", "tight", "does not fit"]
Phase = Literal["load", "compress", "evaluate_before", "train", "evaluate_after"]

PHASES: tuple[Phase, ...] = ("load", "compress", "evaluate_before", "train", "evaluate_after")
CATEGORIES = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "communication",
    "temporaries",
    "other",
)


def canonical_json(value: object) -> str:
    """The one spelling of a JSON value: sorted keys, no white space, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """Twelve hexadecimal digits that name a JSON value, whatever the order of its keys."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one, by dotted names: `adapters.rank`."""
    found: dict[str, Any] = {}
    for name, each in value.items():
        if isinstance(each, Mapping):
            found |= flat(each, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = each
    return found


class Record(BaseModel):
    """A frozen value that travels as JSON and keeps keys that a later version added."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)


class Measurement(Record):
    """One measured, predicted or published quantity.

    `samples` are the raw observations behind `value`, in the order they were made. `interval` is
    the 95 % interval of `value` from the sampling inside this one trial (steps or test items): it
    knows nothing of the spread between runs or seeds. `ranks` holds one value per rank of a
    sharded trial, `value` being the largest.
    """

    value: float | int
    unit: str
    better: Literal["less", "more"] = "less"
    samples: tuple[float | int, ...] = ()
    interval: tuple[float, float] | None = None
    ranks: tuple[float | int, ...] | None = None


class Environment(Record):
    """Where a number was made; a probe that failed leaves None and a line in `missing`."""

    software: Mapping[str, str | None] = Field(default_factory=dict)
    hardware: Mapping[str, Any] = Field(default_factory=dict)
    code: Mapping[str, str | None] = Field(default_factory=dict)
    variables: Mapping[str, str] = Field(default_factory=dict)
    missing: Mapping[str, str] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names what must be equal before a finished point may stand for a new one."""
        return digest(
            {
                "software": dict(self.software),
                "hardware": dict(self.hardware),
                "code": dict(self.code),
            }
        )

    def differences(self, other: Environment) -> tuple[str, ...]:
        """What the two keys differ in, such as `software.torch`."""
        return tuple(
            f"{group}.{name}"
            for group in ("software", "hardware", "code")
            for mine, theirs in [(getattr(self, group), getattr(other, group))]
            for name in sorted({*mine, *theirs})
            if mine.get(name) != theirs.get(name)
        )


class Fit(Record):
    """Whether a point's memory fits on a device, in every phase.

    `needed` and `capacity` are intervals in bytes: what the point is predicted to take there, and
    what the device has to give. They overlap where it is `tight`. `phase` is the one that needs
    most; `advice` names the nearest change that fits, where this does not.
    """

    device: str
    verdict: Verdict
    needed: tuple[int, int]
    capacity: tuple[int, int]
    phase: Phase
    advice: str | None = None


class Result(Record):
    """How one attempt at one point ended, with enough to run exactly that point again.

    `trial` is the trial's id; `settings` maps a slot to the fields of its technique. `effects`
    maps a slot to what the technique really changed, and `artifacts` names the files beside the
    store (per-item outcomes, log) relative to the run directory; an evaluation that several
    trials share is named by all of them. `fit` belongs to a prediction for a device.
    """

    schema_: str = Field(SCHEMA, alias="schema")
    kind: Kind = "measured"
    suite: str
    trial: str
    repeat: int = 0
    attempt: int = 0
    label: str
    model: Mapping[str, Any]
    budget: Mapping[str, Any]
    evaluate: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    status: Status
    reason: str | None = None
    phase: Phase | None = None
    measurements: Mapping[str, Measurement] = Field(default_factory=dict)
    effects: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    artifacts: Mapping[str, str] = Field(default_factory=dict)
    isolation: Literal["fork", "exec", "none"] = "none"
    environment: Environment = Environment()
    started: str | None = None
    seconds: float | None = None
    fit: Fit | None = None

    def to_json(self) -> str:
        """One line of JSON, keys in the order of this class."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), allow_nan=False)

    def payload(self) -> dict[str, Any]:
        """What its trial is made of, as `Trial.from_payload` takes it."""
        return {
            "model": self.model,
            "budget": self.budget,
            "evaluate": self.evaluate,
            "settings": self.settings,
        }

    def value(self, name: str) -> float | None:
        """The value of a measurement, or None where this Result has no such measurement."""
        found = self.measurements.get(name)
        return None if found is None else float(found.value)


@dataclass
class Outcome:
    """What a trial has brought so far; the program fills it, so that a death keeps what was made.

    The worker reads it once the program has returned or raised.
    """

    phase: Phase | None = None
    measurements: dict[str, Measurement] = field(default_factory=dict)
    effects: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    artifacts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """One sign of life from a running trial: where it is and what it holds.

    `step` of `steps` counts within the phase (training steps, evaluation items); `bytes` is the
    highest memory seen so far, in the counter that the run reports.
    """

    phase: Phase
    step: int = 0
    steps: int = 0
    bytes: int | None = None


Listener = Callable[[Heartbeat], None]


class DivergedError(Exception):
    """The loss became NaN or infinite: the trial ends as `diverged`."""
