"""Published rows as Results, so that they stand beside measured and predicted ones."""

from __future__ import annotations

from collections import Counter

from tradebench.published.expression import Expressed, expressed
from tradebench.result import Environment, Measurement, Result


def results() -> tuple[Result, ...]:
    """One Result of kind `published` per expressed row, in the order of expressed.yaml.

    A Result holds the one figure that its row has, named after the counter that was read, and has
    two keys of its own: `row` and `source`. Rows of one trial are told apart by `repeat`.
    """
    seen: Counter[str] = Counter()
    found = []
    for row in expressed():
        found.append(_result(row, seen[row.trial.id]))
        seen[row.trial.id] += 1
    return tuple(found)


def _result(found: Expressed, repeat: int) -> Result:
    payload = found.trial.payload()
    measurement = Measurement(value=found.value, unit=found.reading.unit)
    return Result(
        kind="published",
        suite="published",
        trial=found.trial.id,
        repeat=repeat,
        label=found.trial.label,
        model=payload["model"],
        budget=payload["budget"],
        evaluate=payload["evaluate"],
        settings=payload["settings"],
        status="ok",
        measurements={found.reading.measurement: measurement},
        warnings=found.differences,
        environment=Environment(hardware={"gpu": found.row.gpu, "gpus": found.gpus}),
        row=found.row.id,
        source=found.row.source,
    )
