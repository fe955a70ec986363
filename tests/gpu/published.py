"""Rows of a published notebook, measured again: a random model of 1.14B, in all its variants.

The notebook reads what is alive after the first forward pass, and the peak of the first forward and
backward pass; so does this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpu import counters
from gpu.program import Silent, once
from gpu.section import Bench
from tradebench import reference
from tradebench.published.expression import Expressed, expressed
from tradebench.result import Outcome
from tradebench.trial import Trial
from tradebench.worlds.meters import Part

CONFIG = "llama-random-1.14b"


class Moments(Silent):
    """Reads the allocator when the first forward pass ends, and when the first backward does."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.readings: dict[str, counters.Counters] = {}

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """The first part of each kind counts."""
        if name == "forward" and name not in self.readings:
            counters.reset(self.device)
        yield
        self.readings.setdefault(name, counters.read(self.device))

    def named(self) -> dict[str, int]:
        """Bytes by the name that a Result would give them."""
        return {
            "peak_allocated_bytes.after_forward": self.readings["forward"].allocated,
            "peak_allocated_bytes.forward_backward": self.readings["backward"].allocated_peak,
        }


def run(bench: Bench, name: str) -> None:
    """Run every variant once and write its rows beside what was published."""
    rows: list[dict[str, Any]] = []
    measured: dict[str, dict[str, int]] = {}
    for row in notebook():
        trial = shrunk(row.trial) if bench.tiny else row.trial
        if trial.id not in measured:
            counters.clear(bench.device)
            moments = Moments(bench.device)
            once(shortened(trial), bench.device, moments, Outcome())
            measured[trial.id] = moments.named()
        rows.append(
            {
                "row": row.row.id,
                "label": trial.label,
                "trial": trial.payload(),
                "measurement": row.reading.measurement,
                "measured": measured[trial.id][row.reading.measurement],
                "published": row.value,
            }
        )
    bench.write("published", {"schema": "tradebench.again/1", "rows": rows})


def notebook() -> list[Expressed]:
    """The rows of this model."""
    return [row for row in expressed() if row.trial.model.config == CONFIG]


def shortened(trial: Trial) -> Trial:
    """The same for one step, of which everything is read."""
    return trial.model_copy(update={"budget": trial.budget.model_copy(update={"steps": 1})})


def shrunk(trial: Trial) -> Trial:
    """The same techniques on the reference model's shape."""
    config = str(reference.CHECKPOINT)
    model = trial.model.model_copy(update={"config": config, "layers": 2})
    budget = trial.budget.model_copy(update={"sequence": 32})
    return trial.model_copy(update={"model": model, "budget": budget})
