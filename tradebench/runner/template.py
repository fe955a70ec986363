"""The template: an interpreter that has imported everything and forks a guard per trial.

`python -m tradebench.runner.template FD PARENT JSON` serves the SOCK_SEQPACKET socket FD of the
process PARENT. JSON lists the modules to import, or is null for a template that only starts fresh
interpreters. It runs no tensor operation: a thread pool that exists before a fork hangs after it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tradebench.runner import guard, process

# pyarrow starts it at import, and a fork does well without it.
_HARMLESS_THREADS = frozenset({"jemalloc_bg_thd"})


def main(arguments: Sequence[str]) -> None:
    """Import, say whether forks are safe, then launch trials until the socket closes."""
    connection = socket.socket(fileno=int(arguments[0]))
    process.die_with_parent(int(arguments[1]))
    process.adopt_orphans()
    preload: list[str] | None = json.loads(arguments[2])
    refusal = None if preload is None else warm(preload)
    connection.send(json.dumps({"refusal": refusal}).encode())
    serve(connection)


def warm(modules: Sequence[str]) -> str | None:
    """Import `modules` and freeze them; the reason why this process must not fork, if any."""
    for name in ("tradebench.runner.worker", *modules):
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"{name} cannot be imported ({error})"
    from tradebench.techniques import catalogue

    catalogue()
    gc.collect()
    gc.freeze()
    return unsafe()


def unsafe(
    tasks: Path = Path("/proc/self/task"), maps: Path = Path("/proc/self/maps")
) -> str | None:
    """Why a fork of this process could hang or fail; None where it is safe."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "an import has initialised CUDA, which does not survive a fork"
    if "libcuda.so" in maps.read_text():
        return "an import has loaded the CUDA driver, which may not survive a fork"
    others = [task / "comm" for task in tasks.iterdir() if task.name != str(os.getpid())]
    names = {comm.read_text().strip() for comm in others}
    strangers = sorted(names - _HARMLESS_THREADS)
    return f"an import has started the thread {strangers[0]}" if strangers else None


def serve(connection: socket.socket) -> None:
    """Start a guard for every request; see that nothing is left of one that was killed."""
    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    guards: set[int] = set()
    while True:
        ready, _, _ = select.select([connection.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(guards)
        if connection.fileno() not in ready:
            continue
        request, pipes, _, _ = socket.recv_fds(connection, 65536, 3, socket.MSG_CMSG_CLOEXEC)
        if not request:
            _leave(guards)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for inherited in (connection.detach(), woken, wake):
                os.close(inherited)
            lifeline, report, beats = pipes
            guard.watch(
                guard.Launch(**json.loads(request), lifeline=lifeline, report=report, beats=beats)
            )
        guards.add(pid)
        for pipe in pipes:
            os.close(pipe)


def _leave(guards: set[int], patience: float = 1.0) -> None:
    """Wait for guards that are ending; a process inherits what they leave only once they have.

    Those of trials that still run are left to themselves.
    """
    until = time.monotonic() + patience
    while True:
        _reap(guards)
        if not process.children(os.getpid()) or time.monotonic() > until:
            return
        time.sleep(0.005)


def _reap(guards: set[int]) -> None:
    try:
        while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            guards.discard(ended)
    except ChildProcessError:
        return
    for child in process.children(os.getpid()):
        if child not in guards:
            # Its guard was killed, so that this process has inherited what the trial had started.
            for orphan in (child, *process.descendants(child)):
                process.kill(orphan)


if __name__ == "__main__":
    main(sys.argv[1:])
    # Nothing here needs the second and more that an interpreter with torch takes to be torn down.
    os._exit(0)
