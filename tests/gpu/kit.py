"""The kit: a folder of packages for a machine that has Python, torch and transformers and no index.

Wheels are unpacked side by side, so that naming the folder in PYTHONPATH is all it takes. lm-eval
does not fit: it needs datasets, which needs pyarrow, which is larger than the whole folder may be;
trials without tasks run without it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "gpu-kit"
WHEELS = ROOT / "build" / "wheels"
MANIFEST = "manifest.json"

PYTHON = "3.12"
LIMIT = 60 * 2**20
# Every spelling of a Linux that a wheel for the GPU machine may ask for.
PLATFORMS = tuple(
    f"manylinux{version}_x86_64"
    for version in ("_2_28", "_2_27", "_2_24", "_2_17", "_2_12", "_2_5", "2014", "2010", "1")
)

# What is carried, and what for. transformers and torch bring numpy, jinja2, tqdm and the like.
PACKAGES: Mapping[str, Sequence[str]] = {
    "adapters": ("peft", "accelerate", "psutil"),
    "quantization": ("bitsandbytes",),
    "fp8 and small states": ("torchao",),
    "the fused loss": ("liger-kernel",),
    "trials and suites": (
        *("pydantic", "pydantic_core", "annotated-types", "typing_extensions"),
        *("typing-inspection", "ruamel.yaml"),
    ),
    "commands": (
        *("typer", "annotated-doc", "shellingham"),
        *("rich", "markdown-it-py", "mdurl", "Pygments"),
    ),
    "readings of the driver": ("nvidia-ml-py",),
    "tests": ("pytest", "pluggy", "iniconfig"),
}
TESTS = ("test", "tests")  # torchao's lie beside it, where they would hide Python's own
# bitsandbytes brings a library for every CUDA and ROCm. That of CUDA 13.0 serves any 13.x: it is
# chosen by the same major version. The one for the CPU is loaded where there is no device.
KEPT_LIBRARIES = ("libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so")


class KitError(Exception):
    """The kit cannot be built; the message is one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Download, unpack and check; 2 with a sentence where that fails."""
    parser = argparse.ArgumentParser(prog="gpu.kit", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--wheels", type=Path, default=WHEELS, help="where downloads are kept")
    options = parser.parse_args(arguments)
    try:
        versions = pinned((ROOT / "constraints.txt").read_text(), carried())
        download(versions, options.wheels)
        size = build(wheels_of(versions, options.wheels), options.out)
    except KitError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{options.out}: {len(versions)} packages, {size / 2**20:.1f} MiB\n")
    return 0


def carried() -> tuple[str, ...]:
    """The names of all packages."""
    return tuple(name for names in PACKAGES.values() for name in names)


def pinned(constraints: str, names: Iterable[str]) -> dict[str, str]:
    """The version of each package in a file of constraints.

    Raises:
        KitError: one of them is not there.
    """
    lines = (line.partition("==") for line in constraints.splitlines() if "==" in line)
    known = {_normal(name): version.strip() for name, _, version in lines if name[0] != "#"}
    missing = [name for name in names if _normal(name) not in known]
    if missing:
        raise KitError(f"constraints.txt pins no version of {', '.join(missing)}.")
    return {name: known[_normal(name)] for name in names}


def _normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return name.lower().replace("-", "_").replace(".", "_")


def download(versions: Mapping[str, str], folder: Path) -> None:
    """Fetch the wheels that are not there yet, for the GPU machine's Python and not for this one.

    Raises:
        KitError: pip cannot find one of them.
    """
    there = _found(folder)
    wanted = [
        f"{name}=={version}"
        for name, version in versions.items()
        if (_normal(name), version) not in there
    ]
    if not wanted:
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    done = subprocess.run(
        [*command, "--dest", str(folder), *wanted], capture_output=True, text=True
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise KitError(f"pip cannot download {', '.join(wanted)}: {' '.join(last)}")


def wheels_of(versions: Mapping[str, str], folder: Path) -> list[Path]:
    """The wheel of each package.

    Raises:
        KitError: one of them is missing.
    """
    there = _found(folder)
    missing = [
        f"{name} {version}"
        for name, version in versions.items()
        if (_normal(name), version) not in there
    ]
    if missing:
        raise KitError(f"{folder} has no wheel of {', '.join(missing)}.")
    return [there[_normal(name), version] for name, version in versions.items()]


def _found(folder: Path) -> dict[tuple[str, str], Path]:
    """Wheels by name and version, which are the first two parts of their file's name."""
    found = {}
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        found[_normal(name), version] = path
    return found


def build(wheels: Sequence[Path], folder: Path, limit: int = LIMIT) -> int:
    """Unpack wheels into a new folder and write its manifest; returns its bytes.

    Raises:
        KitError: it would be larger than `limit`; nothing is left of it then.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sizes = {wheel.name: unpack(wheel, folder) for wheel in wheels}
    total = sum(sizes.values())
    if total > limit:
        shutil.rmtree(folder)
        largest = max(sizes, key=lambda name: sizes[name])
        raise KitError(
            f"The kit would have {total / 2**20:.1f} MiB, more than {limit / 2**20:.0f}; the "
            f"largest part is {largest} with {sizes[largest] / 2**20:.1f}."
        )
    manifest = {"python": PYTHON, "bytes": total, "wheels": sizes}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return total


def unpack(wheel: Path, folder: Path) -> int:
    """Lay down what an installation would have in its library folder; returns its bytes."""
    size = 0
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            place = target(entry.filename)
            if place is None:
                continue
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(entry))
            size += entry.file_size
    return size


def target(name: str) -> PurePosixPath | None:
    """Where a wheel's file belongs in the folder; None where nobody there would need it."""
    path = PurePosixPath(name)
    if name.endswith("/"):
        return None
    if path.parts[0].endswith(".data"):
        # Scripts and headers are left out; the rest lies one level deeper than in other wheels.
        inside = path.parts[1] in ("purelib", "platlib")
        return PurePosixPath(*path.parts[2:]) if inside else None
    if path.parts[0] in TESTS:
        return None
    if fnmatch(path.name, "libbitsandbytes_*") and path.name not in KEPT_LIBRARIES:
        return None
    return path


def usable(folder: Path, python: str) -> bool:
    """Whether there is a kit for this version of Python (3.12)."""
    manifest = folder / MANIFEST
    return manifest.is_file() and json.loads(manifest.read_text())["python"] == python


if __name__ == "__main__":
    sys.exit(main())
