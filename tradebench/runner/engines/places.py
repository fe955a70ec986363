"""Places: how many trials a machine runs at once, and what each of them has to itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tradebench import environment
from tradebench.errors import UserError

_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Place:
    """What a trial has to itself: a number that no other running trial has, and devices, if any."""

    lane: int
    devices: tuple[str, ...] = ()

    @property
    def variables(self) -> dict[str, str]:
        """What tells a process which devices are its own."""
        return {_DEVICES: ",".join(self.devices)} if self.devices else {}


class Places:
    """The places of one machine: `count` processes of trials at once.

    With `devices` every process has one of them to itself. One place alone is given no device, so
    that its trial sees them all.
    """

    def __init__(self, count: int = 1, devices: Sequence[str] = ()) -> None:
        self.count = count
        self._devices = tuple(devices) if count > 1 else ()
        self._taken: list[tuple[Place, int]] = []

    def room_for(self, ranks: int) -> bool:
        """Whether a trial of so many processes finds its places free.

        One that needs more than there are at all has the machine to itself: that it lacks devices
        is for it to find out.
        """
        return not self._taken or sum(taken for _, taken in self._taken) + ranks <= self.count

    def take(self, ranks: int) -> Place:
        """The places of a trial for which there is room."""
        lanes = {place.lane for place, _ in self._taken}
        busy = {device for place, _ in self._taken for device in place.devices}
        lane = next(lane for lane in range(len(lanes) + 1) if lane not in lanes)
        free = [device for device in self._devices if device not in busy]
        place = Place(lane, tuple(free[:ranks]))
        self._taken.append((place, ranks))
        return place

    def give_back(self, place: Place) -> None:
        """The trial has ended."""
        self._taken = [each for each in self._taken if each[0] != place]


def here(jobs: int | None, threads: int, variables: Mapping[str, str]) -> Places:
    """This machine's places: one per CUDA device, and one where there is none.

    Trials on devices of their own do not disturb each other as long as each has its cores;
    on a CPU they always do, so that `jobs` of them run at once only where someone asks for it.

    Raises:
        UserError: so many do not find their cores or devices.
    """
    devices = _visible({**os.environ, **variables})
    cores = usable_cores()
    if jobs is None:
        return Places(max(1, min(len(devices), cores // threads)), devices)
    if jobs * threads > cores:
        raise UserError(
            f"--jobs {jobs} with {threads} {'thread' if threads == 1 else 'threads'} each needs "
            f"{jobs * threads} cores, and there are {cores}"
        )
    if devices and jobs > len(devices):
        raise UserError(f"--jobs {jobs} needs {jobs} GPUs, and there are {len(devices)}")
    return Places(jobs, devices)


def usable_cores() -> int:
    """The processors that this process may use, at least one."""
    limit = environment.cpu_limit()
    usable = len(os.sched_getaffinity(0))
    return usable if limit is None else max(1, min(usable, int(limit)))


def available_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The bytes of host memory that a further process can have, caches given up."""
    import psutil

    available = int(psutil.virtual_memory().available)
    limit, used = environment.memory_limit(cgroup), cgroup / "memory.current"
    if limit is None or not used.exists():
        return available
    stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    held = int(used.read_text()) - int(stat.get("inactive_file", 0))
    return min(available, limit - held)


def _visible(variables: Mapping[str, str]) -> tuple[str, ...]:
    """The CUDA devices that a process with these variables may use, as it would name them."""
    named = variables.get(_DEVICES)
    if named is not None:
        return tuple(word.strip() for word in named.split(",") if word.strip())
    return tuple(str(number) for number in range(environment.gpus()))
