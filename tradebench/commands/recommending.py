"""`tradebench recommend`: one point of runs, or of a suite that is planned first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tradebench import store
from tradebench.commands import planning
from tradebench.errors import UserError
from tradebench.recommend.candidates import together
from tradebench.store import Run
from tradebench.suite import Suite

SUITES = (".yaml", ".yml")


def gather(
    sources: Sequence[str], results: Path, *, gpu: str | None, gpus: int | None, out: Path
) -> Run:
    """Everything that is known: runs as they are, and suites predicted for a device.

    Raises:
        UserError: a source is neither, or `gpu` is given and nothing is to be planned.
    """
    suites = [Path(each) for each in sources if _is_suite(each)]
    if gpu is not None and not suites:
        raise UserError(
            "--gpu is for a suite, which is planned for it; a run or a plan says itself what it "
            "was made on"
        )
    aim = planning.aim(gpu or planning.USUAL, None, None) if suites else None
    runs = [store.load(store.find(results, each)) for each in sources if not _is_suite(each)]
    for suite in suites:
        assert aim is not None, "there is a suite"
        directory, _ = planning.plan(
            Suite.load(suite), aim, out, gpus=gpus, fresh=False, processes=None
        )
        runs.append(store.load(directory))
    return together(runs)


def _is_suite(source: str) -> bool:
    return source.endswith(SUITES)
