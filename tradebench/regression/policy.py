"""What counts as worse: a margin, the noise to expect and the way of testing, by metric.

A policy is written in TOML, at the top level or under `[tool.tradebench.check]`:

    [metrics]
    step_seconds = {margin = "5%", noise = "2%", test = "runs"}
    "accuracy.*" = {margin = "1pt", test = "items"}
    [overrides."quantization.bits=2"]
    "accuracy.*" = {margin = "3pt"}

Names are matched as in a shell; a later line wins, key by key, over an earlier one and over what is
built in.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from tradebench.errors import UserError

Test = Literal["exact", "runs", "items"]

_UNITS: Mapping[str, float] = {
    "": 1.0,
    "pt": 0.01,
    "B": 1.0,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "s": 1.0,
    "ms": 1e-3,
    "nat": 1.0,
}
_AMOUNT = re.compile(r"\s*(?P<number>\d+(?:\.\d*)?(?:e-?\d+)?)\s*(?P<unit>%|[A-Za-z]*)\s*")


class Amount(BaseModel):
    """How much of a metric: a share of the value it is held against, or at least so many units."""

    model_config = ConfigDict(frozen=True)

    relative: float = 0.0
    absolute: float = 0.0

    def of(self, base: float) -> float:
        """In the metric's own unit."""
        return max(self.relative * abs(base), self.absolute)

    @classmethod
    def parse(cls, text: str | float) -> Amount:
        """`5%` is a share; `64MiB`, `1pt`, `3ms` and plain numbers are in the metric's unit.

        Raises:
            ValueError: it is none of these.
        """
        found = _AMOUNT.fullmatch(str(text))
        unit = found["unit"] if found else ""
        if isinstance(text, bool) or found is None or (unit != "%" and unit not in _UNITS):
            raise ValueError(f"{text!r} is no amount: write 5%, 1pt, 64MiB, 3ms or a number")
        number = float(found["number"])
        if unit == "%":
            return cls(relative=number / 100)
        return cls(absolute=number * _UNITS[unit])


class Rule(BaseModel):
    """How one metric is judged.

    A change has to exceed `margin` and, where there is one, `floor`. `noise` is the spread between
    runs (one standard deviation) that is assumed until enough runs show theirs. What is judged
    with `gate: false` is shown and never ends a check with 1. `judge: false` leaves a metric out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: str | float = "0"
    floor: str | float = "0"
    noise: str | float = "0"
    test: Test = "exact"
    gate: bool = True
    judge: bool = True

    @field_validator("margin", "floor", "noise")
    @classmethod
    def _is_amount(cls, value: str | float) -> str | float:
        Amount.parse(value)
        return value

    def least(self, base: float) -> float:
        """The change beyond which it counts, in the metric's unit."""
        return max(Amount.parse(self.margin).of(base), Amount.parse(self.floor).of(base))

    def expected_noise(self, base: float) -> float:
        """The declared standard deviation between runs, in the metric's unit."""
        return Amount.parse(self.noise).of(base)


Lines = Mapping[str, Mapping[str, Any]]

# Memory hardly varies and takes no test. Requested bytes do not vary at all: 0.1 % is room for a
# stray buffer. Below 64 MiB an allocator's or a process's peak moves by itself. Every noise here is
# a guess, until `tradebench noise` has measured it: 2 % of a step time is what a quiet machine may
# differ by from run to run, and no GPU has been asked yet.
DEFAULTS: Lines = {
    "peak_tensor_bytes": {"margin": "0.1%"},
    "peak_tensor_bytes.*": {"margin": "0.1%"},
    **{
        pattern: {"margin": "1%", "floor": "64MiB"}
        for name in ("peak_allocated_bytes", "peak_reserved_bytes", "peak_process_bytes")
        for pattern in (name, f"{name}.*")
    },
    "trainable_parameters": {"margin": "0"},
    "step_seconds": {"margin": "5%", "noise": "2%", "test": "runs"},
    "benchmark_seconds": {"margin": "5%", "noise": "2%", "test": "runs"},
    "accuracy.*": {"margin": "1pt", "noise": "0.5pt", "test": "items"},
    "accuracy_before.*": {"margin": "1pt", "noise": "0.5pt", "test": "items"},
    "answer_nll.*": {"margin": "2%", "floor": "0.01", "noise": "1%", "test": "items"},
    "answer_nll_before.*": {"margin": "2%", "floor": "0.01", "noise": "1%", "test": "items"},
}


class Policy(BaseModel):
    """The rules of a check; `metrics` and `overrides` hold what was said beside the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: Mapping[str, Mapping[str, Any]] = {}
    overrides: Mapping[str, Mapping[str, Mapping[str, Any]]] = {}

    def model_post_init(self, context: object, /) -> None:
        """Read every line once, so that a mistake shows before anything is compared."""
        for lines in (self.metrics, *self.overrides.values()):
            for name, fields in lines.items():
                try:
                    Rule.model_validate(dict(fields))
                except ValidationError as error:
                    raise ValueError(f"{name}: {_first(error)}") from None
        for selector in self.overrides:
            _parse_selector(selector)

    def rule(
        self, metric: str, settings: Mapping[str, Mapping[str, Any]], kind: str
    ) -> Rule | None:
        """How to judge a metric of a point; None where it is not judged.

        What is predicted is computed and has no noise: whatever is said of testing, it is compared
        as it stands.
        """
        found: dict[str, Any] = {}
        chosen = [
            lines for selector, lines in self.overrides.items() if selects(selector, settings)
        ]
        known = False
        for lines in (DEFAULTS, self.metrics, *chosen):
            for pattern, fields in lines.items():
                if fnmatchcase(metric, pattern):
                    known = True
                    found |= fields
        if not known:
            return None
        rule = Rule.model_validate(found)
        if not rule.judge:
            return None
        return rule.model_copy(update={"test": "exact"}) if kind == "predicted" else rule


def load(file: Path) -> Policy:
    """The policy in a TOML file.

    Raises:
        UserError: there is no such file, or it is no policy.
    """
    try:
        content: Any = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist: --policy names a TOML file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{file} is not readable TOML: {error}") from None
    for name in ("tool", "tradebench", "check") if "tool" in content else ():
        content = content.get(name, {})
        if not isinstance(content, dict):
            raise UserError(f"{file}: [tool.tradebench.check] is no table")
    unknown = [name for name in content if name not in Policy.model_fields]
    if unknown:
        near = get_close_matches(unknown[0], Policy.model_fields, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ": it has [metrics] and [overrides]"
        raise UserError(f"{file}: unknown table {unknown[0]!r}{hint}")
    try:
        return Policy.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{file}: {_first(error)}") from None


def selects(selector: str, settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a point is meant by `slot.field=value` or `slot=method`; a comma means and."""
    return all(
        str(settings.get(slot, {}).get(field, "off")).lower() == value.lower()
        for slot, field, value in _parse_selector(selector)
    )


def _parse_selector(selector: str) -> list[tuple[str, str, str]]:
    wanted = []
    for part in selector.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        slot, _, field = name.partition(".")
        if not (slot and equals and value):
            raise ValueError(f"{part!r} selects nothing: write slot=method or slot.field=value")
        wanted.append((slot, field or "method", value))
    return wanted


def _first(error: ValidationError) -> str:
    """One line on the first thing that is wrong."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"there is no such key: a rule has {', '.join(Rule.model_fields)}"
    return f"{where}: {message}" if where else message
