"""Where a number was made: versions, hardware, code and variables, found by light probes.

Nothing here imports torch. What is captured names neither the user nor the machine: no home path,
no host name, no secret.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import socket
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tradebench
from tradebench.result import Environment
from tradebench.trial import Trial

T = TypeVar("T")

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "lm_eval",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "gptqmodel",
    "torchao",
)

# What every measured number depends on, besides the technique's own file.
_PROGRAM = (
    *("program", "worlds", "techniques/protocol.py"),
    *("techniques/stored.py", "techniques/targets.py"),
)
# The same for trials of the reference model or on its data; the checksums stand for both.
_REFERENCE = ("reference/checksums.json", "reference/tasks")

_RELEVANT = re.compile(
    r"PYTORCH_(CUDA_)?ALLOC_CONF|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER)|OMP_NUM_THREADS"
    r"|(MALLOC|NCCL|TORCH)_\w+|(HF_HUB|TRANSFORMERS|HF_DATASETS|HF_EVALUATE)_OFFLINE"
)
# Folders change no number, and say where someone keeps things.
_PRIVATE = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|_(DIR|HOME|PATH|FILE)$", re.IGNORECASE)

# Above any memory: how cgroup v1 spells "no limit".
_UNLIMITED = 2**60


def capture() -> Environment:
    """This machine and installation, as they are now."""
    missing: dict[str, str] = {}

    def probe(name: str, find: Callable[[], T]) -> T | None:
        try:
            return find()
        except (OSError, ValueError, ImportError, RuntimeError, LookupError) as error:
            missing[name] = scrub(f"{type(error).__name__}: {error}")
            return None

    hardware = {
        "cpu": probe("cpu", _cpu_model),
        "machine": platform.machine(),
        "cores": probe("cores", _physical_cores),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "cpu_limit": probe("cpu_limit", cpu_limit),
        "memory_bytes": probe("memory_bytes", _memory_bytes),
        "memory_limit_bytes": probe("memory_limit_bytes", memory_limit),
        "gpus": probe("gpus", lambda: _gpus()[0]),
    }
    software = {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {' '.join(platform.libc_ver())}".strip(),
        "nvidia_driver": probe("nvidia_driver", lambda: _gpus()[1]),
    }
    git = probe("git", _git) or {}
    return Environment(
        software=software,
        hardware=hardware,
        code={"tradebench": tradebench.__version__, "program": _digest(*_PROGRAM)},
        # Not part of the key: a commit that leaves the program alone leaves its results valid.
        variables={**variables(os.environ), **git, "kernel": platform.release()},
        missing=missing,
    )


def of_trial(environment: Environment, trial: Trial) -> Environment:
    """`environment` with the versions of what this very trial uses among the code."""
    versions = {f"{part.slot}.{part.method}": type(part).version() for part in trial.techniques}
    if "reference" in (trial.model.name, trial.budget.data):
        versions["reference"] = _digest(*_REFERENCE)
    return environment.model_copy(update={"code": {**environment.code, **versions}})


def variables(given: Mapping[str, str]) -> dict[str, str]:
    """Those of the environment variables `given` that numbers depend on."""
    return {
        name: scrub(value)
        for name, value in sorted(given.items())
        if _RELEVANT.fullmatch(name) and not _PRIVATE.search(name)
    }


def scrub(text: str) -> str:
    """`text` without the home directory and the host's name."""
    home = str(Path.home())
    if home != "/":
        text = re.sub(rf"{re.escape(home)}(?=$|[^\w.-])", "~", text)
    host = socket.gethostname()
    if len(host) > 3 and host != "localhost":
        text = re.sub(rf"\b{re.escape(host)}\b", "<host>", text)
    return text


def unscrub(text: str) -> str:
    """`text` of which `scrub` has taken the home directory and the host's name, with them."""
    text = re.sub(r"(?<![\w~])~(?=$|/)", lambda _: str(Path.home()), text)
    return text.replace("<host>", socket.gethostname())


def memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The cgroup's limit on memory in bytes, if there is one."""
    for file in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        if file.exists():
            text = file.read_text().strip()
            return None if text == "max" or int(text) >= _UNLIMITED else int(text)
    return None


def cpu_limit(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """How many processors' worth of time the cgroup may use, if that is limited."""
    if (root / "cpu.max").exists():
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    if (root / "cpu" / "cpu.cfs_quota_us").exists():
        limit = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        return None if limit < 0 else limit / int((root / "cpu/cpu.cfs_period_us").read_text())
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    raise LookupError("/proc/cpuinfo names no model")


def _physical_cores() -> int | None:
    import psutil

    cores: int | None = psutil.cpu_count(logical=False)
    return cores


def _memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


class Gpu(NamedTuple):
    """A GPU of this machine, as NVIDIA's driver describes it."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int


def gpu() -> Gpu | None:
    """This machine's first GPU; None where there is none, or its driver is silent."""
    try:
        found, _ = _gpus()
    except RuntimeError:
        return None
    if not found:
        return None
    first = found[0]
    major, minor = map(int, first["compute_capability"].split("."))
    return Gpu(first["name"], (major, minor), first["memory_bytes"])


def gpus() -> int:
    """How many NVIDIA GPUs this machine has; 0 where their driver is silent."""
    try:
        return len(_gpus()[0])
    except RuntimeError:
        return 0


@functools.cache
def _gpus() -> tuple[list[dict[str, Any]], str | None]:
    """Every NVIDIA GPU and the driver's version, without touching CUDA."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return [], None
    except pynvml.NVMLError as error:
        raise RuntimeError(f"NVML: {error}") from error
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [_gpu(handle) for handle in handles], str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        raise RuntimeError(f"NVML: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: Any) -> dict[str, Any]:
    import pynvml

    try:
        mig: bool | None = bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    except pynvml.NVMLError_NotSupported:
        mig = None
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return {
        "name": str(pynvml.nvmlDeviceGetName(handle)),
        "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        "compute_capability": f"{major}.{minor}",
        "mig": mig,
    }


@functools.cache
def _digest(*sources: str) -> str:
    """A digest of files and folders of this package, whose code and tables count."""
    package = Path(tradebench.__file__).parent
    found = hashlib.sha256()
    for source in sources:
        path = package / source
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.suffix in (".py", ".yaml", ".json"):
                found.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:12]


def _git() -> dict[str, str]:
    """The commit and whether files differ from it, where tradebench runs from a checkout."""
    root = Path(tradebench.__file__).parents[1]
    if not (root / ".git").exists():
        return {}

    def ask(*question: str) -> str:
        command = ["git", "-C", str(root), *question]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        return done.stdout.strip()

    dirty = bool(ask("status", "--porcelain", "--untracked-files=no"))
    return {"git_commit": ask("rev-parse", "HEAD"), "git_dirty": str(dirty).lower()}
