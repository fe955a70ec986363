"""Which process is at work on something, as a file can say it, and whether that still lives.

A number alone does not name a process: another machine has the same numbers, and so has this one
after a while. With them stand the machine, told by what the kernel drew when it started and by the
name space of its process numbers, and the moment at which the process began.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

State = Literal["alive", "gone", "elsewhere"]

PROC = Path("/proc")
# Fields of /proc/<pid>/stat after the name: the state, and the clock ticks at which it began.
_STATE, _BEGAN = 0, 19
_ENDED = ("Z", "X")


@dataclass(frozen=True)
class Owner:
    """Process `pid` of `machine`, begun `began` clock ticks after that had started."""

    pid: int
    began: int
    machine: str

    @classmethod
    def here(cls) -> Owner | None:
        """This process; None where the kernel does not say enough of it."""
        fields, machine = _fields(os.getpid()), _machine()
        if fields is None or not machine:
            return None
        return cls(os.getpid(), int(fields[_BEGAN]), machine)

    @classmethod
    def read(cls, text: str) -> Owner | None:
        """What `text` wrote; None of what it did not."""
        try:
            said = json.loads(text)
            return cls(int(said["pid"]), int(said["began"]), str(said["machine"]))
        except (ValueError, KeyError, TypeError):
            return None

    @property
    def text(self) -> str:
        """Itself as JSON; it names no host."""
        return json.dumps(asdict(self))

    @property
    def state(self) -> State:
        """Whether it lives: of a process of another machine nobody here can tell."""
        if self.machine != _machine():
            return "elsewhere"
        fields = _fields(self.pid)
        if fields is None or fields[_STATE] in _ENDED or int(fields[_BEGAN]) != self.began:
            return "gone"
        return "alive"


def _fields(pid: int) -> list[str] | None:
    """What the kernel says of a process behind its name, which may hold blanks and brackets."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _machine() -> str:
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = (PROC / "self/ns/pid").readlink()
    except OSError:
        return ""
    return sha256(f"{boot} {space}".encode()).hexdigest()[:12]
