"""The store: append-only JSON lines in a run directory, and how they are read back.

A run is `results/<suite>/<run>/` with `run.json`, `trials.<writer>.jsonl`, `events.<writer>.jsonl`
and the folders `items/` and `logs/`. Several machines may write one run: each under a writer's name
of its own, with the files beside its Results in a folder of that name and its header in
`run.<writer>.json`. No file has two writers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tradebench.errors import UserError
from tradebench.owner import Owner, State
from tradebench.result import Kind, Result, Status

SCHEMA = "tradebench.run/1"
HEADER = "run.json"

# The writer that names nobody: the only one, unless someone asks for another.
LOCAL = "local"

# For how long a dead process's child may hold its lock: a moment, unless the machine is busy.
INHERITED_SECONDS = 10.0

# A machine on which a point ended so has said nothing about it.
UNMADE: frozenset[Status] = frozenset({"killed", "skipped"})

_WRITER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Folders and files that a run has already.
_TAKEN = frozenset({"items", "logs", "work", "before", "timelines", "report", "plan", "confirm"})


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run directory holds.

    `results` has the last readable attempt of every (kind, trial, repeat), in the order in which
    the points first appeared; `attempts` has every attempt, and `writers` the same by who wrote
    them. Of a point that several writers made, the Results of one environment stand: those of
    different machines never pass for repeats of each other. `problems` names lines that could not
    be read: a process died while it wrote them, or someone edited them.
    """

    directory: Path
    header: Mapping[str, Any]
    results: tuple[Result, ...]
    attempts: tuple[Result, ...]
    problems: tuple[str, ...]
    writers: Mapping[str, tuple[Result, ...]] = field(default_factory=dict)


class Appender:
    """The one writer of a JSONL file: a line is whole and on disk when `append` returns.

    Opening the file mends what a death left behind: a last line without its end is kept if it is
    whole, and otherwise moved to `<file>.torn`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        _sync_directory(path.parent)
        self._mend()

    def append(self, line: str) -> None:
        """Write one line of JSON and wait until the disk has it."""
        data = line.encode() + b"\n"
        size = os.fstat(self._file).st_size
        written = os.write(self._file, data)
        if written < len(data):
            os.ftruncate(self._file, size)
            raise OSError(f"{self.path}: only {written} of {len(data)} bytes fitted on the disk")
        os.fsync(self._file)

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mend(self) -> None:
        content = self.path.read_bytes()
        tail = content[content.rfind(b"\n") + 1 :]
        if not tail:
            return
        try:
            json.loads(tail)
        except ValueError:
            with self.path.with_name(f"{self.path.name}.torn").open("ab") as torn:
                torn.write(tail + b"\n")
            os.ftruncate(self._file, len(content) - len(tail))
        else:
            os.write(self._file, b"\n")
        os.fsync(self._file)


def create_run(
    results_dir: Path, suite: str, header: Mapping[str, Any], name: str | None = None
) -> Path:
    """A new, empty run directory for `suite`, with its header written.

    The header should hold `question`, `suite_text`, `objectives`, `limits` and `argv`; the schema,
    the suite's name and the time are added here. A run of the given `name` that is there already
    is left as it is: several machines may ask for it at once.

    Raises:
        UserError: no folder can have this name.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise UserError(f"--run {name}: give a name of letters, digits, dots, - and _")
    now = datetime.now(UTC)
    directory = results_dir / suite / (name or f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}")
    for folder in ("items", "logs"):
        (directory / folder).mkdir(parents=True, exist_ok=name is not None)
    full = {"schema": SCHEMA, "suite": suite, **header, "started": timestamp(now), "ended": None}
    with _beside(directory / HEADER, _json(full).encode()) as temporary:
        # Unlike a rename, a link never takes the place of what another machine was first to write.
        try:
            os.link(temporary, directory / HEADER)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not (directory / HEADER).exists():
                temporary.replace(directory / HEADER)
        temporary.unlink(missing_ok=True)
    _sync_directory(directory)
    return directory


def files(directory: Path, writer: str) -> Path:
    """Where a writer keeps what lies beside its Results."""
    return directory if writer == LOCAL else directory / writer


def placed(result: Result, writer: str) -> Result:
    """A Result whose artifacts are named as seen from the run directory.

    Given is one that names them as seen from the writer's own folder.
    """
    folder = files(Path(), writer)
    artifacts = {name: (folder / path).as_posix() for name, path in result.artifacts.items()}
    return result.model_copy(update={"artifacts": artifacts})


def header_file(directory: Path, writer: str) -> Path:
    """Where a writer says what it was asked to do."""
    return directory / (HEADER if writer == LOCAL else f"run.{writer}.json")


