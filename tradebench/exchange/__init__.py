"""What other tools write, as Results; and Results, as other tools read them.

One module per format. Nothing that is not installed with tradebench is imported before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tradebench.result import Result
from tradebench.store import Run

EXPORTS = {
    "csv": "tables:write_csv",
    "parquet": "tables:write_parquet",
    "pytest-benchmark": "pytest_benchmark:write",
    "otava": "otava:write",
    "mlflow": "mlflow:write",
    "wandb": "wandb:write",
}
IMPORTS = {
    "peft": "peft:read",
    "optimum-benchmark": "optimum_benchmark:read",
    "pytest-benchmark": "pytest_benchmark:read",
}

Write = Callable[[Sequence[Run], Path], list[str]]
"""Writes runs to a path or folder; gives what was written, in words for the user."""

Read = Callable[[Any, str], list[Result]]
"""Reads parsed JSON, with the suite that the Results are to belong to.

Raises LookupError, TypeError or ValueError where it is something else.
"""


def writer(form: str) -> Write:
    """The function that writes a format of `EXPORTS`."""
    found: Write = _find(EXPORTS[form])
    return found


def reader(form: str) -> Read:
    """The function that reads a format of `IMPORTS`."""
    found: Read = _find(IMPORTS[form])
    return found


def _find(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(f"{__name__}.{module}"), name)
