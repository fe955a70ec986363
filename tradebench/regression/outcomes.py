"""Per-item outcomes: how every test item was answered in every run, so that runs can be paired."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tradebench.errors import UserError
from tradebench.result import Kind, Result, canonical_json, digest
from tradebench.store import Run

SCHEMA = "tradebench.baseline.items/1"
FOLDERS = {"": "items_after", "_before": "items_before"}
DIGITS = 6  # significant ones that are kept of what is not a whole number


class Answers(BaseModel):
    """One metric of one run, item by item, in the order of the task; means over the repeats.

    `items` is a digest of which items these are, by their contents.
    """

    model_config = ConfigDict(frozen=True)

    items: str
    values: tuple[float, ...]


Address = tuple[str, str, str]
"""Run, trial and metric."""

Outcomes = Mapping[Address, Answers]


def of_runs(runs: Sequence[Run], keys: Iterable[tuple[Kind, str]]) -> dict[Address, Answers]:
    """The outcomes of the measured points named by `keys`, as far as the runs have kept them."""
    wanted = {trial for kind, trial in keys if kind == "measured"}
    found: dict[Address, Answers] = {}
    for run in runs:
        grouped: dict[str, list[Result]] = {}
        for result in run.results:
            if result.kind == "measured" and result.status == "ok" and result.trial in wanted:
                grouped.setdefault(result.trial, []).append(result)
        for trial, results in grouped.items():
            for metric, answers in _of_trial(run.directory, results).items():
                found[run.directory.resolve().name, trial, metric] = answers
    return found


def _of_trial(directory: Path, results: Sequence[Result]) -> dict[str, Answers]:
    per_repeat = [_of_result(directory, result) for result in results]
    found = {}
    for metric in set.intersection(*(set(each) for each in per_repeat)):
        answers = [each[metric] for each in per_repeat]
        if len({each.items for each in answers}) == 1:
            values = zip(*(each.values for each in answers), strict=True)
            found[metric] = Answers(
                items=answers[0].items,
                values=tuple(float(f"{fmean(each):.{DIGITS}g}") for each in values),
            )
    return found


def _of_result(directory: Path, result: Result) -> dict[str, Answers]:
    found: dict[str, Answers] = {}
    for suffix, artifact in FOLDERS.items():
        if artifact not in result.artifacts:
            continue
        tasks: dict[str, list[dict[str, Any]]] = {}
        for item in _read(directory / result.artifacts[artifact]):
            tasks.setdefault(item["task"], []).append(item)
        for task, items in tasks.items():
            named = digest(
                [[item["doc_id"], item["doc_hash"], item["target_hash"]] for item in items]
            )
            for metric, values in _by_metric(task, suffix, items, result).items():
                found[metric] = Answers(items=named, values=tuple(values))
    return found


def _read(file: Path) -> list[dict[str, Any]]:
    """The items of a file; none where the run was copied without it or it is torn."""
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except (OSError, EOFError, ValueError):
        return []


def _by_metric(
    task: str, suffix: str, items: Sequence[Mapping[str, Any]], result: Result
) -> dict[str, list[float]]:
    """Measurement to the values behind it; its mean has to be the measurement's."""
    names = dict.fromkeys(name for item in items for name in item["metrics"])
    columns = {
        name: [item["metrics"][name] for item in items]
        for name in names
        if all(name in item["metrics"] for item in items)
    }
    head = f"accuracy{suffix}.{task}"
    candidates = {
        **{f"{head}.{name}": [name] for name in columns},
        f"{head}.greedy": ["acc"],
        # The headline is one of them; lm-eval's own order says which, and the mean proves it.
        head: [name for name in columns if f"{head}.{name}" not in result.measurements],
    }
    found: dict[str, list[float]] = {}
    for measured, columns_of in candidates.items():
        for name in columns_of:
            if name in columns and _is_mean(columns[name], result.value(measured)):
                found.setdefault(measured, columns[name])
    likelihoods = [item["nll"] for item in items]
    if all(value is not None for value in likelihoods):
        found[f"answer_nll{suffix}.{task}"] = likelihoods
    return found


def _is_mean(values: Sequence[float], value: float | None) -> bool:
    return value is not None and math.isclose(fmean(values), value, rel_tol=1e-6, abs_tol=1e-9)


def dump(outcomes: Outcomes) -> bytes:
    """Compressed JSON lines, the same bytes for the same outcomes."""
    lines = [canonical_json({"schema": SCHEMA})]
    for (run, trial, metric), answers in sorted(outcomes.items()):
        values = [int(value) if value == int(value) else value for value in answers.values]
        lines.append(
            canonical_json(
                {
                    "run": run,
                    "trial": trial,
                    "metric": metric,
                    "items": answers.items,
                    "values": values,
                }
            )
        )
    # No time and no name of a file in the header.
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)


def load(file: Path) -> dict[Address, Answers]:
    """What `dump` wrote; nothing where there is no such file.

    Raises:
        UserError: the file holds something else.
    """
    if not file.exists():
        return {}
    try:
        head, *lines = gzip.decompress(file.read_bytes()).decode().splitlines()
        if json.loads(head) != {"schema": SCHEMA}:
            raise ValueError(f"its first line is not {SCHEMA}")
        rows = [json.loads(line) for line in lines]
        return {
            (row["run"], row["trial"], row["metric"]): Answers.model_validate(row) for row in rows
        }
    except (OSError, EOFError, ValueError, LookupError, TypeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{file} holds no per-item outcomes ({first}): write the baseline again"
        ) from None
