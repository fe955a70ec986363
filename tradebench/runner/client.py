"""The supervisor's side of a template process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import tradebench
from tradebench.runner.job import Isolation, Job

# Read when an interpreter or a library starts, so they must be set before the template does.
# One OpenMP thread: a pool that exists before a fork hangs after it; a worker sets its own number.
# NVML: asking whether CUDA is there must not initialise it.
_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


# What a template that serves needs to end is less; one that still imports does not listen.
_GRACE_SECONDS = 2.0


class TemplateError(Exception):
    """The template process died, or never became ready."""


class Template:
    """A template process, started at once and ready after `wait`.

    `preload` names the modules that it imports, or is None for one that only starts fresh
    interpreters. It dies with this process or thread, whichever ends first.
    """

    def __init__(
        self, preload: Sequence[str] | None, log: Path, variables: Mapping[str, str]
    ) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(preload)]
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(
                # -P: a torch.py in the user's working directory must not become torch.
                [sys.executable, "-P", "-m", "tradebench.runner.template", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                env=_environment(variables),
                # A terminal's Ctrl-C is for the supervisor, which then ends the trials itself.
                start_new_session=True,
            )
        self._log = log

    @property
    def pid(self) -> int:
        """The template's process id."""
        return self._process.pid

    def wait(self, timeout: float = 600.0) -> str | None:
        """Wait until the imports are done.

        Returns:
            Why the template must not fork, or None where it may.

        Raises:
            TemplateError: it died, or took longer than `timeout` seconds.
        """
        answer = b""
        try:
            until = time.monotonic() + timeout
            while not select.select([self._socket], [], [], 0.2)[0]:
                if time.monotonic() > until:
                    raise TemplateError(f"the imports took more than {timeout:.0f} s")
            answer = self._socket.recv(65536)
        finally:
            if not answer:
                self.close()
        if not answer:
            raise TemplateError(f"it died while importing; {self._log} says why")
        refusal: str | None = json.loads(answer)["refusal"]
        return refusal

    def launch(
        self,
        job: Job,
        isolation: Isolation,
        variables: Mapping[str, str],
        pipes: tuple[int, int, int],
    ) -> None:
        """Start a guard and its trial on the pipes lifeline (to read), report, beats (to write).

        `variables` are set for the trial after its fork, so they must not be among those that are
        read at an import.

        Raises:
            TemplateError: the template is dead.
        """
        request = {
            "directory": str(job.directory),
            "logs": [str(job.log_of(rank)) for rank in range(job.ranks)],
            "isolation": isolation,
            "patience": job.patience,
            "launcher": list(job.launcher),
            "variables": dict(variables),
        }
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], pipes)
        except OSError as error:
            raise TemplateError(f"it is gone: {error}") from error

    def close(self) -> None:
        """End the template; trials that run go on, each under its guard.

        It is given a moment to end what a guard that was killed has left to it.
        """
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        self._process.kill()
        self._process.wait()


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    environment = {**os.environ, **_VARIABLES, **variables}
    root = Path(tradebench.__file__).parents[1]
    if root.name not in ("site-packages", "dist-packages"):
        # Run from a checkout: the interpreter would not find this package by itself.
        path = [str(root), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return environment