def check_writer(name: str) -> str:
    """The name, if files can be named after it.

    Raises:
        UserError: they cannot.
    """
    if not _WRITER.fullmatch(name) or name in _TAKEN:
        raise UserError(
            f"--writer {name}: give a name of letters, digits, - and _ that is none of "
            f"{', '.join(sorted(_TAKEN))}"
        )
    return name


def load(path: Path) -> Run:
    """Read the run in directory `path`.

    Raises:
        UserError: `path` is not a run directory.
    """
    header = _header(path)
    problems: list[str] = []
    writers: dict[str, tuple[Result, ...]] = {}
    for writer, file in _files_of_writers(path, "trials"):
        attempts = []
        for number, line in _lines(file):
            try:
                attempts.append(Result.model_validate_json(line))
            except ValidationError as error:
                kind = error.errors()[0]["msg"]
                problems.append(f"{file.name}:{number}: left out, not a Result ({kind})")
        writers[writer] = tuple(attempts)
    return Run(
        directory=path,
        header=header,
        results=standing(writers),
        attempts=tuple(result for attempts in writers.values() for result in attempts),
        problems=tuple(problems),
        writers=writers,
    )


def last(attempts: Iterable[Result]) -> dict[tuple[Kind, str, int], Result]:
    """The last attempt at every (kind, trial, repeat), in the order of the first ones."""
    found: dict[tuple[Kind, str, int], Result] = {}
    for result in attempts:
        key = (result.kind, result.trial, result.repeat)
        if key not in found or _age(result) >= _age(found[key]):
            found[key] = result
    return found


def standing(writers: Mapping[str, Sequence[Result]]) -> tuple[Result, ...]:
    """The Result that stands for every (kind, trial, repeat).

    Where several writers have made a trial, one environment stands: that which brought most
    repeats to an end, and of equals the latest.
    """
    made: dict[tuple[Kind, str], list[list[Result]]] = {}
    order: dict[tuple[Kind, str, int], None] = {}
    for attempts in writers.values():
        by_trial: dict[tuple[Kind, str], list[Result]] = {}
        for key, result in last(attempts).items():
            order[key] = None
            by_trial.setdefault((result.kind, result.trial), []).append(result)
        for trial, results in by_trial.items():
            made.setdefault(trial, []).append(results)
    stands: dict[tuple[Kind, str, int], Result] = {}
    for versions in made.values():
        for result in versions[0] if len(versions) == 1 else _one_place(versions):
            stands[result.kind, result.trial, result.repeat] = result
    return tuple(stands[key] for key in order if key in stands)


def _one_place(versions: Iterable[Iterable[Result]]) -> Collection[Result]:
    places: dict[str, dict[int, Result]] = {}
    for result in (result for version in versions for result in version):
        place = places.setdefault(result.environment.key, {})
        known = place.get(result.repeat)
        if known is None or _worth(result) >= _worth(known):
            place[result.repeat] = result
    return max(
        (place.values() for place in places.values()),
        key=lambda place: (
            sum(result.status not in UNMADE for result in place),
            max(result.started or "" for result in place),
        ),
    )


def _worth(result: Result) -> tuple[bool, str]:
    # Not by the number of the attempt: writers count apart.
    return (result.status not in UNMADE, result.started or "")


def events(path: Path) -> list[dict[str, Any]]:
    """The readable events of the run in directory `path`, file by file."""
    found = []
    for _, file in _files_of_writers(path, "events"):
        for _, line in _lines(file):
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def find(results_dir: Path, which: str | Path) -> Path:
    """The run directory that a user means by a path, a run's name or the word `latest`.

    Raises:
        UserError: there is no such run.
    """
    if str(which) == "latest":
        newest = latest(results_dir)
        if newest is None:
            raise UserError(f"{results_dir} holds no run yet: start one with `tradebench run`")
        return newest
    given = Path(which)
    if given.name == HEADER:
        given = given.parent
    candidates = [given, results_dir / given, *results_dir.glob(f"*/{given.name}")]
    for candidate in candidates:
        if (candidate / HEADER).is_file():
            return candidate
    raise UserError(f"{which} is not a run: a run directory holds a {HEADER}")


def latest(results_dir: Path, suite: str = "*") -> Path | None:
    """The newest run, of one suite or of all; None where there is none."""
    return next(reversed(runs(results_dir, suite)), None)


def runs(results_dir: Path, suite: str = "*") -> list[Path]:
    """The run directories of one suite or of all, the oldest first."""
    return sorted(
        (header.parent for header in results_dir.glob(f"{suite}/*/{HEADER}")), key=_started
    )


