"""The measurement names that objectives and limits may use."""

from __future__ import annotations

from collections.abc import Sequence

from tradebench.result import CATEGORIES, PHASES
from tradebench.suite.problems import choices, near, show, unknown

PEAKS = ("peak_tensor_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "peak_process_bytes")
OVERALL = (
    *PEAKS,
    *(f"peak_{category}_bytes" for category in CATEGORIES),
    "step_seconds",
    "tokens_per_second",
    "tokens_per_step",
    "padding_share",
    "train_loss",
    "trainable_parameters",
    "load_seconds",
)
MEASUREMENTS = (*OVERALL, *(f"{peak}.{phase}" for peak in PEAKS for phase in PHASES))
SCORES = ("accuracy", "accuracy_before", "answer_nll", "answer_nll_before")


def unmeasurable(name: object, tasks: Sequence[str]) -> str | None:
    """Why a suite with these tasks can never measure `name`; None where it can.

    The subtasks of a group carry its name (mmlu_anatomy is part of mmlu).
    """
    if not isinstance(name, str):
        return f"a measurement's name is text, not {show(name)}"
    if name in MEASUREMENTS:
        return None
    score, _, rest = name.partition(".")
    if not rest or score not in SCORES:
        if rest and (close := near(score, SCORES)):
            return unknown("measurement", name, [f"{close}.{rest}"])
        return unknown("measurement", name, MEASUREMENTS, [*OVERALL, "accuracy.<task>"])
    task = rest.partition(".")[0]
    if any(task == known or task.startswith(f"{known}_") for known in tasks):
        return None
    if not tasks:
        return f"{name} is never measured: evaluate has no tasks; add evaluate: {{tasks: [{task}]}}"
    close = near(task, tasks)
    hint = f"did you mean {close!r}?" if close else f"choose {choices(tasks)}"
    return f"{name} is never measured: {task!r} is not in evaluate.tasks; {hint}"
