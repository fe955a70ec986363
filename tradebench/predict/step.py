"""The time of a training step, from the operations that a record has of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from tradebench.devices import Device
from tradebench.devices.calibration import Calibration
from tradebench.predict.figures import spans
from tradebench.predict.record import Record
from tradebench.predict.recorder import CALL
from tradebench.predict.schedule import Segment, Step, step_seconds


def last_step(
    record: Record, device: Device, ranks: int, calibration: Calibration | None = None
) -> Step | None:
    """The record's last training step on a device; None where nothing was trained.

    The first step is no measure: it makes the optimizer's states.

    Raises:
        UserError: the calibration is another device's.
    """
    if not any(spans(record, "step")):
        return None
    return step_seconds(list(segments(record)), device, ranks=ranks, calibration=calibration)


def segments(record: Record) -> Iterator[Segment]:
    """The last step's operations, layer by layer in the order of issue.

    Layers that do the same one after the other are one segment that is repeated.
    """
    step = list(spans(record, "step"))[-1]
    calls = step.start + np.flatnonzero(record.events[step.start : step.end] >= CALL)
    layers = record.layers[calls]
    bounds = [0, *(np.flatnonzero(np.diff(layers)) + 1).tolist(), len(calls)]
    before: Counter[int] = Counter()
    times = 0
    for first, last in pairwise(bounds):
        numbers = Counter((record.events[calls[first:last]] - CALL).tolist())
        if numbers == before:
            times += 1
            continue
        if before:
            yield _segment(record, before, times)
        before, times = numbers, 1
    if before:
        yield _segment(record, before, times)


def _segment(record: Record, numbers: Counter[int], times: int) -> Segment:
    operations = {record.operations[number]: count for number, count in numbers.items()}
    return Segment(times=times, operations=operations)
