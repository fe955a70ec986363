"""The rows for which the project answers with a median error, fixed before any was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ruamel.yaml import YAML

FILE = Path(__file__).parent / "promise.yaml"


@dataclass(frozen=True, kw_only=True)
class Promise:
    """The rule in one sentence, and why each row id is in or out.

    `at_most` is the promised median error by counter, as a share of the published figure.
    """

    rule: str
    at_most: Mapping[str, float]
    included: Mapping[str, str]
    excluded: Mapping[str, str]


@lru_cache
def promise() -> Promise:
    """What promise.yaml says."""
    said = YAML(typ="safe").load(FILE)

    def reasons(side: str) -> dict[str, str]:
        return {name: group["because"] for group in said[side] for name in group["rows"]}

    return Promise(
        rule=said["rule"].strip(),
        at_most=said["at_most"],
        included=reasons("included"),
        excluded=reasons("excluded"),
    )
