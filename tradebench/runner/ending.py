"""Endings: from what the workers of an attempt have left, and how they went, to one Result.

Of several ranks every one leaves a Result. Where all went well they are joined; where one did not,
the others fail as well, because it no longer answers, and the reason is the one that failed first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from tradebench.result import CATEGORIES, Result
from tradebench.runner.engines import Ended
from tradebench.runner.job import Job

# How a collective operation says that another rank is gone, or has not come.
_LEFT_ALONE = re.compile(
    r"connection (closed|reset) by peer|broken pipe|timed out|time ?out|remote process exited"
    r"|recvBytes|sendBytes|NCCL communicator was aborted|collective operation",
    re.IGNORECASE,
)
_OWN = ("B", "s", "1/s")  # the units of what every rank has of its own
_CATEGORIES = {f"peak_{category}_bytes" for category in CATEGORIES}


def key(result: Result) -> str:
    """Names the attempt that a Result tells of, as `Job.key` does."""
    return f"{result.trial}.{result.repeat}.{result.attempt}"


def left(job: Job) -> dict[int, Result]:
    """The Results that the workers of a job have left, whole and of this attempt, by rank."""
    found = {}
    for rank in range(job.ranks):
        try:
            result = Result.model_validate_json(job.result(rank).read_bytes())
        except (OSError, ValidationError):
            continue
        if key(result) == job.key:
            found[rank] = result
    return found


def adopted(folder: Path) -> Result | None:
    """The Result of an attempt whose supervisor has died, if its workers finished all the same."""
    try:
        # The run may lie elsewhere now than when the attempt began.
        job = Job.read(folder).model_copy(update={"run": folder.parents[1]})
    except (OSError, ValidationError):
        return None
    results = left(job)
    if len(results) < job.ranks:
        return None
    failed = [rank for rank, result in results.items() if result.status != "ok"]
    return join(results, blamed=_first(failed, results))


def concluded(job: Job, ended: Ended) -> Result | int | None:
    """The Result of an attempt; else the rank that left none, which made the others fail.

    None where there is neither: all ranks were ended, or lost.
    """
    results = left(job)
    if job.ranks == 1:
        return results.get(0)
    # Of what a launcher has started, only Results are known.
    failed = [rank for rank, result in results.items() if job.launcher and result.status != "ok"]
    for death in ended.deaths:
        if death.signal or death.rank not in results:
            return death.rank
        if results[death.rank].status != "ok":
            failed.append(death.rank)
    blamed = _first(failed, results)
    if blamed is None:
        return join(results) if len(results) == job.ranks else None
    if _left_alone(results[blamed]) and ended.left:
        return ended.left[0]  # the others failed because it did not come
    return join(results, blamed=blamed)


def join(results: Mapping[int, Result], blamed: int | None = None) -> Result:
    """One Result of those of all ranks: that of the first, or of the one to blame.

    What each rank has of its own, bytes and times, is kept for every one; the value is the worst.
    Categories are those of the rank with the highest peak, so that they sum to it.
    """
    base = results[blamed or 0]
    if blamed is not None:
        base = base.model_copy(update={"reason": f"rank {blamed}: {base.reason}"})
    if len(results) == 1:  # the others were ended before they could say anything
        return base
    ordered = [results[rank] for rank in sorted(results)]
    highest = max(ordered, key=lambda result: result.value("peak_tensor_bytes") or 0)
    measurements = {}
    for name, measurement in base.measurements.items():
        own = [result.measurements[name] for result in ordered if name in result.measurements]
        if measurement.unit not in _OWN or len(own) < len(ordered):
            measurements[name] = measurement
            continue
        pick = min if measurement.better == "more" else max
        worst = pick(own, key=lambda each: each.value)
        chosen = highest.measurements[name] if name in _CATEGORIES else worst
        ranks = tuple(each.value for each in own)
        measurements[name] = chosen.model_copy(update={"ranks": ranks})
    warnings = dict.fromkeys(warning for result in ordered for warning in result.warnings)
    seconds = max(
        (result.seconds for result in ordered if result.seconds is not None), default=None
    )
    return base.model_copy(
        update={
            "measurements": measurements,
            "warnings": tuple(warnings),
            "seconds": seconds,
        }
    )


def _first(failed: Sequence[int], results: Mapping[int, Result]) -> int | None:
    """The rank that failed first, by a fault of its own where there is one."""
    own = [rank for rank in failed if not _left_alone(results[rank])]
    return next(iter([*own, *failed]), None)


def _left_alone(result: Result) -> bool:
    """Whether a rank failed because another one did not answer."""
    return result.status == "failed" and bool(_LEFT_ALONE.search(result.reason or ""))
