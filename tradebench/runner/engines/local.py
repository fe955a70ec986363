"""The local engine: trials on this machine, forked from a warm template or fresh."""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tradebench.errors import UserError
from tradebench.result import Heartbeat
from tradebench.runner import process
from tradebench.runner.client import Template, TemplateError
from tradebench.runner.engines import Beat, Death, Ended, Event, Started
from tradebench.runner.engines.places import Place, Places, available_memory
from tradebench.runner.job import PRELOAD, Isolation, Job

# Reading a process's memory takes 0.02 ms; five times a second does not disturb what it measures.
_WATCH_SECONDS = 0.2

# A killed process can hang in the kernel (a dead file server, a driver); then it is given up.
_GRACE_SECONDS = 30.0

# A compiler that is killed leaves locks behind, for which later trials would wait for ever: none
# of them may lie in the user's own caches, nor where a trial that runs beside may wait for it.
_CACHES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "extensions",
}


@dataclass
class _Flight:
    """A job in the air: the supervisor's ends of its three pipes, and what has been heard."""

    job: Job
    place: Place
    lifeline: int
    report: int
    beats: int
    pids: dict[int, int] = field(default_factory=dict)  # by rank, as all that follow
    baselines: dict[int, int] = field(default_factory=dict)
    deaths: list[tuple[int, int]] = field(default_factory=list)  # ranks and their wait statuses
    left: tuple[int, ...] = ()
    held: int | None = None
    cancelled: float | None = None
    unread: dict[int, bytes] = field(default_factory=dict)


