"""The catalogue: every technique, found by its file being in this folder or by entry point.

A package outside tradebench adds techniques through the entry-point group
`tradebench.techniques`; each entry names a subclass of `Technique`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points

from tradebench.techniques.protocol import (
    ContradictionError,
    LoadRequest,
    Optimizer,
    Stage,
    Technique,
)

__all__ = [
    "ContradictionError",
    "LoadRequest",
    "Optimizer",
    "Stage",
    "Technique",
    "catalogue",
    "techniques",
]


@lru_cache
def techniques() -> tuple[type[Technique], ...]:
    """Every technique class, in stage order, then by slot and file name.

    Raises:
        TypeError: two classes offer the same method for the same slot.
    """
    found: list[type[Technique]] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        names = vars(importlib.import_module(f"{__name__}.{module.name}"))
        found += [
            value
            for value in names.values()
            if isinstance(value, type)
            and issubclass(value, Technique)
            and value.__module__ == names["__name__"]
            and not inspect.isabstract(value)  # what several techniques share
            and value is not Technique
        ]
    found += [point.load() for point in entry_points(group="tradebench.techniques")]
    return tuple(sorted(found, key=lambda technique: (technique.stage, technique.slot)))


@lru_cache
def catalogue() -> Mapping[str, Mapping[str, type[Technique]]]:
    """Slot, then method (aliases included), to the class that implements it."""
    slots: dict[str, dict[str, type[Technique]]] = {}
    for technique in techniques():
        slot = slots.setdefault(technique.slot, {})
        for method in (*technique.methods(), *technique.aliases):
            if method in slot:
                raise TypeError(
                    f"{slot[method].__name__} and {technique.__name__} both offer "
                    f"{technique.slot}: {method}"
                )
            slot[method] = technique
    return slots
