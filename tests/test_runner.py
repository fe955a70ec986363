from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from tradebench import environment, store
from tradebench.errors import UserError
from tradebench.result import (
    DivergedError,
    Environment,
    Heartbeat,
    Measurement,
    Outcome,
    Phase,
    Result,
)
from tradebench.runner import process, template, verdict, worker
from tradebench.runner.ending import key
from tradebench.runner.engines import Beat, Ended, Event, Started
from tradebench.runner.history import History
from tradebench.runner.interruption import first_interruption
from tradebench.runner.job import Isolation, Job
from tradebench.runner.observer import Observer, Summary
from tradebench.runner.options import Options
from tradebench.runner.progress import Progress
from tradebench.runner.supervisor import run
from tradebench.techniques import catalogue
from tradebench.trial import Model, Trial

SIGKILL = int(signal.SIGKILL)


class ScriptedEngine:
    """Ends each job as a script says, without any process; a job without script ends well."""

    jobs = 1
    queues = False
    isolation: Isolation = "exec"

    def __init__(self, **ends: list[Ended]) -> None:
        self.ends = ends
        self.made: list[Job] = []
        self.closed = False
        self._flying: list[Job] = []

    def has_room(self, ranks: int) -> bool:
        return not self._flying

    def submit(self, job: Job) -> None:
        self.made.append(job)
        self._flying.append(job)

    def poll(self, timeout: float) -> Sequence[Event]:
        job = self._flying.pop()
        script = self.ends.get(job.trial["model"]["name"], [])
        beat = Heartbeat(phase="train", step=2, steps=9)
        before: list[Event] = [Started(key=job.key, pid=1), Beat(key=job.key, heartbeat=beat)]
        if script:
            end = script.pop(0)
            fields = {name: getattr(end, name) for name in ("exit", "signal", "cause")}
            return [*before, Ended(key=job.key, **fields)]
        finish(job)
        return [*before, Ended(key=job.key, exit=0)]

    def cancel(self, key: str) -> None:
        raise AssertionError("nothing here needs to be cancelled")

    def close(self) -> None:
        self.closed = True

    @property
    def names(self) -> list[str]:
        return [f"{job.trial['model']['name']} {job.repeat}" for job in self.made]


def finish(job: Job) -> None:
    """Leave the Result that a worker would leave."""
    made = Result(
        suite=job.suite,
        trial=Trial.from_payload(job.trial).id,
        repeat=job.repeat,
        attempt=job.attempt,
        label="baseline",
        **job.trial,
        status="ok",
        environment=job.environment,
    )
    store.write_text(job.directory / "result.json", made.to_json())


def trial(name: str, *techniques: str) -> Trial:
    return Trial(
        model=Model.model_validate({"name": name}),
        techniques=tuple(
            catalogue()[slot][method].model_validate({"method": method})
            for slot, method in (technique.split(".") for technique in techniques)
        ),
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return store.create_run(tmp_path, "scripted", {})


@pytest.fixture
def sweep(directory: Path) -> Callable[..., Summary]:
    """Runs trials by name on an engine in the test's run directory."""

    def go(engine: ScriptedEngine, *names: str | Trial, **more: object) -> Summary:
        trials = [trial(name) if isinstance(name, str) else name for name in names]
        made: Callable[..., Summary] = run
        return made(trials, directory=directory, suite="scripted", engine=lambda: engine, **more)

    return go


Go = Callable[..., Summary]


class Ear(Observer):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)


