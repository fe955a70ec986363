"""The run: one section after another, the most valuable first, each in a process of its own.

A crash or a hang costs one section, and what the others found is on disk already. This module needs
nothing but Python, so that it can say what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Literal

from gpu import kit
from gpu.rungs import EXPANDABLE, RUNGS
from gpu.section import SKIPPED

ROOT = kit.ROOT
OUT = ROOT / "results" / "h200"
TOTAL = 570.0  # seconds for everything: machines are lent by the ten minutes
LEAST = 10.0  # seconds without which a section is not started

WORDS = 12  # lines of a failed section that are kept

Status = Literal["ok", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A piece of the run: what it does, the seconds it may take, and variables of its process.

    An empty variable is not set at all. `rehearsed` is False where a rehearsal has another section
    that is like it but for sizes.
    """

    name: str
    does: str
    seconds: float
    variables: Mapping[str, str] = field(default_factory=dict)
    rehearsed: bool = True


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What came of a section; `reason` is a sentence, or the last lines of one that failed."""

    name: str
    does: str
    status: Status
    reason: str | None
    seconds: float


def ladder(names: Iterable[str]) -> tuple[Section, ...]:
    """Rungs as sections."""
    return tuple(
        Section(
            name=f"ladder/{name}",
            does=RUNGS[name].does,
            seconds=75.0,
            variables={"PYTORCH_ALLOC_CONF": RUNGS[name].allocator},
            rehearsed=RUNGS[name].rehearsed,
        )
        for name in names
    )


def traces() -> tuple[Section, ...]:
    """The allocator's history under both kinds of segments."""
    kinds = {"expandable": EXPANDABLE, "default": ""}
    return tuple(
        Section(
            name=f"traces/{name}",
            does=f"what the allocator does with {name} segments",
            seconds=60.0,
            variables={"PYTORCH_ALLOC_CONF": settings},
        )
        for name, settings in kinds.items()
    )


PARTS = 5  # of the catalogue's techniques: a crash costs what is left of one


def techniques() -> tuple[Section, ...]:
    """Every technique of the catalogue, in parts that share a process."""
    return tuple(
        Section(
            name=f"techniques/{part}",
            does=f"a small trial of every technique, part {part} of {PARTS}",
            seconds=90.0,
            rehearsed=part == 1,
        )
        for part in range(1, PARTS + 1)
    )


