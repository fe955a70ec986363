from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tradebench import environment
from tradebench.techniques import catalogue
from tradebench.trial import Trial


def test_a_capture_names_versions_hardware_and_code() -> None:
    found = environment.capture()

    assert set(environment.PACKAGES) < set(found.software)
    assert (found.software["torch"] or "").startswith("2.")
    assert found.hardware["memory_bytes"] > 2**28
    assert found.hardware["usable_cpus"] >= 1
    assert len(found.code["program"] or "") == 12
    assert "kernel" in found.variables


def test_capturing_loads_no_heavy_library() -> None:
    program = (
        "import sys; from tradebench import environment; environment.capture(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    root = str(Path(__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


def test_two_captures_have_one_key() -> None:
    assert environment.capture().key == environment.capture().key


def test_a_commit_does_not_make_results_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment.capture()
    monkeypatch.setattr(environment, "_git", lambda: {"git_commit": "0" * 40, "git_dirty": "true"})
    after = environment.capture()

    assert after.variables["git_commit"] == "0" * 40
    assert after.key == before.key


def test_a_changed_program_makes_results_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment.capture()
    monkeypatch.setattr(environment, "_PROGRAM", ("program/measure.py",))

    assert environment.capture().key != before.key


def test_only_a_trials_own_techniques_are_part_of_its_key() -> None:
    base = environment.capture()
    fields = {"model": {"name": "m"}, "budget": {"data": "random"}, "evaluate": {}}
    plain = Trial.from_payload({**fields, "settings": {}})
    adapted = Trial.from_payload({**fields, "settings": {"adapters": {"method": "lora"}}})
    version = catalogue()["adapters"]["lora"].version()

    assert environment.of_trial(base, plain).key == base.key
    assert environment.of_trial(base, adapted).code == {**base.code, "adapters.lora": version}
    assert environment.of_trial(base, adapted).key != base.key


@pytest.mark.parametrize(
    ("model", "data", "uses"),
    [("m", "random", False), ("reference", "random", True), ("m", "reference", True)],
)
def test_only_trials_that_use_the_reference_model_depend_on_it(
    model: str, data: str, uses: bool
) -> None:
    trial = Trial.model_validate({"model": {"name": model}, "budget": {"data": data}})

    assert ("reference" in environment.of_trial(environment.capture(), trial).code) == uses


def test_a_probe_that_fails_leaves_none_and_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(f"no such thing in {Path.home()}/x")

    monkeypatch.setattr(environment, "_memory_bytes", fail)
    found = environment.capture()

    assert found.hardware["memory_bytes"] is None
    assert found.missing["memory_bytes"] == "OSError: no such thing in ~/x"


def test_only_relevant_variables_are_kept_and_never_a_secret_or_a_folder() -> None:
    given = {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "NCCL_DEBUG": "INFO",
        "MALLOC_ARENA_MAX": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "hf_x",
        "TORCH_API_KEY": "x",
        "NCCL_SECRET": "x",
        "TORCH_HOME": "/somewhere",
        "PATH": "/bin",
    }

    assert environment.variables(given) == {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "NCCL_DEBUG": "INFO",
        "MALLOC_ARENA_MAX": "1",
        "HF_HUB_OFFLINE": "1",
    }


def test_home_and_host_are_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(socket, "gethostname", lambda: "enigma")

    assert environment.scrub("/home/ada/x on enigma, /home/adam, /home/ada: enigmatic") == (
        "~/x on <host>, /home/adam, ~: enigmatic"
    )
    for text in ("/home/ada", "--at=/home/ada/x", "enigma:/data", "a~b"):
        assert environment.unscrub(environment.scrub(text)) == text
    monkeypatch.setenv("HOME", "/")
    assert environment.scrub("/data/x") == "/data/x"


class NVMLError(Exception):
    """Stands for pynvml's."""


class LibraryNotFound(NVMLError):  # noqa: N818 - named as in NVML
    """No driver is installed."""


class NotSupported(NVMLError):  # noqa: N818 - named as in NVML
    """The GPU cannot do this."""


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A machine with one H200, as NVML tells of it."""

    def no_mig(handle: int) -> list[int]:
        raise NotSupported

    fake = SimpleNamespace(
        NVMLError=NVMLError,
        NVMLError_LibraryNotFound=LibraryNotFound,
        NVMLError_NotSupported=NotSupported,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetMigMode=no_mig,
        nvmlDeviceGetCudaComputeCapability=lambda handle: (9, 0),
        nvmlDeviceGetName=lambda handle: "NVIDIA H200",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=150 * 2**30),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    environment._gpus.cache_clear()
    yield fake
    environment._gpus.cache_clear()


def test_gpus_are_described_by_nvml(nvml: SimpleNamespace) -> None:
    found = environment.capture()

    gpu = {"name": "NVIDIA H200", "memory_bytes": 150 * 2**30, "compute_capability": "9.0"}
    assert found.hardware["gpus"] == [{**gpu, "mig": None}]
    assert found.software["nvidia_driver"] == "580.1"


def test_no_driver_means_no_gpu_and_a_broken_one_is_missing(nvml: SimpleNamespace) -> None:
    def fail(error: type[Exception]) -> None:
        raise error("driver mismatch")

    nvml.nvmlInit = lambda: fail(LibraryNotFound)
    assert environment.capture().hardware["gpus"] == []
    environment._gpus.cache_clear()
    nvml.nvmlInit = lambda: fail(NVMLError)
    found = environment.capture()
    assert found.hardware["gpus"] is None
    assert found.missing["gpus"] == "RuntimeError: NVML: driver mismatch"


@pytest.mark.parametrize(
    ("files", "memory", "cpus"),
    [
        ({}, None, None),
        ({"memory.max": "max\n", "cpu.max": "max 100000\n"}, None, None),
        ({"memory.max": "1073741824\n", "cpu.max": "150000 100000\n"}, 2**30, 1.5),
        (
            {
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
            None,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "2147483648\n",
                "cpu/cpu.cfs_quota_us": "200000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            2**31,
            2.0,
        ),
    ],
)
def test_cgroup_limits_are_read_in_both_versions(
    tmp_path: Path, files: dict[str, str], memory: int | None, cpus: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert environment.memory_limit(tmp_path) == memory
    assert environment.cpu_limit(tmp_path) == cpus