def test_importing_the_runner_loads_no_heavy_library() -> None:
    program = (
        "import sys, tradebench.runner.supervisor, tradebench.runner.progress\n"
        "import tradebench.runner.worker, tradebench.runner.template\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    root = str(Path(__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


def test_repeats_go_round_robin_over_the_points(sweep: Go) -> None:
    engine = ScriptedEngine()
    summary = sweep(engine, "a", "b", "a", repeats=2)

    assert engine.names == ["a 0", "b 0", "a 1", "b 1"]
    assert [result.status for result in summary.results] == ["ok"] * 4
    assert engine.closed


def test_a_second_run_of_a_finished_suite_starts_no_worker(sweep: Go, directory: Path) -> None:
    def nothing() -> ScriptedEngine:
        raise AssertionError("there is nothing to run")

    sweep(ScriptedEngine(), "a", "b", repeats=2)
    lines = (directory / "trials.local.jsonl").read_bytes()
    trials = [trial("a"), trial("b")]
    summary = run(trials, directory=directory, suite="s", repeats=2, engine=nothing)

    assert (summary.started, summary.reused, len(summary.results)) == (0, 4, 4)
    assert (directory / "trials.local.jsonl").read_bytes() == lines
    assert store.load(directory).header["ended"] is not None


def test_illegal_points_are_skipped_once_with_every_reason(sweep: Go, directory: Path) -> None:
    def refuse(point: Trial) -> tuple[str, ...]:
        return ("No a.", "Nor b.") if point.model.name == "bad" else ()

    for _ in range(2):
        engine = ScriptedEngine()
        summary = sweep(engine, "bad", "good", repeats=2, refuse=refuse)

    assert engine.made == []
    (skipped,) = [result for result in summary.results if result.status == "skipped"]
    assert (skipped.reason, skipped.phase, skipped.isolation) == ("No a. Nor b.", None, "none")
    assert len(store.load(directory).attempts) == 3
    assert summary.reused == 3


def test_a_point_that_has_become_legal_runs(sweep: Go) -> None:
    sweep(ScriptedEngine(), "a", refuse=lambda _: ["No."])
    engine = ScriptedEngine()
    summary = sweep(engine, "a", refuse=lambda _: [])

    assert engine.names == ["a 0"]
    assert [result.status for result in summary.results] == ["ok"]


def test_other_libraries_make_results_stale(sweep: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(ScriptedEngine(), "a")
    known = environment.PACKAGES
    monkeypatch.setattr(environment, "PACKAGES", (*known, "pytest"))
    engine, ear = ScriptedEngine(), Ear()
    sweep(engine, "a", observer=ear)

    assert [job.attempt for job in engine.made] == [1]
    assert ear.heard == ["1 stored points no longer count: software.pytest has changed"]


def test_a_changed_technique_makes_only_its_own_results_stale(
    sweep: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = (trial("a"), trial("a", "adapters.lora"))
    sweep(ScriptedEngine(), *points)
    kind = catalogue()["adapters"]["lora"]
    monkeypatch.setattr(kind, "version", classmethod(lambda _: "0" * 12))
    engine = ScriptedEngine()
    sweep(engine, *points)

    assert [job.trial["settings"] for job in engine.made] == [points[1].settings]


@pytest.mark.parametrize(
    ("end", "status", "attempts"),
    [
        (Ended(key="", signal=SIGKILL), "killed", 3),
        (Ended(key="", cause="lost"), "killed", 4),
        (Ended(key="", signal=int(signal.SIGSEGV)), "failed", 2),
        (Ended(key="", exit=0), "failed", 2),
        (Ended(key="", signal=SIGKILL, cause="memory_kill"), "oom", 1),
        (Ended(key="", cause="memory_cap"), "oom", 1),
    ],
)
def test_only_what_may_end_otherwise_is_tried_again(
    sweep: Go, directory: Path, end: Ended, status: str, attempts: int
) -> None:
    engine = ScriptedEngine(a=[end] * 9)
    summary = sweep(engine, "a", "b")

    assert [result.status for result in summary.results] == [status, "ok"]
    assert [job.attempt for job in engine.made] == [*range(attempts), 0]
    phases = {result.phase for result in store.load(directory).attempts}
    assert phases == {"train", None}


@pytest.mark.parametrize(
    ("end", "again"),
    [
        (Ended(key="", signal=SIGKILL), True),
        (Ended(key="", signal=int(signal.SIGSEGV)), False),
        (Ended(key="", signal=SIGKILL, cause="memory_kill"), False),
    ],
)
def test_a_later_run_repeats_only_what_was_killed(sweep: Go, end: Ended, again: bool) -> None:
    sweep(ScriptedEngine(a=[end] * 9), "a")
    engine = ScriptedEngine()
    sweep(engine, "a")

    assert bool(engine.made) == again


def test_retry_names_the_statuses_that_run_again(sweep: Go) -> None:
    sweep(ScriptedEngine(a=[Ended(key="", exit=1)] * 2), "a", "b")
    engine = ScriptedEngine()
    sweep(engine, "a", "b", options=Options(retry=frozenset({"failed"})))

    assert [(job.trial["model"]["name"], job.attempt) for job in engine.made] == [("a", 2)]


def test_started_is_on_disk_before_a_worker_starts(sweep: Go, directory: Path) -> None:
    class Suspicious(ScriptedEngine):
        def submit(self, job: Job) -> None:
            last = store.events(directory)[-1]
            assert (last["event"], last["trial"]) == ("started", trial("a").id)
            assert Job.read(job.directory) == job
            super().submit(job)

    assert sweep(Suspicious(), "a").started == 1


def test_a_result_is_stored_before_its_folder_goes(
    sweep: Go, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, seen = store.Appender.append, []

    def watched(self: store.Appender, line: str) -> None:
        if self.path.name.startswith("trials"):
            seen.append(len(list(directory.glob("work/*/result.json"))))
        append(self, line)

    monkeypatch.setattr(store.Appender, "append", watched)
    sweep(ScriptedEngine(), "a", "b")

    assert seen == [1, 1]
    assert not (directory / "work").exists()


def test_what_a_worker_finished_while_nobody_watched_is_adopted(sweep: Go, directory: Path) -> None:
    point = trial("a")
    base = environment.of_trial(environment.capture(), point)
    job = Job(
        suite="s",
        label="as the suite says",
        trial=point.payload(),
        repeat=0,
        attempt=4,
        run=directory,
        environment=base,
    )
    job.write()
    finish(job)
    half = job.model_copy(update={"repeat": 1})
    half.__dict__.pop("key", None)
    half.write()
    (half.directory / "result.json").write_text('{"schema"')
    engine = ScriptedEngine()
    summary = sweep(engine, "a", repeats=2)

    assert engine.names == ["a 1"]
    assert [result.attempt for result in summary.results] == [4, 0]
    assert not job.directory.exists()


def test_a_worker_calls_a_point_what_its_suite_calls_it(directory: Path) -> None:
    """Its budget may be another than the suite's, which a payload cannot say."""
    point = trial("a").model_copy(update={"varied": ("sequence",)})
    job = Job(
        suite="s", label=point.label, trial=point.payload(), repeat=0, attempt=0, run=directory
    )
    made = worker.build(job, Trial.from_payload(job.trial), Outcome(), status="ok", reason=None)

    assert made.label == "sequence 512"
    assert made.trial == point.id


def test_an_attempt_that_was_started_and_never_ended_keeps_its_number(directory: Path) -> None:
    line = {"event": "started", "trial": "t", "repeat": 0, "attempt": 2}
    (directory / "events.local.jsonl").write_text(json.dumps(line) + "\n")
    history = History(directory)

    assert [history.next_attempt("t", 0), history.next_attempt("t", 0)] == [3, 4]
    assert history.next_attempt("t", 1) == 0


def test_ctrl_c_while_the_engine_starts_ends_the_sweep(directory: Path) -> None:
    def impatient() -> ScriptedEngine:
        raise KeyboardInterrupt

    summary = run([trial("a")], directory=directory, suite="s", engine=impatient)

    assert (summary.interrupted, summary.results) == (True, ())


def test_two_sweeps_in_one_directory_are_refused(sweep: Go, directory: Path) -> None:
    with store.lock(directory), pytest.raises(UserError, match="another tradebench is at work"):
        sweep(ScriptedEngine(), "a")


def test_hardware_does_not_matter_where_a_cluster_chooses_it(
    sweep: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(ScriptedEngine(), "a")
    capture = environment.capture

    def elsewhere() -> Environment:
        here = capture()
        return here.model_copy(update={"hardware": {**here.hardware, "cpu": "another"}})

    monkeypatch.setattr(environment, "capture", elsewhere)
    on_cluster = sweep(ScriptedEngine(), "a", options=Options(anywhere=True))
    here = sweep(ScriptedEngine(), "a")

    assert (on_cluster.started, here.started) == (0, 1)


def test_two_writers_share_a_directory_and_know_of_each_other(sweep: Go, directory: Path) -> None:
    sweep(ScriptedEngine(), "a", options=Options(writer="1of2"))
    engine = ScriptedEngine()
    with store.lock(directory, "1of2"):
        summary = sweep(engine, "a", "b", options=Options(writer="2of2"))

    assert (engine.names, summary.reused, len(summary.results)) == (["b 0"], 1, 2)
    loaded = store.load(directory)
    assert {name: len(kept) for name, kept in loaded.writers.items()} == {"1of2": 1, "2of2": 1}
    assert loaded.header["ended"] is not None
    assert {job.run for job in engine.made} == {directory / "2of2"}
    assert not list(directory.glob("*/work"))


def test_a_writer_leaves_alone_what_another_is_about(sweep: Go, directory: Path) -> None:
    theirs = Job(
        suite="s", label="l", trial=trial("a").payload(), repeat=0, attempt=0, run=directory / "one"
    )
    theirs.write()
    finish(theirs)
    sweep(ScriptedEngine(), "b", options=Options(writer="two"))
    adopted = sweep(ScriptedEngine(), options=Options(writer="one"))

    assert adopted.started == 0
    assert [result.label for result in store.load(directory).writers["one"]] == ["baseline"]


def test_a_finished_attempt_is_kept_wherever_the_run_lies_now(
    sweep: Go, directory: Path, tmp_path: Path
) -> None:
    job = Job(
        suite="s",
        label="baseline",
        trial=trial("a").payload(),
        repeat=0,
        attempt=0,
        run=tmp_path / "before",
    )
    job.write()
    finish(job)
    (directory / "work").mkdir(exist_ok=True)
    job.directory.rename(directory / "work" / job.key)
    sweep(ScriptedEngine())

    assert [key(result) for result in store.load(directory).results] == [job.key]


def test_what_lies_beside_a_result_is_named_from_the_run(sweep: Go, directory: Path) -> None:
    engine = ScriptedEngine(a=[Ended(key="", signal=SIGKILL)] * 9)
    sweep(engine, "a", options=Options(writer="one"))

    logs = [result.artifacts["log"] for result in store.load(directory).attempts]
    assert logs == [f"one/logs/{job.key}.txt" for job in engine.made]


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        run([trial("a")], directory=tmp_path, suite="s")
    assert list(tmp_path.iterdir()) == []


def test_unreadable_lines_are_announced(sweep: Go, directory: Path) -> None:
    (directory / "trials.local.jsonl").write_text("torn\n")
    ear = Ear()
    sweep(ScriptedEngine(), "a", observer=ear)

    assert ear.heard[0].startswith("trials.local.jsonl:1: left out")


class OutOfMemoryError(RuntimeError):
    """Stands for torch's, which is known by its name."""


class AcceleratorError(RuntimeError):
    """Stands for torch's."""


CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 3221225472 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "cause", "requested"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), "oom_device", 20),
        (AcceleratorError("CUDA error: out of memory"), "oom_device", None),
        (AcceleratorError("CUDA error: an illegal address"), "error", None),
        (RuntimeError(CPU), "oom_host", 3072),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), "oom_device", None),
        (MemoryError("Unable to allocate 1.00 GiB for an array with shape (1,)"), "oom_host", 1024),
        (MemoryError(), "oom_host", None),
        (ValueError("out of memory"), "error", None),
        (DivergedError("nan"), "diverged", None),
    ],
)
def test_exceptions_are_told_apart(error: Exception, cause: str, requested: int | None) -> None:
    found = verdict.of_exception(error, "train")

    assert (found.cause, "while training" in found.reason) == (cause, True)
    assert found.requested_bytes == (None if requested is None else requested * 2**20)


