"""How names and values are spelled for people: GiB, ms and percent exist here and nowhere else."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from tradebench.result import CATEGORIES, PHASES

BYTES = frozenset({"B", "byte", "bytes"})
SECONDS = frozenset({"s", "second", "seconds"})
DIMENSIONLESS = frozenset({"", "1"})

TITLES = {
    "peak_tensor_bytes": "Peak tensor memory",
    "peak_allocated_bytes": "Peak allocated memory",
    "peak_reserved_bytes": "Peak reserved memory",
    "peak_process_bytes": "Peak process memory",
    "peak_host_bytes": "Peak offloaded to the host",
    "smallest_capacity_bytes": "Smallest capacity that fits",
    "step_seconds": "Step time",
    "load_seconds": "Load time",
    "needed_bytes": "Needed on each device",
    "device_seconds_per_token": "Cost of a million tokens",
    "tokens_per_second": "Throughput",
    "tokens_per_step": "Tokens per step",
    "padding_share": "Padding",
    "train_loss": "Training loss",
    "trainable_parameters": "Trainable parameters",
}
# What kinds of memory are, from the smallest to the one that must fit.
MEMORIES = {
    "peak_tensor_bytes": "tensor memory is what the tensors themselves hold",
    "peak_allocated_bytes": "allocated memory is that in PyTorch's blocks, rounded up",
    "peak_reserved_bytes": "reserved memory is what PyTorch's allocator keeps for them, gaps too",
    "peak_process_bytes": "process memory is all that the process takes",
    "needed_bytes": (
        "needed is all that the process takes of the device, CUDA's own part too, in its worst "
        "phase: that must fit"
    ),
}
PREFIXES = {
    "accuracy": "Accuracy on {}",
    "accuracy_before": "Accuracy on {} before training",
    "answer_nll": "Answer loss on {}",
    "answer_nll_before": "Answer loss on {} before training",
}
SHARES = ("padding_share",)  # in percent, as accuracies are
SI_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Scale:
    """Divide a stored value by `factor` to show it in `unit`."""

    factor: float
    unit: str

    def text(self, value: float, digits: int = 3) -> str:
        """Return the value with `digits` significant ones and its unit."""
        number = significant(value / self.factor, digits)
        if not self.unit:
            return number
        return f"{number} {self.unit}"

    @property
    def axis(self) -> str:
        """The unit in brackets, for an axis label."""
        return f" ({self.unit})" if self.unit else ""


def scale(name: str, values: Iterable[float], unit: str) -> Scale:
    """Return one scale for all `values` of a measurement, chosen by the largest of them."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if unit in BYTES:
        return _first(largest, ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")), "B")
    if name == "device_seconds_per_token":
        return Scale(3600 / 1e6, "device-hours")
    if unit in SECONDS:
        return _first(largest, ((1.0, "s"), (1e-3, "ms")), "µs", 1e-6)
    if unit in DIMENSIONLESS and (name.startswith("accuracy") or name in SHARES):
        return Scale(0.01, "%")
    plain = "tokens/s" if name == "tokens_per_second" else "" if unit in DIMENSIONLESS else unit
    found = next(((size, sign) for size, sign in SI_PREFIXES if largest >= 10 * size), None)
    if found is None:
        return Scale(1.0, plain)
    return Scale(found[0], f"{found[1]} {plain}".strip())


def show(name: str, value: float, unit: str, digits: int = 3) -> str:
    """Return one value in the unit that fits its own size."""
    return scale(name, [value], unit).text(value, digits)


def significant(value: float, digits: int = 3) -> str:
    """Return `digits` significant ones without an exponent, and every digit before the point."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    # Rounded first: 99.96 has its third digit before the point, as 100 has.
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:.{decimals}f}"


def title(name: str) -> str:
    """Return the measurement's name as a reader would say it."""
    stem, _, phase = name.rpartition(".")
    if stem in TITLES and phase in PHASES:
        return f"{TITLES[stem]} while {phase.replace('_', ' ')}"
    head, _, rest = name.partition(".")
    if rest and head in PREFIXES:
        return PREFIXES[head].format(rest.replace(".", ", "))
    category = name.removeprefix("peak_").removesuffix("_bytes")
    if category in CATEGORIES:
        return f"{category.capitalize()} at the peak"
    return TITLES.get(name, name.replace("_", " "))


def clean(text: str) -> str:
    """Return the text on one line, without control and direction-changing characters."""
    kept = (" " if char.isspace() else char for char in text if char.isspace() or not _hidden(char))
    return " ".join("".join(kept).split())


def shorten(text: str, length: int) -> str:
    """Return the text with its middle cut out where it is longer than `length`."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def count(number: int, noun: str) -> str:
    """Return `1 point`, `2 points`, `2 processes`."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{ending}"


def listed(words: Iterable[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    items = list(words)
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _hidden(char: str) -> bool:
    return unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn"}


def _first(
    largest: float, choices: tuple[tuple[float, str], ...], otherwise: str, factor: float = 1.0
) -> Scale:
    for size, unit in choices:
        if largest >= size:
            return Scale(size, unit)
    return Scale(factor, otherwise)
