"""The store: append-only JSON lines in a run directory, and how they are read back.

A run is `results/<suite>/<run>/` with `run.json`, `trials.<writer>.jsonl`, `events.<writer>.jsonl`
and the folders `items/` and `logs/`. Every writer process owns its files, so merging two machines
is copying directories.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tradebench.errors import UserError
from tradebench.result import Kind, Result

SCHEMA = "tradebench.run/1"
HEADER = "run.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run directory holds.

    `results` has the last readable attempt of every (kind, trial, repeat), in the order in which
    the points first appeared; `attempts` has every attempt. `problems` names lines that could not
    be read: a process died while it wrote them, or someone edited them.
    """

    directory: Path
    header: Mapping[str, Any]
    results: tuple[Result, ...]
    attempts: tuple[Result, ...]
    problems: tuple[str, ...]


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


def create_run(results_dir: Path, suite: str, header: Mapping[str, Any]) -> Path:
    """A new, empty run directory for `suite`, with its header written.

    The header should hold `question`, `suite_text`, `objectives`, `limits` and `argv`; the schema,
    the suite's name and the time are added here.
    """
    now = datetime.now(UTC)
    directory = results_dir / suite / f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    for folder in ("items", "logs"):
        (directory / folder).mkdir(parents=True)
    full = {"schema": SCHEMA, "suite": suite, **header, "started": timestamp(now), "ended": None}
    write_json(directory / HEADER, full)
    return directory


def load(path: Path) -> Run:
    """Read the run in directory `path`.

    Raises:
        UserError: `path` is not a run directory.
    """
    header = _header(path)
    problems: list[str] = []
    attempts: list[Result] = []
    for file in sorted(path.glob("trials.*.jsonl")):
        for number, line in _lines(file):
            try:
                attempts.append(Result.model_validate_json(line))
            except ValidationError as error:
                kind = error.errors()[0]["msg"]
                problems.append(f"{file.name}:{number}: left out, not a Result ({kind})")
    last: dict[tuple[Kind, str, int], Result] = {}
    for result in attempts:
        key = (result.kind, result.trial, result.repeat)
        if key not in last or _age(result) >= _age(last[key]):
            last[key] = result
    return Run(
        directory=path,
        header=header,
        results=tuple(last.values()),
        attempts=tuple(attempts),
        problems=tuple(problems),
    )


def events(path: Path) -> list[dict[str, Any]]:
    """The readable events of the run in directory `path`, file by file."""
    found = []
    for file in sorted(path.glob("events.*.jsonl")):
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
    runs = [header.parent for header in results_dir.glob(f"{suite}/*/{HEADER}")]
    return max(runs, key=lambda run: run.name, default=None)


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the run directory; the lock dies with the process, however it dies.

    Raises:
        UserError: another process holds it, or it is no run directory.
    """
    _header(directory)
    file = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another tradebench is at work in {directory}: wait for it, or start a new run "
                "with --fresh"
            ) from None
        yield
    finally:
        os.close(file)


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: readers see the old one or the new one, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same for a file that is not text."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_directory(path.parent)


def timestamp(moment: datetime | None = None) -> str:
    """A moment, or now, as the store spells it: UTC, ISO 8601."""
    return (moment or datetime.now(UTC)).isoformat(timespec="milliseconds")


def _header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads((path / HEADER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is not a run: a run directory holds a {HEADER}") from None
    except ValueError as error:
        raise UserError(f"{path / HEADER} is not readable JSON: {error}") from None
    schema = header.get("schema") if isinstance(header, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"{path / HEADER} has schema {schema!r}, but this tradebench reads {SCHEMA}"
        )
    return dict(header)


def _lines(file: Path) -> Sequence[tuple[int, bytes]]:
    lines = file.read_bytes().split(b"\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _age(result: Result) -> tuple[int, str]:
    return (result.attempt, result.started or "")


def _sync_directory(directory: Path) -> None:
    """Make a new name survive a power cut."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
