"""The few Linux calls that supervision rests on: death signals, subreapers, the process tree."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent, process `parent`, is gone."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the call above, which then would wait for ever.
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, however it detached itself."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def become_trial(guard: int, log: Path) -> None:
    """Turn this process, a fresh child of process `guard`, into a trial's process.

    Everything set here survives an exec, so it holds for both ways of isolation.
    """
    os.setsid()
    die_with_parent(guard)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        # Where memory runs out, the kernel should take the trial and not the supervisor.
        Path("/proc/self/oom_score_adj").write_text("1000")


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`, parents before children."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def children(pid: int) -> list[int]:
    """The children of every thread of `pid`; none where the process is gone."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def kill(pid: int) -> None:
    """Kill a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def end_descendants() -> dict[int, int]:
    """Kill and reap everything below this process, which must adopt orphans.

    Returns:
        The wait status of each process that was reaped.
    """
    ended: dict[int, int] = {}
    while True:
        for pid in descendants(os.getpid()):
            kill(pid)
        try:
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                ended[reaped[0]] = reaped[1]
        except ChildProcessError:
            return ended
        time.sleep(0.002)


def memory(*fields: str, pid: int | str = "self") -> int:
    """The sum, in bytes, of fields of /proc/<pid>/status such as VmData or RssAnon.

    Raises:
        OSError: the process is gone.
    """
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(line[1]) * 1024 for line in lines if line and line[0].rstrip(":") in fields)


def out_of_memory_kills(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes the kernel has killed for want of memory, where this process can see it.

    The count is that of this process's cgroup, or the whole machine's where cgroups tell nothing.
    """
    own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].partition("\n")[0]
    for source in (cgroup / own / "memory.events", Path("/proc/vmstat")):
        with contextlib.suppress(OSError):
            for line in source.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def reset_peak_memory() -> None:
    """Let this process's VmHWM start anew: a fork inherits its parent's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")
