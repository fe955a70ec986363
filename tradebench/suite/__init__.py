"""Suites: YAML with a question at its head, read into frozen values and expanded into trials."""

from tradebench.suite.schema import suite_schema
from tradebench.suite.sections import RepeatRule, Resources
from tradebench.suite.shard import WHOLE, Shard
from tradebench.suite.suite import Suite
from tradebench.suite.units import parse_seconds, parse_size

__all__ = [
    "WHOLE",
    "RepeatRule",
    "Resources",
    "Shard",
    "Suite",
    "parse_seconds",
    "parse_size",
    "suite_schema",
]
