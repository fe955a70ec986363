"""`tradebench merge`: the runs of several machines as one run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tradebench import environment, store
from tradebench.errors import UserError
from tradebench.result import Result
from tradebench.store import Run


def merge(runs: Sequence[Run], out: Path, *, note: Callable[[str], None]) -> Run:
    """Copy the Results of all runs, with the files beside them, into a new run directory `out`.

    Every writer keeps its files, and its name where no other run has a writer of that name. A
    Result that several runs hold, because one is a copy of another, is copied once; two Results of
    one point are both kept.

    Raises:
        UserError: the runs are of different suites, or there is something in `out`.
    """
    suites = {str(run.header.get("suite")) for run in runs}
    if len(suites) > 1:
        raise UserError(f"these runs are of different suites: {', '.join(sorted(suites))}")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name a new folder to merge into")
    if len({run.header.get("suite_text") for run in runs}) > 1:
        note("the suite was changed between these runs: the merged one says what the newest says")
    out.mkdir(parents=True, exist_ok=True)
    known: set[str] = set()
    names: set[str] = set()
    for run in runs:
        for writer, attempts in run.writers.items():
            fresh = [each for each in attempts if _identity(each) not in known]
            known.update(map(_identity, fresh))
            if fresh:
                _copy(run, writer, fresh, out, _free(writer, names))
    # A directory is a run once it has its header, so that comes last.
    store.write_json(out / store.HEADER, _header(runs))
    return store.load(out)


def _identity(result: Result) -> str:
    """What makes two Results one, wherever the files beside them lie."""
    return result.model_copy(update={"artifacts": {}}).to_json()


def _free(writer: str, names: set[str]) -> str:
    head, dot, kind = writer.partition(".")
    number, name = 1, writer
    while name in names:
        number += 1
        name = f"{head}-{number}{dot}{kind}"
    names.add(name)
    return name


def _copy(run: Run, writer: str, attempts: Sequence[Result], out: Path, name: str) -> None:
    """Copy a writer's Results, its events and the files that these Results name."""
    old, new = (each.removesuffix(".plan") for each in (writer, name))
    with store.Appender(out / f"trials.{name}.jsonl") as file:
        for result in attempts:
            artifacts = {}
            for what, path in result.artifacts.items():
                inside = path.removeprefix(f"{old}/")
                artifacts[what] = f"{new}/{inside}"
                _copy_file(run.directory / path, out / new / inside)
            file.append(result.model_copy(update={"artifacts": artifacts}).to_json())
    _copy_file(run.directory / f"events.{writer}.jsonl", out / f"events.{name}.jsonl")


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file that may be missing: logs and items are often left out of what is passed on."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _header(runs: Sequence[Run]) -> Mapping[str, Any]:
    """What the newest run says of the suite, over the time that all of them took."""
    headers = [run.header for run in runs]
    starts = [str(header["started"]) for header in headers if header["started"]]
    ends = [header["ended"] for header in headers]
    return {
        **max(headers, key=lambda header: str(header["started"])),
        "merged": [environment.scrub(run.directory.name) for run in runs],
        "started": min(starts, default=None),
        "ended": None if None in ends else max(ends),
    }