def test_an_out_of_memory_behind_another_exception_is_found() -> None:
    error = RuntimeError("could not load")
    error.__cause__ = MemoryError()

    assert verdict.of_exception(error, "load").status == "oom"


@pytest.mark.parametrize("phase", [None, "load", "compress", "evaluate_before", "evaluate_after"])
def test_every_phase_has_words(phase: Phase | None) -> None:
    assert verdict.of_timeout(9, phase).reason == f"timeout {verdict.doing(phase)}: over 9 s in all"


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (2**50, "1024.00 TiB")]
)
def test_sizes_are_readable(count: int, words: str) -> None:
    assert verdict.size(count) == words


def test_a_log_without_text_has_no_last_words(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"first\n" + bytes(range(256)) * 40)

    assert verdict.last_line(tmp_path / "log") == ""
    assert verdict.last_line(tmp_path / "none") == ""


def test_a_measurement_that_is_not_finite_is_left_out_with_a_warning() -> None:
    good, bad = Measurement(value=1, unit="s"), Measurement(value=float("nan"), unit="nats")
    kept, lost = worker.finite({"step_seconds": good, "train_loss": bad})

    assert kept == {"step_seconds": good}
    assert lost == ["train_loss is left out: it is not finite (nan)"]


def test_a_heartbeat_never_stops_a_trial() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for _ in range(3000):
        worker.tell(writer, {"phase": "train", "padding": "x" * 100})
    os.close(reader)
    worker.tell(writer, {"phase": "train"})
    os.close(writer)


