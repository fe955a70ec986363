"""The pool, with programs that a line of Python stands for: who shares a process, and who dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tradebench.plan import pool
from tradebench.plan.pool import DEATH, VARIABLES, families_of, predict
from tradebench.target import Target
from tradebench.trial import Trial

Settings = Mapping[str, Mapping[str, Any]]
Program = Callable[[str], str]

BF16: Settings = {"precision": {"method": "bf16"}}
RECOMPUTED: Settings = {"checkpointing": {"method": "full", "ratio": 1.0}}
TARGET = Target(device="h100-80gb")

# A function that answers for a family; whatever a test adds happens to every trial before that.
STUB = """\
import os, warnings
from pathlib import Path

JOURNAL = Path({journal!r})

def predict(payloads, target):
    answers = []
    for payload in payloads:
        rank = payload["settings"].get("adapters", {{}}).get("rank", 0)
        with JOURNAL.open("a") as journal:
            journal.write(f"{{os.getpid()}} {{rank}}\\n")
        {happens}
        answers.append({{"status": "ok", "rank": rank, "target": target, "pid": os.getpid()}})
    return answers
"""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Who was at which rank, line by line."""
    return tmp_path / "journal.txt"


@pytest.fixture
def program(tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Writes a program in which this happens, where processes find it; gives its name."""
    monkeypatch.syspath_prepend(tmp_path)  # which a new process takes over

    def write(happens: str) -> str:
        (tmp_path / "stub.py").write_text(STUB.format(journal=str(journal), happens=happens))
        return "stub:predict"

    return write


def lora(rank: int, **rest: Any) -> Trial:
    return trial_of({"adapters": {"method": "lora", "rank": rank}, **rest})


def trial_of(settings: Settings) -> Trial:
    return Trial.from_payload(
        {
            "model": {"name": "reference"},
            "budget": {"data": "random"},
            "evaluate": {},
            "settings": settings,
        }
    )


def asked(trials: Sequence[Trial], name: str, processes: int = 1) -> dict[str, Any]:
    """The answers by trial's label; none of them twice."""
    found = list(predict(trials, TARGET, processes=processes, program=name))

    assert sorted(trial.id for trial, _ in found) == sorted(trial.id for trial in trials)
    return {trial.label: answer for trial, answer in found}


# Families.


def test_trials_that_share_records_are_a_family() -> None:
    trials = [lora(4), trial_of(BF16), lora(4, **BF16), lora(8), trial_of({}), lora(16)]

    assert families_of(trials) == [
        [trials[0], trials[3], trials[5]],
        [trials[1]],
        [trials[2]],
        [trials[4]],
    ]


def test_every_trial_has_one_family_and_the_largest_come_first() -> None:
    trials = [
        lora(rank, **rest)
        for rest, ranks in ((BF16, 2), (RECOMPUTED, 5), ({}, 3))
        for rank in range(1, ranks + 1)
    ]
    found = families_of(trials)

    assert [len(family) for family in found] == [5, 3, 2]
    assert {trial.id for family in found for trial in family} == {trial.id for trial in trials}


# Where all goes well.


def test_a_family_is_asked_for_at_once_and_in_one_process(program: Program, journal: Path) -> None:
    trials = [lora(8), trial_of(BF16), lora(4)]
    found = asked(trials, program("pass"), processes=2)
    lines = [line.split() for line in journal.read_text().splitlines()]

    assert {label: answer["rank"] for label, answer in found.items()} == {
        "lora r8": 8,
        "bf16": 0,
        "lora r4": 4,
    }
    assert found["lora r8"]["pid"] == found["lora r4"]["pid"]
    assert [rank for _, rank in lines if rank != "0"] == ["8", "4"]
    assert found["bf16"]["target"] == TARGET.model_dump()


def test_processes_are_quiet_single_threaded_and_offline(
    program: Program, capfd: pytest.CaptureFixture[str]
) -> None:
    name = program(
        "import logging; warnings.warn('loud'); logging.warning('loud'); "
        f"rank = [os.environ.get(name) for name in {[*VARIABLES]}]"
    )
    found = asked([trial_of({})], name)

    assert found["baseline"]["rank"] == [*VARIABLES.values()]
    assert capfd.readouterr() == ("", "")


# Where it does not.


def test_a_process_that_dies_once_costs_nobody_an_answer(program: Program, journal: Path) -> None:
    """The first who meets rank 8 dies, and everybody who waits is left without a pool."""
    name = program("rank == 8 and JOURNAL.read_text().count(' 8') == 1 and os._exit(9)")
    trials = [lora(4), lora(8), trial_of(BF16), trial_of(RECOMPUTED)]
    found = asked(trials, name)

    assert {answer["status"] for answer in found.values()} == {"ok"}
    assert found["lora r4"]["pid"] == found["lora r8"]["pid"]
    assert len({answer["pid"] for answer in found.values()}) == 3


def test_a_point_that_always_kills_its_process_fails_alone(program: Program, journal: Path) -> None:
    name = program("rank == 8 and os.kill(os.getpid(), 9)")
    trials = [lora(4), lora(8), lora(16), trial_of(BF16)]
    found = asked(trials, name, processes=2)

    assert found.pop("lora r8") == {"status": "failed", "reason": DEATH}
    assert {answer["status"] for answer in found.values()} == {"ok"}
    # In the pool, in its family's own process, and in its own.
    assert journal.read_text().count(" 8") == 3


def test_an_error_of_the_program_itself_is_not_hidden(program: Program) -> None:
    name = program("raise LookupError('nobody has thought of this')")

    with pytest.raises(LookupError, match="nobody has thought of this"):
        asked([trial_of({})], name)


def test_the_programs_that_are_asked_exist() -> None:
    from tradebench.plan.validate import PROGRAMS
    from tradebench.predict import past, point, reading

    names = {pool.PROGRAM, *PROGRAMS.values()}

    assert names == {
        f"{module.__name__}:{module.predict.__name__}" for module in (point, reading, past)
    }


def test_no_process_outlives_the_one_that_asks(program: Program, journal: Path) -> None:
    name = program("import time; time.sleep(600)")
    asking = (
        "from tradebench.plan.pool import predict\n"
        "from tradebench.target import Target\n"
        "from tradebench.trial import Trial\n"
        f"trial = Trial.from_payload({lora(4).payload()!r})\n"
        "if __name__ == '__main__':\n"
        f"    list(predict([trial], Target(), processes=1, program={name!r}))\n"
    )
    script = journal.with_name("asking.py")
    script.write_text(asking)
    environment = {**os.environ, "PYTHONPATH": str(journal.parent)}
    with subprocess.Popen([sys.executable, str(script)], env=environment) as asked_by:
        worker = int(_within(60, lambda: journal.exists() and journal.read_text()).split()[0])
        asked_by.kill()

    _within(10, lambda: not psutil.pid_exists(worker) or _is_dead(worker))


def _is_dead(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _within(seconds: float, happened: Callable[[], Any]) -> Any:
    """What becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := happened():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")