class LocalEngine:
    """Runs jobs on this machine, each under a guard that ends with this process.

    `isolation` is `fork`, `exec` or `auto`: fork where the warm template finds that safe, else
    exec. The reason for falling back is `fallback`. `variables` are set for all workers. As many
    trials run at once as find `places`, and memory beside what the largest one was seen to hold.

    Raises:
        UserError: forks were asked for and are not safe here.
    """

    queues = False

    def __init__(
        self,
        log: Path,
        *,
        isolation: Literal["auto", "fork", "exec"] = "auto",
        preload: Sequence[str] = PRELOAD,
        variables: Mapping[str, str] | None = None,
        places: Places | None = None,
    ) -> None:
        self.isolation: Isolation = "exec" if isolation == "exec" else "fork"
        self.fallback: str | None = None
        self._asked = isolation
        self._log = log
        self._preload = tuple(preload)
        self._variables = dict(variables or {})
        self._places = places or Places()
        self._flights: dict[str, _Flight] = {}
        self._most_held = 0
        self._memory_kills = 0
        self._selector = selectors.DefaultSelector()
        self._template = self._warm_up()

    @property
    def jobs(self) -> int:
        """How many trials may run at once."""
        return self._places.count

    def has_room(self, ranks: int) -> bool:
        """Whether places are free, and memory; the first trial is always let in."""
        if not self._flights:
            return True
        return self._places.room_for(ranks) and available_memory() > self._most_held

    def submit(self, job: Job) -> None:
        """Start a job; a template that has died is replaced."""
        if not self._flights:
            self._memory_kills = process.out_of_memory_kills()
        place = self._places.take(job.ranks)
        lifeline, to_trial = os.pipe()[::-1]
        report, from_guard = os.pipe()
        beats, from_trial = os.pipe()
        theirs = (to_trial, from_guard, from_trial)
        try:
            self._launch(job, place, theirs)
        finally:
            for pipe in theirs:
                os.close(pipe)
        flight = _Flight(job, place, lifeline, report, beats)
        self._flights[job.key] = flight
        for pipe in (report, beats):
            self._selector.register(pipe, selectors.EVENT_READ, flight)

    def poll(self, timeout: float) -> Sequence[Event]:
        """What guards and trials have said within `timeout` seconds."""
        events: list[Event] = []
        for key, _ in self._selector.select(min(timeout, _WATCH_SECONDS)):
            # A pipe of a flight that ended earlier in this loop is closed already.
            if key.data.job.key in self._flights:
                events += self._hear(key.data, key.fd)
        now = time.monotonic()
        for flight in tuple(self._flights.values()):
            self._watch_memory(flight)
            if flight.cancelled is not None and now - flight.cancelled > _GRACE_SECONDS:
                events.append(self._end(flight))
        return events

    def cancel(self, key: str) -> None:
        """Cut the lifeline: the guard kills the trial and all that it started."""
        flight = self._flights.get(key)
        if flight is not None and flight.cancelled is None:
            os.close(flight.lifeline)
            flight.cancelled = time.monotonic()

    def close(self) -> None:
        """End every trial, then the template."""
        for key in tuple(self._flights):
            self.cancel(key)
        while self._flights:
            self.poll(_WATCH_SECONDS)
        self._template.close()
        self._selector.close()

    def _warm_up(self) -> Template:
        """A template that is ready; one that only starts fresh interpreters where forks are off."""
        if self.isolation == "fork":
            template, refusal = self._warm_template()
            if refusal is None:
                return template
            template.close()
            if self._asked == "fork":
                raise UserError(f"--isolation fork is not safe here: {refusal}; use exec or auto")
            self.isolation, self.fallback = "exec", refusal
        template = Template(None, self._log, self._variables)
        template.wait()
        return template

    def _warm_template(self) -> tuple[Template, str | None]:
        """A template for forks, and why it must not fork; one death is forgiven."""
        for forgiven in (True, False):
            template = Template(self._preload, self._log, self._variables)
            try:
                return template, template.wait()
            except TemplateError as error:
                failure = f"the template failed: {error}"
                if not forgiven:
                    break
        return template, failure

    def _launch(self, job: Job, place: Place, pipes: tuple[int, int, int]) -> None:
        cache = job.run / "work" / "cache" / str(place.lane)
        for lock in (cache / "extensions").glob("**/lock"):
            # Left by a compiler that was killed: nothing else runs in this place.
            lock.unlink(missing_ok=True)
        variables = {name: str(cache / folder) for name, folder in _CACHES.items()}
        variables |= place.variables
        try:
            self._template.launch(job, self.isolation, variables, pipes)
        except TemplateError:
            self._template.close()
            self._template = self._warm_up()
            self._template.launch(job, self.isolation, variables, pipes)

    def _hear(self, flight: _Flight, pipe: int) -> Iterator[Event]:
        data = os.read(pipe, 65536)
        if not data:
            self._selector.unregister(pipe)
            if pipe == flight.report:
                # The trial's last heartbeats may still lie in its pipe.
                if flight.beats in self._selector.get_map():
                    os.set_blocking(flight.beats, False)
                    with suppress(BlockingIOError):
                        yield from self._hear(flight, flight.beats)
                yield self._end(flight)
            return
        *lines, rest = (flight.unread.get(pipe, b"") + data).split(b"\n")
        flight.unread[pipe] = rest
        for line in lines:
            if pipe == flight.beats:
                with suppress(ValueError, TypeError):  # a trial may write anything anywhere
                    yield self._beat(flight, json.loads(line))
                continue
            message = json.loads(line)
            if "pid" in message:
                flight.pids[message["rank"]] = message["pid"]
                yield Started(key=flight.job.key, **message)
            else:
                flight.deaths = [(rank, status) for rank, status in message["deaths"]]
                flight.left = tuple(message["ended"])

    def _beat(self, flight: _Flight, message: dict[str, Any]) -> Beat:
        rank = message.pop("rank", 0)
        if "baseline" in message:
            flight.baselines[rank] = message.pop("baseline")
        return Beat(key=flight.job.key, heartbeat=Heartbeat(**message))

    def _watch_memory(self, flight: _Flight) -> None:
        """End a trial of which a rank holds more than its cap by ways that no rlimit counts."""
        cap = flight.job.memory_cap
        if flight.cancelled is not None or (cap is None and self.jobs == 1):
            return
        total = 0
        for rank, baseline in flight.baselines.items():
            with suppress(OSError):
                held = process.memory("RssAnon", "RssShmem", pid=flight.pids.get(rank, 0))
                total += held
                if cap is not None and held - baseline > cap:
                    flight.held = held - baseline
                    self.cancel(flight.job.key)
        self._most_held = max(self._most_held, total)

    def _end(self, flight: _Flight) -> Ended:
        del self._flights[flight.job.key]
        self._places.give_back(flight.place)
        for pipe in (flight.report, flight.beats):
            with suppress(KeyError):
                self._selector.unregister(pipe)
            os.close(pipe)
        if flight.cancelled is None:
            os.close(flight.lifeline)
        key = flight.job.key
        if not flight.deaths:
            return Ended(key=key, cause="lost")
        if flight.held is not None:
            return Ended(key=key, cause="memory_cap", held_bytes=flight.held)
        deaths = [_death(rank, status) for rank, status in flight.deaths]
        first = next((death for death in deaths if death.signal or death.exit), deaths[0])
        own = [death for death in deaths if death.rank not in flight.left]
        cause: Literal["memory_kill"] | None = None
        if first.signal and self._were_for_memory(own):
            cause = "memory_kill"
        return Ended(
            key=key,
            exit=first.exit,
            signal=first.signal,
            cause=cause,
            deaths=() if flight.job.launcher else tuple(own),
            left=flight.left,
        )

    def _were_for_memory(self, deaths: Sequence[Death]) -> bool:
        """Whether the kernel took a trial of which these ranks have died, for want of memory.

        The kernel counts its kills, and does not name them: each explains one process that was
        killed, and where nothing else runs all of them are this trial's.
        """
        new = process.out_of_memory_kills() - self._memory_kills
        killed = sum(death.signal == signal.SIGKILL for death in deaths)
        self._memory_kills += min(new, max(1, killed)) if self._flights else new
        return new > 0


def _death(rank: int, status: int) -> Death:
    if os.WIFSIGNALED(status):
        return Death(rank=rank, signal=os.WTERMSIG(status))
    return Death(rank=rank, exit=os.WEXITSTATUS(status))
