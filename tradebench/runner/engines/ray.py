"""The Ray engine: trials on the machines of a cluster, each under a guard of its own there.

A Ray task holds what the local engine is on one machine: a guard, the trial's process, the watch
over its memory. However a trial ends, the task returns, with the end and the files, so that ends
mean the same as on one machine. Ray itself retries nothing: what is lost with a node comes back as
lost, and the supervisor runs it again as a new attempt, ahead of what waits.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tradebench import environment
from tradebench.errors import UserError
from tradebench.runner.engines import Beat, Ended, Event, Started
from tradebench.runner.engines.local import LocalEngine
from tradebench.runner.job import Isolation, Job
from tradebench.trial import Trial

# A heartbeat crosses the network, and nobody reads more of them.
_BEAT_SECONDS = 0.5
_POLL_SECONDS = 0.2
# After so long a task that was asked to end is killed; its guard then ends the trial.
_GRACE_SECONDS = 10.0
_FOLDER = "tradebench-"
_CONNECT_SECONDS = 10.0


@dataclass
class _Flight:
    """A task of the cluster."""

    job: Job
    needs: Mapping[str, float]
    started: bool = False
    hopeless_since: float | None = None
    cancelled: float | None = None


class Cluster:
    """A connection to the Ray cluster that RAY_ADDRESS names, or that runs on this machine.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--engine ray needs Ray: pip install 'tradebench[ray]'") from None
        self.ray = ray
        try:
            # Ray itself would go on trying for minutes.
            host, _, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
            if host and port.isdigit():
                socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
            ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            said = next(iter(str(error).splitlines()), "")
            raise UserError(
                f"no Ray cluster answers ({said}): start one with `ray start --head`, or name its "
                "head in RAY_ADDRESS"
            ) from None

    def nodes(self) -> list[Mapping[str, float]]:
        """What each living node has in all: CPU, GPU, memory."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    @property
    def has_gpus(self) -> bool:
        """Whether some node has a GPU; then every trial asks for its own."""
        return any(node.get("GPU") for node in self.nodes())

    def close(self) -> None:
        """Leave the cluster, which ends whatever of this process still runs there."""
        self.ray.shutdown()


class Mailbox:
    """Where tasks leave what the supervisor should hear; an actor on the supervisor's machine."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        """Leave an event."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """All events since the last call."""
        events, self._events = self._events, []
        return events


