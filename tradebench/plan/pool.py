"""The pool: predictions made in a few processes that have imported torch once.

A process that dies takes the points that it was at with it and nothing else. Whatever was under way
is tried again, each family in a process of its own; if that dies as well, each of the family's
points in one, and a point with which that dies once more ends as `failed`.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from tradebench.knobs import family, knobs
from tradebench.runner.process import die_with_parent
from tradebench.target import Target
from tradebench.trial import Trial

# By name, because this side does not import the other.
PROGRAM = "tradebench.predict.point:predict"
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # A plan answers without a network: what is not on this machine is stood in for.
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
DEATH = "the process that made this prediction died: there may be too little memory on this machine"

Prediction = Mapping[str, Any]


def predict(
    trials: Sequence[Trial], target: Target, *, processes: int, program: str = PROGRAM
) -> Iterator[tuple[Trial, Prediction]]:
    """Every trial with its prediction, an Outcome as JSON, in the order in which they get ready."""
    families = families_of(trials)
    for group, answers in _ask(families, target, min(processes, len(families)), program):
        found = answers if answers is not None else _again(group, target, program)
        yield from zip(group, found, strict=True)


def families_of(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Trials that share records, together; the largest families first, so that none ends last."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(family(trial, *knobs(trial)), []).append(trial)
    return sorted(groups.values(), key=len, reverse=True)


def _ask(
    families: Sequence[Sequence[Trial]], target: Target, processes: int, program: str
) -> Iterator[tuple[Sequence[Trial], list[Prediction] | None]]:
    """Every family with its answers; None where the process died over it or beside it."""
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, _prepare, (VARIABLES, os.getpid())) as pool:
        running: dict[Future[list[Prediction]], Sequence[Trial]] = {
            pool.submit(
                _call, program, [trial.payload() for trial in group], target.model_dump()
            ): group
            for group in families
        }
        for done in as_completed(running):
            try:
                yield running[done], done.result()
            except BrokenProcessPool:
                yield running[done], None


def _again(group: Sequence[Trial], target: Target, program: str) -> list[Prediction]:
    """A family's answers from a process of its own, or else those of its points, each from one."""
    ((_, answers),) = _ask([group], target, 1, program)
    if answers is not None:
        return answers
    if len(group) == 1:
        return [{"status": "failed", "reason": DEATH}]
    return [answer for trial in group for answer in _again([trial], target, program)]


def _prepare(variables: Mapping[str, str], parent: int) -> None:
    """Make a process quiet, single-threaded and offline before it imports anything heavy.

    It lives no longer than whoever asks it, however that one ends.
    """
    die_with_parent(parent)
    os.environ.update(variables)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def _call(
    program: str, payloads: Sequence[Mapping[str, Any]], target: Mapping[str, Any]
) -> list[Prediction]:
    """Run `module:function` in this process."""
    module, _, name = program.partition(":")
    function: Callable[..., list[Prediction]] = getattr(importlib.import_module(module), name)
    return function(payloads, target)
