"""What a process holds on a GPU outside torch's allocator: context, loaded code, communicators.

No program asks for these bytes and no trace shows them, yet a device that has none left for them is
full. They depend on driver, chip and libraries, so each part is an interval from readings that
others have published, until a file of readings from the device itself takes its place.

A reading is what NVML counts for the process less what torch has reserved, taken after the first
tensor (the context), after a step of training (all code loaded), and after the first collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

from pydantic import Field

from tradebench.devices.files import read
from tradebench.result import Environment, Record

SCHEMA = "tradebench.overheads/1"
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the overhead in bytes: between what it lies, what it mostly is, and says who."""

    name: str
    low: int
    typical: int
    high: int
    source: str
    measured: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.typical <= self.high:
            raise ValueError(f"{self.name}: {self.low}, {self.typical}, {self.high} do not rise")


@dataclass(frozen=True)
class Overhead:
    """All parts together; their ends add up, since nothing says that they are independent."""

    parts: tuple[Part, ...]

    @property
    def low(self) -> int:
        """Bytes that are taken in any case."""
        return sum(part.low for part in self.parts)

    @property
    def typical(self) -> int:
        """Bytes that are expected."""
        return sum(part.typical for part in self.parts)

    @property
    def high(self) -> int:
        """Bytes beyond which none are expected."""
        return sum(part.high for part in self.parts)

    @property
    def assumed(self) -> tuple[str, ...]:
        """The names of the parts that were not read off the device."""
        return tuple(part.name for part in self.parts if not part.measured)


Readings = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class Overheads(Record):
    """Readings in bytes from one device, one for each process or run.

    Attributes:
        device: The name by which the driver calls it.
        context: After the first tensor.
        code: What loading kernels and libraries has added after a training step.
        communicators: What the first collectives have added, by the number of ranks.
        environment: Versions and hardware.
    """

    schema_: str = Field(SCHEMA, alias="schema")
    device: str
    context: Readings
    code: Readings
    communicators: dict[int, Readings] = Field(default_factory=dict)
    environment: Environment = Environment()


def load(path: str | Path) -> Overheads:
    """Read a file of readings.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    return read(path, Overheads, SCHEMA)


def overhead(architecture: str, *, ranks: int = 1, measured: Overheads | None = None) -> Overhead:
    """What a process holds outside the allocator, one of `ranks` that train together.

    Readings take the place of the parts that they have. Those of communicators hold for the number
    of ranks that they were taken with.
    """
    context, code, talk = _context(architecture), CODE, _communicators(architecture, ranks)
    if measured is not None:
        context = _read(context, measured.context, measured.device)
        code = _read(code, measured.code, measured.device)
        if ranks in measured.communicators:
            talk = tuple(
                _read(part, measured.communicators[ranks], measured.device) for part in talk[:1]
            )
    return Overhead((context, code, *talk))


def _read(part: Part, readings: Sequence[int], device: str) -> Part:
    """A part as it was read."""
    return Part(
        name=part.name,
        low=min(readings),
        typical=round(median(readings)),
        high=max(readings),
        source=f"{len(readings)} readings on {device}",
        measured=True,
    )


# A context holds the driver's structures and stacks for every thread that the chip can run, so
# large chips have larger ones.
GRAPHICS = Part(
    name="context",
    low=230 * MIB,
    typical=300 * MIB,
    high=450 * MIB,
    source="256 MiB on an RTX 3090 with torch 2.7 (invoke-ai/InvokeAI#9413), about 300 and 400 MB "
    "with lazy loading (pytorch/pytorch#107667, #109888)",
)
DATA_CENTRE = Part(
    name="context",
    low=300 * MIB,
    typical=518 * MIB,
    high=650 * MIB,
    source="518 MiB on an H200 with driver 580 and torch 2.11 (results/h200/overheads.json); about "
    "300 and 400 MB with lazy loading (pytorch/pytorch#107667, #109888), 616 MiB in a data centre "
    "(LMCache/LMCache#4019)",
)
INSTINCT = Part(
    name="context",
    low=200 * MIB,
    typical=600 * MIB,
    high=1500 * MIB,
    source="no reading found: assumed wider than NVIDIA's on both sides",
)
# Kernels are loaded when they first run: torch's own, cuBLAS's, cuDNN's, bitsandbytes', Triton's.
CODE = Part(
    name="code",
    low=80 * MIB,
    typical=240 * MIB,
    high=1200 * MIB,
    source="240 MiB on an H200 with torch 2.11 (results/h200/overheads.json); 0.16 GiB beyond the "
    "context on an H100 (vllm-project/vllm#12126), 0.20 GiB on 24 GiB cards (#14447); 1.79 GiB "
    "with the context on an H100 (#10511)",
)


def _context(architecture: str) -> Part:
    if architecture.startswith("gfx"):
        return INSTINCT
    return DATA_CENTRE if architecture in ("sm_80", "sm_90", "sm_100") else GRAPHICS


# NCCL's buffers grow with its channels, and channels with the links: few over PCIe, many over
# NVLink. Two nodes need more than one, a third adds nothing (NVIDIA/nccl#986).
PAIR, GROUP, LARGEST = 544 * MIB, 688 * MIB, 1600 * MIB
SLOW_LINK = 4  # a slow link may have a quarter of the channels
NVLS_PER_RANK = 301_989_888
NVLS_RANKS = 8  # that one NVSwitch joins, in the log that was read


def _communicators(architecture: str, ranks: int) -> tuple[Part, ...]:
    """One communicator, as FSDP has for a mesh of one dimension, and its multicast buffers."""
    if ranks == 1:
        return ()
    rings = PAIR if ranks == 2 else GROUP
    found = Part(
        name="communicator",
        low=rings // SLOW_LINK,
        typical=rings,
        high=LARGEST,
        source="544 MiB for 2 and 688 MiB for more A100s over NVLink (NVIDIA/nccl#964), about "
        "1.6 GB (#864)",
    )
    if ranks == 2 or architecture not in ("sm_90", "sm_100"):
        return (found,)
    multicast = Part(
        name="multicast",
        low=0,
        typical=0,
        high=NVLS_PER_RANK * min(ranks, NVLS_RANKS),
        source="288 MiB for every rank of an NVSwitch (NCCL's log in vllm-project/vllm#9699), once "
        "a collective runs over NVLS; rings do without",
    )
    return (found, multicast)