class RayEngine:
    """Runs jobs on a cluster, which must have this tradebench installed on every node.

    Every trial starts a fresh interpreter. On GPUs it asks for one per process; elsewhere for so
    many cores per process that no more than `jobs` of them share the largest node. One that no node
    could hold even if it were idle is given up after `patience` seconds, in which a cluster may
    grow.
    """

    isolation: Isolation = "exec"
    queues = True

    def __init__(
        self,
        cluster: Cluster,
        *,
        variables: Mapping[str, str] | None = None,
        jobs: int = 1,
        patience: float = 120.0,
    ) -> None:
        self.jobs = jobs
        self._cluster, self._ray = cluster, cluster.ray
        self._variables = dict(variables or {})
        self._patience = patience
        self._flights: dict[Any, _Flight] = {}
        self._hopeless: set[tuple[tuple[str, float], ...]] = set()
        self._over: list[Event] = []
        here = self._ray.get_runtime_context().get_node_id()
        strategies = self._ray.util.scheduling_strategies
        self._mailbox = (
            self._ray.remote(num_cpus=0, max_restarts=-1)(Mailbox)
            .options(
                scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(here, soft=False)
            )
            .remote()
        )
        self._attempt = self._ray.remote(max_calls=1, max_retries=0)(attempt)

    def has_room(self, ranks: int) -> bool:
        """Whether few enough wait: what a dead node leaves behind should not queue for long."""
        waiting = sum(not flight.started for flight in self._flights.values())
        return waiting < max(2, len(self._cluster.nodes()))

    def submit(self, job: Job) -> None:
        """Ask the cluster to run a job."""
        needs = self._needs(job)
        task = self._attempt.options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            memory=needs.get("memory"),
            name=f"tradebench {job.key}",
        )
        reference = task.remote(job.model_dump_json(), self._variables, self._mailbox)
        self._flights[reference] = _Flight(job, needs)

    def poll(self, timeout: float) -> Sequence[Event]:
        """What tasks have said, and which have ended."""
        done: list[Any] = []
        if self._flights:
            done, _ = self._ray.wait(list(self._flights), num_returns=1, timeout=timeout)
        else:
            time.sleep(timeout)
        events = [event for event in self._heard() if self._knows(event)]
        for reference in done:
            events.append(self._end(reference))
        for reference, flight in tuple(self._flights.items()):
            if flight.cancelled is not None:
                if time.monotonic() - flight.cancelled > _GRACE_SECONDS:
                    self._ray.cancel(reference, force=True)
            elif not flight.started and self._given_up(flight):
                self._ray.cancel(reference, force=True)
                del self._flights[reference]
                events.append(
                    Ended(key=flight.job.key, cause="unplaced", said=self._refusal(flight))
                )
        return events

    def cancel(self, key: str) -> None:
        """Interrupt the task, which ends its trial as the local engine would."""
        for reference, flight in self._flights.items():
            if flight.job.key == key and flight.cancelled is None:
                flight.cancelled = time.monotonic()
                self._ray.cancel(reference, force=False)

    def close(self) -> None:
        """End every task, then leave the cluster."""
        for flight in tuple(self._flights.values()):
            self.cancel(flight.job.key)
        until = time.monotonic() + 3 * _GRACE_SECONDS
        while self._flights and time.monotonic() < until:
            self.poll(_POLL_SECONDS)
        self._ray.kill(self._mailbox)
        self._cluster.close()

    def _needs(self, job: Job) -> dict[str, float]:
        cores = float(job.ranks * job.threads)
        if self._cluster.has_gpus:
            return {"CPU": cores, "GPU": float(job.ranks)}
        # More than an equal share among one more: then `jobs` processes fit on a node, and no
        # others. A trial of more processes than that has the node to itself.
        largest = max((node.get("CPU", 0.0) for node in self._cluster.nodes()), default=0.0)
        share = float(largest // (self.jobs + 1) + 1)
        needs = {"CPU": max(cores, min(job.ranks * share, largest))}
        if job.memory_cap is not None:
            needs["memory"] = float(job.ranks * job.memory_cap)
        return needs

    def _given_up(self, flight: _Flight) -> bool:
        """Whether no node could hold this job, and none has come that can."""
        shape = tuple(sorted(flight.needs.items()))
        if any(_fits(flight.needs, node) for node in self._cluster.nodes()):
            flight.hopeless_since = None
            self._hopeless.discard(shape)
            return False
        now = time.monotonic()
        flight.hopeless_since = flight.hopeless_since or now
        if now - flight.hopeless_since > self._patience:
            self._hopeless.add(shape)
        # Its like has waited already.
        return shape in self._hopeless

    def _refusal(self, flight: _Flight) -> str:
        nodes = self._cluster.nodes()
        lacking = [
            f"{_quantity(name, amount)} on one node, and the largest has "
            f"{_quantity(name, max((node.get(name, 0.0) for node in nodes), default=0.0))}"
            for name, amount in flight.needs.items()
            if not any(node.get(name, 0.0) >= amount for node in nodes)
        ]
        wanted = " and ".join(lacking) or "more than any one node has together"
        return f"it asks for {wanted}; the cluster did not grow within {self._patience:g} s"

    def _heard(self) -> list[Event]:
        with contextlib.suppress(self._ray.exceptions.RayError):
            events: list[Event] = self._ray.get(self._mailbox.take.remote(), timeout=10)
            return events
        return []

    def _knows(self, event: Event) -> bool:
        for flight in self._flights.values():
            if flight.job.key == event.key:
                flight.started = True
                return True
        return False

    def _end(self, reference: Any) -> Ended:
        flight = self._flights.pop(reference)
        key, errors = flight.job.key, self._ray.exceptions
        try:
            ended, files = self._ray.get(reference)
        except errors.TaskCancelledError:
            return Ended(key=key, cause="lost", said="its task was cancelled")
        except errors.OutOfMemoryError:
            said = "Ray killed it, because its node ran out of memory"
            return Ended(key=key, signal=int(signal.SIGKILL), cause="memory_kill", said=said)
        except errors.RayTaskError as error:
            return Ended(
                key=key, cause="broken", said=f"its node could not run it: {error.cause!r}"
            )
        except errors.RayError:
            return Ended(key=key, cause="lost", said="its node or its Ray worker is gone")
        _lay_down(files, flight.job.run)
        made: Ended = ended
        return made


def attempt(
    text: str, variables: Mapping[str, str], mailbox: Any
) -> tuple[Ended, Mapping[str, bytes]]:
    """Make an attempt on the node where this runs; a Ray task.

    Returns:
        How it ended, and the files that it left, by their paths from the job's `run`.
    """
    import ray

    def tell(event: Event) -> None:
        # A mailbox that is away for a moment costs a line of progress, and no trial.
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(mailbox.put.remote(event), timeout=10)

    _clear_folders()
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
    try:
        job = _moved(Job.model_validate_json(text), folder)
        engine = LocalEngine(
            folder / "logs" / "template.txt", isolation="exec", variables=variables
        )
        try:
            ended = _watch(engine, job, tell)
        finally:
            engine.close()
        return ended, _collect(job)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _moved(job: Job, folder: Path) -> Job:
    """The job as it is on this node: in a folder of its own, in this machine's environment."""
    here = environment.of_trial(environment.capture(), Trial.from_payload(job.trial))
    kept = {name: value for name, value in job.environment.variables.items() if name == "jobs"}
    here = here.model_copy(update={"variables": {**here.variables, **kept}})
    moved = job.model_copy(update={"run": folder, "environment": here})
    (folder / "logs").mkdir()
    moved.write()
    return moved


def _watch(engine: LocalEngine, job: Job, tell: Any) -> Ended:
    engine.submit(job)
    told, phase = 0.0, None
    last: Beat | None = None
    while True:
        for event in engine.poll(_POLL_SECONDS):
            match event:
                case Started():
                    tell(replace(event, environment=job.environment))
                case Beat():
                    last = event
                case Ended():
                    if last is not None:
                        tell(last)
                    return event
        now = time.monotonic()
        if last is not None and (last.heartbeat.phase != phase or now - told > _BEAT_SECONDS):
            tell(last)
            told, phase, last = now, last.heartbeat.phase, None


def _collect(job: Job) -> dict[str, bytes]:
    """What the attempt left: its Result, its logs and what lies beside, without caches."""
    patterns = (f"logs/{job.key}*", "items/*", f"work/{job.key}/result*.json")
    kept = [file for pattern in patterns for file in job.run.glob(pattern)]
    return {file.relative_to(job.run).as_posix(): file.read_bytes() for file in kept}


def _lay_down(files: Mapping[str, bytes], run: Path) -> None:
    """Write what a node has sent, in its order: the Result last."""
    for name, content in files.items():
        target = run / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _clear_folders() -> None:
    """Remove what tasks left here that were killed with all they had."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}[0-9]*-*"):
        owner = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _fits(needs: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in needs.items())


def _quantity(name: str, amount: float) -> str:
    """An amount of a resource in words: `8 GPUs`."""
    if name == "memory":
        return f"{amount / 2**30:.1f} GiB of memory"
    return f"{amount:g} {name}{'' if amount == 1 else 's'}"
