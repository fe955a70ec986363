"""How complex a technique is to use, counted and not felt."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

from tradebench.pairs import Name, names, refused
from tradebench.report.units import count
from tradebench.techniques import catalogue
from tradebench.trial import Model, Trial

DEFINITION = (
    "Complexity is counted: the settings there are to choose; the packages that the technique's "
    "code imports besides torch and transformers; the methods of other slots that it is refused "
    "with, of all that there are (`tradebench techniques --pairs`); and whether it cannot train "
    "without an adapter or a quantized base, or runs on CUDA only."
)
# What every trial needs, with or without the technique.
COMMON = frozenset({"torch", "transformers", "pydantic", "tradebench"})
# Rooms of the catalogue that techniques share: what these import is nobody's own.
ROOM = "tradebench.techniques"
SHARED = frozenset({f"{ROOM}.protocol", f"{ROOM}.targets"})


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """What there is to choose, to install and to avoid."""

    settings: int
    packages: tuple[str, ...]
    refused: int
    others: int
    needs: str
    cuda_only: bool

    @property
    def text(self) -> str:
        """`6 settings · 1 package (peft) · refused with 1 of 8 · needs an adapter`."""
        parts = [count(self.settings, "setting")]
        if self.packages:
            parts.append(f"{count(len(self.packages), 'package')} ({', '.join(self.packages)})")
        parts.append(f"refused with {self.refused} of {self.others}")
        parts += [f"needs {self.needs}"] if self.needs else []
        parts += ["CUDA only"] if self.cuda_only else []
        return " · ".join(parts)


def complexity(slot: str, method: str) -> Complexity:
    """Return the counts of a method of the catalogue."""
    kind = catalogue()[slot][method]
    alone = Trial(
        model=Model(name="reference"), techniques=(kind.model_validate({"method": method}),)
    )
    return Complexity(
        settings=len(kind.model_fields) - 1,
        packages=tuple(sorted(_packages(kind.__module__))),
        refused=len(refused(Name(slot, method))),
        others=sum(name.slot != slot for name in names()),
        needs=("a quantized base" if slot == "adapters" else "an adapter")
        if alone.conflicts()
        else "",
        cuda_only=kind.cuda_only is not None,
    )


@lru_cache
def _packages(module: str) -> frozenset[str]:
    """Return the packages that a module imports, and those that its own helpers do."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(inspect.getsource(import_module(module)))):
        imported: list[str] = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            imported = [node.module]
        for name in imported:
            if name.startswith(f"{ROOM}.") and name not in SHARED:
                found |= _packages(name)
            found.add(name.partition(".")[0])
    return frozenset(found - COMMON - sys.stdlib_module_names)
