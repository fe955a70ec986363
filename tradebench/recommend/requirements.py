"""Requirements as people write them: `peak_reserved_bytes<=24GiB`, `accuracy.gsm8k>=base-1pt`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tradebench.errors import UserError
from tradebench.plan.price import parse_count
from tradebench.recommend.candidates import HOUR, Figure
from tradebench.report.units import scale, significant, title
from tradebench.suite import parse_seconds, parse_size
from tradebench.suite.names import MEASUREMENTS
from tradebench.suite.problems import choices, near

Sign = Literal["<=", ">=", "<", ">"]
Verdict = Literal["yes", "possibly", "no"]

SIGNS: dict[str, Sign] = {"<=": "<=", ">=": ">=", "<": "<", ">": ">", "≤": "<=", "≥": ">="}
SHOWN: dict[Sign, str] = {"<=": "≤", ">=": "≥", "<": "<", ">": ">"}
TITLES = {"hours": "hours of training", "gpu_hours": "GPU-hours", "money": "price", "gpus": "GPUs"}
SHARES = ("accuracy", "accuracy_before", "padding_share")
EXAMPLE = "write one like peak_reserved_bytes<=24GiB, step_seconds<=300ms or accuracy.gsm8k>=70%"

_CONDITION = re.compile(r"([^<>=≤≥\s]+)\s*(<=|>=|≤|≥|<|>)\s*([^<>=≤≥]+)")
_BASE = re.compile(r"base(?:\s*([+-])\s*(\d+(?:\.\d+)?)\s*(%|pt|pts|points?))?")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(%|pt|pts|points?|)")
POINTS = ("pt", "pts", "point", "points")


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A bound on one quantity, in the store's units; `asked` says where it comes from.

    What a device has bounds a plan, whose own verdict counts there.
    """

    name: str
    sign: Sign
    bound: float
    asked: Literal["option", "suite", "device"] = "option"

    @property
    def at_most(self) -> bool:
        """Whether it bounds from above."""
        return self.sign in ("<=", "<")

    def judge(self, figure: Figure) -> Verdict:
        """Whether the whole of the figure's interval keeps to it, some of it, or nothing."""
        low, high = (figure.low, figure.high) if self.at_most else (-figure.high, -figure.low)
        bound = self.bound if self.at_most else -self.bound
        strict = self.sign in ("<", ">")
        if high < bound or (high == bound and not strict):
            return "yes"
        if low > bound or (low == bound and strict):
            return "no"
        return "possibly"

    def over(self, figure: Figure) -> float:
        """By how much the value misses the bound, as a share of the bound; 0 where it keeps to it.

        Accuracies miss by points.
        """
        gap = figure.value - self.bound if self.at_most else self.bound - figure.value
        share = 1.0 if self.name.partition(".")[0] in SHARES else abs(self.bound)
        return max(0.0, gap) / share if share else float(gap > 0)

    def text(self, unit: str) -> str:
        """The condition in words: `peak reserved memory ≤ 24 GiB`."""
        return f"{spoken(self.name)} {SHOWN[self.sign]} {amount(self.name, self.bound, unit, 4)}"


def spoken(name: str) -> str:
    """The quantity's name in the middle of a sentence."""
    said = TITLES.get(name) or title(name)
    return said if name in TITLES else said[:1].lower() + said[1:]


def amount(name: str, value: float, unit: str, digits: int = 3) -> str:
    """A value with its unit, in the scale that fits it; no more digits than it has."""
    if name == "gpus":
        return f"{value:g}"
    chosen = scale(name, [value], unit)
    number = significant(value / chosen.factor, digits)
    if digits > 3 and "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {chosen.unit}".strip()


def parse(
    text: str, names: Sequence[str], base: Callable[[str], float | None]
) -> tuple[Requirement, ...]:
    """The conditions of one `--under`, separated by commas.

    `names` are the quantities that there are, and `base` gives what the point without techniques
    has of one.

    Raises:
        UserError: one line that says what is wrong and what may have been meant.
    """
    return tuple(_condition(part.strip(), names, base) for part in text.split(","))


def _condition(text: str, names: Sequence[str], base: Callable[[str], float | None]) -> Requirement:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UserError(f"--under {text!r} is no condition: {EXAMPLE}")
    name, sign, value = match[1], SIGNS[match[2]], match[3].strip()
    check(name, names, "--under")
    try:
        return Requirement(name=name, sign=sign, bound=_bound(name, value, base))
    except ValueError as error:
        raise UserError(f"--under {text!r}: {error}") from None


def check(name: str, names: Sequence[str], option: str) -> None:
    """Refuse a name that no point has a value of.

    Raises:
        UserError: a sentence with what may have been meant, or what there is.
    """
    if name in names:
        return
    if name in MEASUREMENTS:
        stem = name.partition(".")[0]
        alike = [each for each in names if "." not in each and each.split("_")[0] == stem[:4]]
        there = choices(alike or names[:8]) if names else "nothing"
        raise UserError(f"{option}: no point has a value for {name}; there is {there}")
    if name in ("hours", "gpu_hours", "money"):
        missing = "--tokens and --price" if name == "money" else "--tokens"
        raise UserError(f"{option} {name} needs {missing}, and points whose step time is known")
    close = near(name, names) or near(name, [each.rpartition(".")[2] for each in names])
    if close is not None and close not in names:
        close = next(each for each in names if each.rpartition(".")[2] == close)
    hint = f"did you mean {close!r}?" if close else f"there is {choices(_plain(names))}"
    raise UserError(f"{option}: unknown measurement {name!r}; {hint}")


def _plain(names: Sequence[str]) -> list[str]:
    """The names that fit into a sentence: no phases and no parts of the peak."""
    return [
        name
        for name in names
        if name.startswith("accuracy.") or ("." not in name and name in MEASUREMENTS)
    ][:10]


def _bound(name: str, value: str, base: Callable[[str], float | None]) -> float:
    """A value in the store's unit.

    Raises:
        ValueError: a sentence that says what one looks like.
    """
    if value.startswith("base"):
        return _from_base(name, value, base(name))
    stem = name.partition(".")[0]
    if stem.endswith("_bytes"):
        return float(parse_size(value))
    if stem.endswith("_seconds"):
        return parse_seconds(value)
    if stem in SHARES:
        return _share(value)
    if stem in ("hours", "gpu_hours") and not _number(value):
        return parse_seconds(value) / HOUR
    if _number(value):
        return float(value)
    return float(parse_count(value))


def _share(value: str) -> float:
    match = _SHARE.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is no share; write 70%, 70pt or 0.7")
    number = float(match[1]) / (100 if match[2] else 1)
    if number > 1:
        hint = f"; write {match[1]}%" if not match[2] and number <= 100 else ""
        raise ValueError(f"a share is at most 1, or 100%{hint}")
    return number


def _from_base(name: str, value: str, start: float | None) -> float:
    match = _BASE.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is no bound; write base, base-1pt or base+20%")
    if start is None:
        raise ValueError(f"there is no point without techniques that has {name}")
    if match[1] is None:
        return start
    change = float(match[2]) / 100
    if match[3] == "%":
        change *= abs(start)
    elif name.partition(".")[0] not in SHARES:
        raise ValueError(f"{name} is not counted in points; write base{match[1]}{match[2]}%")
    return start + (change if match[1] == "+" else -change)


def _number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
