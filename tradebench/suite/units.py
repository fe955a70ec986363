"""Sizes and times as people write them: 80GiB, 1.5 GB, 500ms, 12h."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

from tradebench.suite.problems import show

SIZES: dict[str, int | Decimal] = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}
TIMES: dict[str, int | Decimal] = {
    "us": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": 1,
    "m": 60,
    "min": 60,
    "h": 3600,
    "d": 86400,
}
QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([A-Za-z]*)")


def parse_size(value: object) -> int:
    """Bytes from `80GiB`, `1.5 GB`, `1024` or a number; GB is 1000³ and GiB 1024³ bytes.

    Raises:
        ValueError: a sentence that says what a size looks like.
    """
    found = _quantity(value, SIZES)
    if found is None or found < 1:
        raise ValueError(f"{show(value)} is not a size; write 80GiB, 1.5 GB or a number of bytes")
    return int(found)


def parse_seconds(value: object) -> float:
    """Seconds from `500ms`, `2s`, `45m`, `12h` or a number.

    Raises:
        ValueError: a sentence that says what a time looks like.
    """
    found = _quantity(value, TIMES)
    if found is None or found <= 0:
        raise ValueError(f"{show(value)} is not a time; write 500ms, 2s, 45m, 12h or seconds")
    return float(found)


def _quantity(value: object, units: Mapping[str, int | Decimal]) -> Decimal | None:
    """Number times unit, or None where `value` is neither a number nor a quantity."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Decimal(str(value))
    match = QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    factor = units.get(match[2].lower()) if match[2] else 1
    return None if factor is None else Decimal(match[1]) * factor