FIRST = 4  # rungs that come before everything that is not about memory
SECTIONS = (
    Section(name="environment", does="versions, driver and device", seconds=40.0),
    Section(name="overheads", does="memory outside the allocator", seconds=45.0),
    *ladder(tuple(RUNGS)[:FIRST]),
    *traces(),
    Section(name="hidden", does="what kernels allocate inside", seconds=60.0),
    Section(name="calibration", does="how fast the device really is", seconds=120.0),
    Section(name="published", does="rows of a published notebook", seconds=90.0),
    Section(name="traps", does="gradients with and without an evaluation", seconds=45.0),
    *techniques(),
    Section(name="predictions", does="what is predicted of every trial so far", seconds=90.0),
    Section(name="profiles", does="where a step's time goes", seconds=60.0),
    *ladder(tuple(RUNGS)[FIRST:]),
    Section(name="checks", does="the tests marked gpu", seconds=60.0),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and say what came of it; 1 where a section failed."""
    parser = argparse.ArgumentParser(prog="gpu.run", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="where the files go")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a rehearsal")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these sections, or their kinds")
    parser.add_argument("--total", type=float, default=TOTAL, help="seconds for everything")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    chosen = [section for section in SECTIONS if _wanted(section, options.only, options.tiny)]
    words = ["--out", str(out), "--device", options.device]
    words += ["--tiny"] if options.tiny else []

    def command(section: Section, seconds: float) -> list[str]:
        call = [sys.executable, "-m", "gpu.section", section.name]
        return [*call, "--seconds", f"{seconds:.0f}", *words]

    ended = run(chosen, out, command, surroundings(options.device), options.total)
    return int(any(each.status == "failed" for each in ended))


def _wanted(section: Section, only: Sequence[str] | None, tiny: bool) -> bool:
    if only is not None:
        return section.name in only or section.name.split("/")[0] in only
    return section.rehearsed or not tiny


def surroundings(device: str) -> dict[str, str]:
    """The variables of every section: where its modules are, and nothing that reaches out."""
    paths = [str(ROOT), str(ROOT / "tests")]
    if kit.usable(kit.FOLDER, ".".join(platform.python_version_tuple()[:2])):
        # Ahead of what is installed, so that its versions are the ones that run.
        paths.insert(0, str(kit.FOLDER))
    kept = {name: text for name, text in os.environ.items() if name != "PYTORCH_CUDA_ALLOC_CONF"}
    found = {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTORCH_ALLOC_CONF": EXPANDABLE,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return found | {"OMP_NUM_THREADS": "1"} if device == "cpu" else found


def run(
    sections: Sequence[Section],
    out: Path,
    command: Callable[[Section, float], list[str]],
    variables: Mapping[str, str],
    total: float = TOTAL,
) -> list[Ended]:
    """Run sections one after another for `total` seconds, and keep summary.json up to date.

    `command` gives what to call for a section and the seconds that it has.
    """
    out.mkdir(parents=True, exist_ok=True)
    begun, ended = time.monotonic(), list[Ended]()
    earlier = _earlier(out / "summary.json", {section.name for section in sections})
    for number, section in enumerate(sections, start=1):
        left = total - (time.monotonic() - begun)
        if left < LEAST:
            found = _unstarted(section)
        else:
            seconds = min(section.seconds, left)
            words = command(section, seconds)
            own = {**variables, **section.variables}
            own = {name: text for name, text in own.items() if text}
            found = attempt(section, words, own, seconds)
        ended.append(found)
        _say(f"{number}/{len(sections)} {found.name}: {found.status}, {found.seconds:.0f} s")
        if found.reason is not None:
            _say(f"    {found.reason.splitlines()[-1]}")
        _summarise(out / "summary.json", [*earlier, *ended], time.monotonic() - begun)
    return ended


def _earlier(path: Path, chosen: Set[str]) -> list[Ended]:
    """What a run before this one has left of sections that are not run again."""
    if not path.is_file():
        return []
    found = [Ended(**each) for each in json.loads(path.read_text())["sections"]]
    return [each for each in found if each.name not in chosen]


def _unstarted(section: Section) -> Ended:
    return Ended(
        name=section.name,
        does=section.does,
        status="skipped",
        reason="No time was left for it.",
        seconds=0.0,
    )


def attempt(
    section: Section, command: Sequence[str], variables: Mapping[str, str], seconds: float
) -> Ended:
    """Run one section; kill it and all that it started when its time is up."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said = _last_lines(log)
    status, reason = judge(code, said, seconds)
    return Ended(
        name=section.name,
        does=section.does,
        status=status,
        reason=reason,
        seconds=round(time.monotonic() - begun, 1),
    )


def judge(code: int | None, said: str, seconds: float) -> tuple[Status, str | None]:
    """What an exit code means, None for none within its seconds, after so many last words."""
    if code == 0:
        return "ok", None
    if code == SKIPPED:
        return "skipped", said.splitlines()[-1] if said else None
    if code is None:
        how = f"It took more than {seconds:.0f} seconds."
    elif code < 0:
        how = f"It died of {signal.Signals(-code).name}."
    else:
        how = f"It left with {code}."
    return "failed", "\n".join(filter(None, (how, said)))


def _last_lines(log: IO[str]) -> str:
    """The end of a section's output, without the places where this machine keeps things."""
    log.seek(0)
    lines = [line.rstrip() for line in log.read().splitlines() if line.strip()][-WORDS:]
    return "\n".join(lines).replace(str(ROOT), ".").replace(str(Path.home()), "~")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _summarise(path: Path, ended: Sequence[Ended], seconds: float) -> None:
    """Write down what came of every section; `seconds` are those of the latest run."""
    summary = {
        "schema": "tradebench.gpu/1",
        "seconds": round(seconds, 1),
        "sections": [asdict(each) for each in ended],
    }
    half = path.with_name(f"{path.name}.tmp")
    half.write_text(json.dumps(summary, indent=1) + "\n")
    half.replace(path)


if __name__ == "__main__":
    sys.exit(main())
