"""Ray is an extra: installed beside, its engine holds the list of faults on a real cluster."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What `tradebench[ray]` brings, at the versions of constraints.txt.
PACKAGES = ("ray", "msgpack", "protobuf")
# The rest of the list runs where Ray is installed for good; this much is proved everywhere.
FAULTS = (
    "tests/faults/test_ray.py",
    *(
        f"tests/faults/test_conformance.py::{test}"
        for test in (
            "test_every_end_is_a_result_with_its_cause[ray]",
            "test_a_rank_that_goes_wrong_ends_the_trial_within_seconds_and_is_named[ray]",
            "test_a_silent_trial_is_ended_with_all_it_started[ray-gil]",
            "test_an_impossible_demand_ends_as_oom_with_phase_and_size[ray]",
            "test_a_killed_supervisor_leaves_no_process_and_loses_nothing[ray]",
        )
    ),
)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is not None,
    reason="ray is installed: its own tests run",
)
def test_the_faults_hold_on_a_cluster(tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    constrained = ["--constraint", str(ROOT / "constraints.txt"), "--target", str(folder)]
    subprocess.run([*install, *constrained, *PACKAGES], check=True, capture_output=True)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FAULTS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
