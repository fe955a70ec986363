"""Apache Otava: a CSV file per point with a row per run, and the configuration that names them.

OTAVA_CONFIG=FOLDER/otava.yaml otava analyze bf16
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from tradebench.regression.sample import Point, of_runs
from tradebench.store import Run

TOLD = re.compile(
    r"peak_\w+_bytes|step_seconds|tokens_per_second|train_loss|accuracy\..+|answer_nll\..+"
)


def write(runs: Sequence[Run], out: Path) -> list[str]:
    """A folder of CSV files and `otava.yaml`; rows are runs, oldest first."""
    sample, _ = of_runs(runs)
    out.mkdir(parents=True, exist_ok=True)
    config = ["tests:"]
    written = []
    for point in sample.points:
        name = _name(point)
        metrics = [metric for metric in point.metrics if TOLD.fullmatch(metric)]
        file = out / f"{name}.csv"
        with file.open("w", encoding="utf-8", newline="") as rows:
            table = csv.writer(rows)
            table.writerow(["time", "commit", *map(_column, metrics)])
            for at, run in enumerate(sample.runs):
                environment = sample.environments.get(point.environments[at] or "", {})
                commit = environment.get("variables", {}).get("git_commit", run.run)
                values = [point.metrics[metric].values[at] for metric in metrics]
                if point.statuses[at] == "ok":
                    table.writerow([run.started, commit, *values])
        config += [
            f"  {name}:",
            "    type: csv",
            f"    file: {file.resolve()}",
            "    time_column: time",
            "    attributes: [commit]",
            "    metrics:",
        ]
        for metric in metrics:
            sign = 1 if point.metrics[metric].better == "more" else -1
            column = _column(metric)
            config.append(f"      {column}: {{column: {column}, direction: {sign}}}")
        config += ["    csv_options: {delimiter: ','}"]
        written.append(str(file))
    named = out / "otava.yaml"
    named.write_text("\n".join(config) + "\n", encoding="utf-8")
    return [str(named), *written]


def _name(point: Point) -> str:
    """A point's label as a file and a test may be named; its id tells equal ones apart."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", point.label).strip("-")
    return f"{words}-{point.trial[:4]}" if point.kind == "measured" else f"{words}-{point.kind}"


def _column(metric: str) -> str:
    return metric.replace(".", "_")