def test_device_variables_that_an_import_rewrites_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in worker.DEVICE_VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert worker.rewritten() == []
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")

    assert worker.rewritten() == [
        "CUDA_DEVICE_ORDER was rewritten to 'FASTEST_FIRST': memory figures may not compare"
    ]


@pytest.mark.parametrize(
    ("threads", "maps", "refusal"),
    [
        (["python"], "libc.so", None),
        (["python", "jemalloc_bg_thd"], "libc.so", None),
        (["python", "cuda-EvtHandlr"], "", "an import has started the thread cuda-EvtHandlr"),
        (
            ["python"],
            "7f0 r-xp /usr/lib/libcuda.so.1",
            "an import has loaded the CUDA driver, which may not survive a fork",
        ),
    ],
)
def test_a_template_knows_when_it_must_not_fork(
    tmp_path: Path, threads: list[str], maps: str, refusal: str | None
) -> None:
    for number, name in enumerate(threads):
        task = tmp_path / "task" / str(os.getpid() + number)
        task.mkdir(parents=True)
        (task / "comm").write_text(f"{name}\n")
    (tmp_path / "maps").write_text(maps)

    assert template.unsafe(tmp_path / "task", tmp_path / "maps") == refusal


def test_the_kernels_memory_kills_are_counted(tmp_path: Path) -> None:
    own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].partition("\n")[0]
    (tmp_path / own).mkdir(parents=True, exist_ok=True)
    (tmp_path / own / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")

    assert process.out_of_memory_kills(tmp_path) == 2
    assert process.out_of_memory_kills(tmp_path / "nowhere") >= 0


@pytest.fixture
def attended() -> Iterator[None]:
    """Ctrl-C as Python has it: a shell starts what runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("attended")
def test_the_second_ctrl_c_is_an_exception() -> None:
    with first_interruption() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_ctrl_c_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)

    def look() -> None:
        with first_interruption() as interrupted:
            seen.append((interrupted.is_set(), signal.getsignal(signal.SIGINT)))

    seen: list[tuple[bool, object]] = []
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_says_what_happens(sweep: Go, terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    engine = ScriptedEngine(b=[Ended(key="", signal=SIGKILL)])
    with Progress(console) as progress:
        sweep(engine, "a", "b", repeats=2, observer=progress)

    shown = text.getvalue()
    assert "4 points, 0 of them done already" in shown
    assert "ok: baseline  about 0 s left" in shown
    assert "killed: baseline" in shown
    assert "trying again" in shown
    assert "finished: 4 of 4 points are in " in shown
    assert ("[2/4] baseline (attempt 2)" in shown) != terminal


def test_progress_shows_phase_step_memory_and_time() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=200)
    with Progress(console) as progress:
        progress.run_started(points=2, done=0)
        progress.trial_started(trial("a"), 1, 0)
        progress.heartbeat(trial("a"), Heartbeat(phase="train", step=3, steps=9, bytes=2**30))

    assert "baseline (repeat 1): training, step 3 of 9, 1.00 GiB so far (0 s)" in text.getvalue()
    assert "0/2 points" in text.getvalue()
