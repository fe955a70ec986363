"""The supervisor: takes a sweep from trials to stored Results, whatever dies on the way.

Every point ends as a Result. An event is on disk before a worker starts and its Result before its
folder goes, so that killing this process at any moment loses nothing that was finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tradebench import environment, store
from tradebench.result import Environment, Heartbeat, Measurement, Phase, Result
from tradebench.runner import verdict
from tradebench.runner.ending import concluded
from tradebench.runner.engines import Beat, Ended, Engine, Event, Started
from tradebench.runner.engines.local import LocalEngine
from tradebench.runner.engines.places import Places, here
from tradebench.runner.history import History
from tradebench.runner.interruption import first_interruption
from tradebench.runner.job import SILENCE, Job
from tradebench.runner.observer import Observer, Summary
from tradebench.runner.options import Options
from tradebench.runner.verdict import RETRIES, Cause, Verdict
from tradebench.trial import Trial

_POLL_SECONDS = 0.2


def run(
    trials: Sequence[Trial],
    *,
    directory: Path,
    suite: str,
    repeats: int | Callable[[Trial], int] = 1,
    header: Mapping[str, Any] | None = None,
    options: Options | None = None,
    observer: Observer | None = None,
    refuse: Callable[[Trial], Sequence[str]] = Trial.conflicts,
    engine: Callable[[], Engine] | None = None,
) -> Summary:
    """Bring every point of a sweep to a Result in the run directory, which `create_run` has made.

    `repeats` is a number for all points or a function of the point. `header` replaces keys of the
    run's header, so that a resumed run says what the suite says now.

    Points that have a final Result there are not run again. A point for which `refuse` gives
    reasons ends as `skipped` with all of them. After Ctrl-C the running trial is ended, and what
    was finished before is kept. `engine` makes the engine, once there is something to run.

    Raises:
        UserError: another process is at work in the directory, or it is no run directory.
    """
    directory = directory.resolve()
    how = options or Options()
    files, said = store.files(directory, how.writer), store.header_file(directory, how.writer)
    watcher = observer or Observer()

    def local() -> Engine:
        log = files / "logs" / "template.txt"
        preload = (*how.preload, how.program.partition(":")[0])
        if places.count > 1:
            watcher.note(f"up to {places.count} trials run at once")
        if how.isolation != "exec":
            watcher.note("importing the libraries, once for all trials")
        made = LocalEngine(
            log,
            isolation=how.isolation,
            preload=preload,
            variables=how.variables,
            places=places,
        )
        if made.fallback is not None:
            watcher.note(f"every trial starts a fresh interpreter: {made.fallback}")
        return made

    places = (
        Places() if engine else here(how.jobs, how.threads or _default_threads(), how.variables)
    )
    with contextlib.ExitStack() as held:
        held.enter_context(store.lock(directory, how.writer))
        kept = {**store.load(directory).header, **(header or {})}
        if how.writer != store.LOCAL:
            kept["started"] = store.timestamp()
        store.write_json(said, {**kept, "ended": None})
        (files / "logs").mkdir(parents=True, exist_ok=True)
        history = History(directory, how.writer, anywhere=how.anywhere)
        results = held.enter_context(store.Appender(directory / f"trials.{how.writer}.jsonl"))
        events = held.enter_context(store.Appender(directory / f"events.{how.writer}.jsonl"))
        sweep = _Sweep(suite, how, watcher, history, results, events)
        times = repeats if callable(repeats) else lambda trial: repeats
        summary = sweep.run(trials, times, refuse, engine or local)
        ended = None if summary.interrupted else store.timestamp()
        store.write_json(said, {**kept, "ended": ended})
        watcher.run_finished(summary)
        return summary


@dataclass
class _Point:
    """One (trial, repeat) on its way to a Result."""

    trial: Trial
    repeat: int
    environment: Environment
    tries: Counter[Cause] = field(default_factory=Counter)


@dataclass
class _Flight:
    """A running attempt, and what is known of it if it never answers."""

    point: _Point
    job: Job
    began: float
    heard: float
    started: str
    placed: bool = False
    environment: Environment | None = None
    phase: Phase | None = None
    beat: Heartbeat | None = None
    ended_by: Verdict | None = None


class _Sweep:
    """The state of one call of `run`."""

    def __init__(
        self,
        suite: str,
        options: Options,
        observer: Observer,
        history: History,
        results: store.Appender,
        events: store.Appender,
    ) -> None:
        self._directory = history.directory
        self._files = history.files
        self._suite = suite
        self._options = options
        self._observer = observer
        self._results = results
        self._events = events
        self._history = history
        self._queue: deque[_Point] = deque()
        self._flights: dict[str, _Flight] = {}
        self._final: dict[tuple[str, int], Result] = {}
        self._started = self._reused = 0
        self._interrupted = False

    def run(
        self,
        trials: Sequence[Trial],
        repeats: Callable[[Trial], int],
        refuse: Callable[[Trial], Sequence[str]],
        engine: Callable[[], Engine],
    ) -> Summary:
        """Do all that is left to do."""
        for problem in self._history.problems:
            self._observer.note(problem)
        self._adopt()
        self._plan(trials, repeats, refuse)
        done = len(self._final)
        self._observer.run_started(points=done + len(self._queue), done=done)
        if self._queue:
            # Before there is an engine nothing runs, so that Ctrl-C may simply fall through.
            try:
                self._fly(engine())
            except KeyboardInterrupt:
                self._interrupted = True
        if not self._interrupted:
            shutil.rmtree(self._files / "work", ignore_errors=True)
        return Summary(
            directory=self._directory,
            results=tuple(self._final.values()),
            started=self._started,
            reused=self._reused,
            interrupted=self._interrupted,
        )

    def _adopt(self) -> None:
        """Store what a worker finished while an earlier supervisor was dying."""
        for result in self._history.orphans():
            self._keep(result)
            self._event("adopted", result.trial, result.repeat, result.attempt)
        self._history.clear_work()

    def _plan(
        self,
        trials: Sequence[Trial],
        repeats: Callable[[Trial], int],
        refuse: Callable[[Trial], Sequence[str]],
    ) -> None:
        """Queue every point that has no final Result yet.

        Repeat 0 of every trial comes before repeat 1 of any, so that drift hits all alike.
        """
        base = environment.capture()
        points = {trial.id: trial for trial in trials}
        known = {name: environment.of_trial(base, trial) for name, trial in points.items()}
        illegal = {name: reasons for name, trial in points.items() if (reasons := refuse(trial))}
        changed: Counter[str] = Counter()
        times = {name: repeats(trial) for name, trial in points.items()}
        for repeat in range(max(times.values(), default=0)):
            for name, trial in points.items():
                if repeat >= times[name]:
                    continue
                changed.update(self._history.changes(name, repeat, known[name]))
                result = self._history.final(name, repeat, known[name], self._options.retry)
                point = _Point(trial, repeat, known[name])
                if name in illegal:
                    if repeat == 0:
                        self._skip(point, " ".join(illegal[name]), result)
                elif result is not None and result.status != "skipped":
                    self._final[name, repeat] = result
                    self._reused += 1
                else:
                    self._queue.append(point)
        for what, count in sorted(changed.items()):
            self._observer.note(f"{count} stored points no longer count: {what} has changed")

    def _skip(self, point: _Point, reason: str, known: Result | None) -> None:
        name = point.trial.id
        if known is None or (known.status, known.reason) != ("skipped", reason):
            attempt = self._history.next_attempt(name, point.repeat)
            known = self._describe(point, attempt, status="skipped", reason=reason)
            self._keep(known)
        else:
            self._reused += 1
        self._final[name, point.repeat] = known

    def _fly(self, engine: Engine) -> None:
        """Run the queue on `engine`, and end with it."""
        try:
            with first_interruption() as interrupted:
                while (self._queue or self._flights) and not interrupted.is_set():
                    while self._queue and engine.has_room(self._queue[0].trial.ranks):
                        self._start(self._queue.popleft(), engine)
                    for event in engine.poll(_POLL_SECONDS):
                        self._react(event, engine)
                    self._enforce_limits(engine)
                self._interrupted = bool(self._queue or self._flights)
                for flight in self._flights.values():
                    point, attempt = flight.point, flight.job.attempt
                    self._event("interrupted", point.trial.id, point.repeat, attempt)
        finally:
            engine.close()

    def _start(self, point: _Point, engine: Engine) -> None:
        trial, options = point.trial, self._options
        job = Job(
            suite=self._suite,
            label=trial.label,
            trial=trial.payload(),
            repeat=point.repeat,
            attempt=self._history.next_attempt(trial.id, point.repeat),
            run=self._files,
            program=options.program,
            preload=options.preload,
            # One that takes every place has the machine to itself.
            environment=_shared(point.environment, engine.jobs if trial.ranks < engine.jobs else 1),
            ranks=trial.ranks,
            # Ranks on one machine share its cores.
            threads=options.threads or (1 if trial.ranks > 1 else _default_threads()),
            memory_cap=options.memory_cap,
            timeout=options.timeout,
            silence=options.silence,
            patience=options.patience,
            launcher=options.launcher if trial.ranks > 1 else (),
        )
        job.write()
        self._event("started", trial.id, job.repeat, job.attempt, isolation=engine.isolation)
        self._observer.trial_started(trial, job.repeat, job.attempt)
        now = time.monotonic()
        self._flights[job.key] = _Flight(point, job, now, now, store.timestamp())
        self._started += 1
        engine.submit(job)

    def _react(self, event: Event, engine: Engine) -> None:
        flight = self._flights[event.key]
        now = time.monotonic()
        match event:
            case Started(environment=elsewhere):
                flight.began = flight.heard = now
                flight.placed, flight.environment = True, elsewhere
            case Beat(heartbeat=heartbeat):
                flight.heard, flight.phase, flight.beat = now, heartbeat.phase, heartbeat
                self._observer.heartbeat(flight.point.trial, heartbeat)
            case Ended():
                self._finish(flight, event, engine)

    def _enforce_limits(self, engine: Engine) -> None:
        now = time.monotonic()
        for key, flight in self._flights.items():
            if flight.ended_by is not None or (engine.queues and not flight.placed):
                continue
            job, phase = flight.job, flight.phase
            silent = job.silence.get(phase or "start", SILENCE[phase or "start"])
            if job.timeout is not None and now - flight.began > job.timeout:
                flight.ended_by = verdict.of_timeout(job.timeout, phase)
            elif now - flight.heard > silent and not job.launcher:
                flight.ended_by = verdict.of_silence(silent, phase, flight.beat)
            else:
                continue
            engine.cancel(key)

    def _finish(self, flight: _Flight, ended: Ended, engine: Engine) -> None:
        """Turn the end of an attempt into a stored Result, and queue the point again if due."""
        point, job = flight.point, flight.job
        del self._flights[job.key]
        result, cause = concluded(job, ended), None
        if not isinstance(result, Result):
            found = flight.ended_by or verdict.of_end(ended, job, flight.phase, result)
            cause = found.cause
            result = self._obituary(flight, found, ended, engine)
            point.tries[cause] += 1
        again = cause is not None and point.tries[cause] <= RETRIES.get(cause, 0)
        self._keep(result)
        self._event(
            "ended",
            result.trial,
            result.repeat,
            result.attempt,
            status=result.status,
            cause=cause,
            exit=ended.exit,
            signal=ended.signal,
        )
        shutil.rmtree(job.directory)
        self._final[result.trial, result.repeat] = result
        if again:
            self._queue.appendleft(point)
        self._observer.trial_finished(result, again=again)

    def _obituary(self, flight: _Flight, found: Verdict, ended: Ended, engine: Engine) -> Result:
        """The Result of an attempt that left none."""
        measurements = {}
        if ended.held_bytes is not None:
            measurements["peak_process_bytes"] = Measurement(value=ended.held_bytes, unit="B")
        return self._describe(
            flight.point,
            flight.job.attempt,
            status=found.status,
            reason=environment.scrub(found.reason),
            phase=flight.phase,
            measurements=measurements,
            artifacts=flight.job.artifacts,
            environment=flight.environment or flight.job.environment,
            isolation=engine.isolation,
            started=flight.started,
            seconds=round(time.monotonic() - flight.began, 6),
        )

    def _describe(self, point: _Point, attempt: int, **fields: Any) -> Result:
        trial = point.trial
        return Result(
            suite=self._suite,
            trial=trial.id,
            repeat=point.repeat,
            attempt=attempt,
            label=trial.label,
            **trial.payload(),
            warnings=trial.cautions(),
            **{"environment": point.environment, **fields},
        )

    def _keep(self, result: Result) -> None:
        """Store a Result that names its files as seen from this writer's folder."""
        stored = store.placed(result, self._options.writer)
        self._results.append(stored.to_json())
        self._history.add(stored)

    def _event(self, name: str, trial: str, repeat: int, attempt: int, **more: Any) -> None:
        line = {"event": name, "time": store.timestamp(), "trial": trial, "repeat": repeat}
        self._events.append(json.dumps({**line, "attempt": attempt, **more}))


def _shared(surroundings: Environment, jobs: int) -> Environment:
    """The environment of a trial that does not have its machine to itself says so."""
    if jobs == 1:
        return surroundings
    variables = {**surroundings.variables, "jobs": str(jobs)}
    return surroundings.model_copy(update={"variables": variables})


def _default_threads() -> int:
    """One thread per physical core that this process may use."""
    import psutil

    usable = len(os.sched_getaffinity(0))
    return min(usable, psutil.cpu_count(logical=False) or usable)
