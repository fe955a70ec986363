"""A Result in the plainest terms: what it is called, what was set, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tradebench.result import Result, flat


def parameters(result: Result) -> dict[str, Any]:
    """Settings by dotted name: `adapters.rank`, `budget.batch`."""
    parts = {
        **result.settings,
        "model": result.model,
        "budget": result.budget,
        "evaluate": result.evaluate,
    }
    return {name: value for name, value in flat(parts).items() if value is not None}


def label(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """What people read of settings that are no techniques of this catalogue."""
    words = []
    for fields in settings.values():
        rank = f" r{fields['rank']}" if "rank" in fields else ""
        words.append(f"{fields['method']}{rank}")
    return " + ".join(words) or "baseline"


def metrics(result: Result) -> dict[str, float]:
    """Measurement to value."""
    return {name: float(each.value) for name, each in result.measurements.items()}
