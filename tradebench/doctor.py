"""What is wrong with this machine, this installation or the stored runs, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tradebench import environment, reference, store
from tradebench.result import Environment, Record


class Findings(Record):
    """Facts about the machine, and sentences that say what to mend."""

    facts: dict[str, str]
    problems: tuple[str, ...]


def examine(results: Path) -> Findings:
    """Look at everything; nothing is changed."""
    here = environment.capture()
    problems = (
        *_missing_libraries(here),
        *_changed_reference(),
        *(problem for run in store.runs(results) for problem in _run_problems(run)),
    )
    facts = {name: str(value) for name, value in here.software.items() if value is not None}
    facts |= {name: str(value) for name, value in here.hardware.items()}
    return Findings(facts=facts, problems=problems)


def _missing_libraries(here: Environment) -> Iterator[str]:
    for name, reason in here.missing.items():
        yield f"{name} could not be found out: {reason}"
    for name in ("torch", "transformers", "peft", "bitsandbytes", "lm_eval"):
        if here.software.get(name) is None:
            yield f"{name} is not installed: pip install tradebench brings it"


def _changed_reference() -> Iterator[str]:
    for name in reference.verify():
        yield f"the reference model's {name} is not the file that was shipped: install again"


def _run_problems(directory: Path) -> Iterator[str]:
    """Unreadable lines, and attempts that began and never ended."""
    for problem in store.load(directory).problems:
        yield f"{directory}: {problem}"
    open_attempts: set[tuple[str, int, int]] = set()
    for event in store.events(directory):
        key = (event.get("trial", ""), event.get("repeat", 0), event.get("attempt", 0))
        match event.get("event"):
            case "started":
                open_attempts.add(key)
            case "ended" | "adopted" | "interrupted":
                open_attempts.discard(key)
    if open_attempts:
        yield (
            f"{directory}: {len(open_attempts)} attempts began and never ended; "
            "run the suite again to finish them"
        )
