"""One section of the run, in a process of its own: `python -m gpu.section NAME --out DIRECTORY`.

The name's first part is the module of this package that does it, the rest is that module's own. A
section writes small JSON files; one that cannot run here says so in a sentence and leaves with 77.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SKIPPED = 77  # as test harnesses have it since automake
OURS = ("gpu", "tradebench")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a section runs: `cuda`, or `cpu` for a rehearsal; `tiny` shapes or the real ones.

    `seconds` is what it may take, starting the interpreter included.
    """

    device: str
    tiny: bool
    out: Path
    seconds: float

    def write(self, name: str, value: object) -> None:
        """Leave a value as `name`.json; names may have folders in them."""
        self._replace(f"{name}.json", (json.dumps(value, indent=1) + "\n").encode())

    def pack(self, name: str, value: object) -> None:
        """Leave a large value as `name`.json.gz: equal values give equal files."""
        text = json.dumps(value, separators=(",", ":"))
        self._replace(f"{name}.json.gz", gzip.compress(text.encode(), mtime=0))

    def _replace(self, name: str, content: bytes) -> None:
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"{path.name}.tmp")
        half.write_bytes(content)
        half.replace(path)


class SkipError(Exception):
    """The section cannot run here; the message is a sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a section; its last line of output says what came of it."""
    parser = argparse.ArgumentParser(prog="gpu.section", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args(arguments)
    bench = Bench(
        device=options.device, tiny=options.tiny, out=options.out, seconds=options.seconds
    )
    try:
        perform(options.name, bench)
    except SkipError as reason:
        sys.stdout.write(f"{reason}\n")
        return SKIPPED
    return 0


def perform(name: str, bench: Bench) -> None:
    """Find the section's module and let it work.

    Raises:
        SkipError: there is no device, or a package is missing.
    """
    try:
        import torch

        if bench.device == "cuda" and not torch.cuda.is_available():
            raise SkipError("There is no CUDA device.")
        room, _, rest = name.partition("/")
        importlib.import_module(f"gpu.{room}").run(bench, rest)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in OURS:
            raise
        raise SkipError(f"The package {missing} is not installed.") from error


if __name__ == "__main__":
    sys.exit(main())