def _started(run: Path) -> tuple[str, str]:
    """When a run began, for sorting; not by its name, which someone may have given to it."""
    with contextlib.suppress(UserError):
        return (str(_read_header(run, run / HEADER)["started"] or ""), run.name)
    return ("", run.name)


@contextlib.contextmanager
def lock(directory: Path, writer: str = LOCAL) -> Iterator[None]:
    """Hold a writer's part of the run directory; the lock dies with the process, however it dies.

    The file says which process took it last, for those who watch the run. Where that one was
    killed while it started another program, the child holds the lock as well until it has become
    that program, which is waited for.

    Raises:
        UserError: another process holds it, or it is no run directory.
    """
    _header(directory)
    file = os.open(_lock_file(directory, writer), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        until = time.monotonic() + INHERITED_SECONDS
        while not _locked(file):
            if _state_of_owner(file) != "gone" or time.monotonic() > until:
                raise UserError(
                    f"another tradebench is at work in {directory} as {writer}: wait for it, start "
                    "a new run with --fresh, or write beside it under another name with --writer"
                )
            time.sleep(0.01)
        here = Owner.here()
        os.ftruncate(file, 0)
        os.pwrite(file, here.text.encode() if here else b"", 0)
        yield
    finally:
        os.close(file)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _state_of_owner(file: int) -> State | None:
    owner = Owner.read(os.pread(file, 4096, 0).decode(errors="replace"))
    return None if owner is None else owner.state


def owners(directory: Path) -> list[Owner]:
    """The processes that took the parts of the run that have not come to their end."""
    found = []
    for file in (directory / HEADER, *sorted(directory.glob("run.*.json"))):
        writer = file.name.removesuffix("json").removeprefix("run.").rstrip(".") or LOCAL
        with contextlib.suppress(OSError, UserError):
            text = _lock_file(directory, writer).read_text()
            owner = Owner.read(text)
            if owner is not None and _read_header(directory, file)["ended"] is None:
                found.append(owner)
    return found


def _lock_file(directory: Path, writer: str) -> Path:
    return directory / (".lock" if writer == LOCAL else f".lock.{writer}")


def end_run(directory: Path) -> None:
    """Say that the run has come to its end now."""
    header = _read_header(directory, directory / HEADER)
    write_json(directory / HEADER, {**header, "ended": timestamp()})


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file in one step."""
    write_text(path, _json(value))


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: readers see the old one or the new one, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same for a file that is not text."""
    with _beside(path, content) as temporary:
        temporary.replace(path)
    _sync_directory(path.parent)


def timestamp(moment: datetime | None = None) -> str:
    """A moment, or now, as the store spells it: UTC, ISO 8601."""
    return (moment or datetime.now(UTC)).isoformat(timespec="milliseconds")


def _header(path: Path) -> dict[str, Any]:
    """What the run says of itself: what its latest writer says, from the first start to the end."""
    main = _read_header(path, path / HEADER)
    others = [_read_header(path, file) for file in sorted(path.glob("run.*.json"))]
    if not others:
        return main
    # Whoever made the run may have left its part to others.
    written = [main, *others] if (path / f"trials.{LOCAL}.jsonl").exists() else others
    starts = [header["started"] for header in [main, *others] if header["started"]]
    ends = [header["ended"] for header in written]
    return {
        **max(written, key=lambda header: str(header["started"])),
        "started": min(starts, default=None),
        "ended": None if None in ends else max(ends),
    }


def _read_header(path: Path, file: Path) -> dict[str, Any]:
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is not a run: a run directory holds a {HEADER}") from None
    except ValueError as error:
        raise UserError(f"{file} is not readable JSON: {error}") from None
    schema = header.get("schema") if isinstance(header, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{file} has schema {schema!r}, but this tradebench reads {SCHEMA}")
    return {"started": None, "ended": None, **header}


def _files_of_writers(path: Path, what: str) -> list[tuple[str, Path]]:
    """Every writer by name, with its file."""
    return sorted(
        (file.name.removeprefix(f"{what}.").removesuffix(".jsonl"), file)
        for file in path.glob(f"{what}.*.jsonl")
    )


def _lines(file: Path) -> Sequence[tuple[int, bytes]]:
    lines = file.read_bytes().split(b"\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


@contextlib.contextmanager
def _beside(path: Path, content: bytes) -> Iterator[Path]:
    """A new file beside `path` with this content, on disk; no other machine has one of its name."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    yield temporary


def _json(value: object) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _age(result: Result) -> tuple[int, str]:
    return (result.attempt, result.started or "")


def _sync_directory(directory: Path) -> None:
    """Make a new name survive a power cut."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
