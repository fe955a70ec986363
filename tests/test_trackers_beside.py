"""What is exported to tools that are not installed with tradebench, read by those tools.

Each is installed beside, into a folder of its own: MLflow and Weights & Biases bring a server's
libraries, and Otava pins another numpy.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tradebench import exchange, store

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTS = (
    "tests/test_exchange.py::test_mlflows_own_client_reads_what_its_store_was_given",
    "tests/test_exchange.py::test_wandb_keeps_a_run_for_every_result_until_it_is_synced",
)


def beside(folder: Path, *requirements: str) -> dict[str, str]:
    """The variables of a process that has these packages; skips the test where pip has none."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
    there = ["--target", str(folder)]
    done = subprocess.run(
        [*install, *there, *requirements], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"pip cannot install {requirements[0]}: {done.stderr.strip()[-200:]}")
    path = filter(None, [str(folder), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


@pytest.mark.slow
def test_trackers_read_what_they_are_given(tmp_path: Path) -> None:
    extras = PROJECT["optional-dependencies"]
    constrained = ["--constraint", str(ROOT / "constraints.txt")]
    variables = beside(tmp_path / "trackers", *extras["mlflow"], *extras["wandb"], *constrained)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.slow
def test_otava_finds_the_change_point_of_what_it_is_given(tmp_path: Path) -> None:
    """Thirty runs, of which the last ten take a tenth longer and as much memory as ever."""
    drawn = random.Random(0)
    example = store.load(ROOT / "results" / "quickstart-full" / "example")
    result = example.results[0]
    peak = result.measurements["peak_tensor_bytes"]
    runs = []
    for number in range(30):
        took = drawn.gauss(1.1 if number >= 20 else 1.0, 0.01)
        step = result.measurements["step_seconds"].model_copy(
            update={"value": took, "samples": (took,)}
        )
        made = result.model_copy(
            update={
                "measurements": {"step_seconds": step, "peak_tensor_bytes": peak},
                "environment": result.environment.model_copy(
                    update={"variables": {"git_commit": f"commit{number}"}}
                ),
            }
        )
        runs.append(
            replace(
                example,
                directory=tmp_path / f"run{number:02}",
                header={"suite": "s", "started": f"2026-11-{number + 1:02}T00:00:00+00:00"},
                results=(made,),
            )
        )
    config, written = exchange.writer("otava")(runs, tmp_path / "otava")
    name = Path(written).stem
    done = subprocess.run(
        [sys.executable, "-m", "otava.main", "analyze", name, "--output", "json"],
        env={**beside(tmp_path / "library", "apache-otava"), "OTAVA_CONFIG": config},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)[name]
    (change,) = found["changes"]
    assert found["attributes"] == {"commit": "commit20"}
    assert (change["metric"], change["index"]) == ("step_seconds", 20)
    assert float(change["mean_after"]) / float(change["mean_before"]) == pytest.approx(
        1.1, abs=0.02
    )
